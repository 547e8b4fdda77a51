#!/bin/sh
# Everything that is to be measured at the size of Stable Diffusion 1.5 on a machine with a GPU, in one command:
#
#     sh examples/benchmarks/gpu.sh [FOLDER]
#
# LCM_Dreamshaper_v7's architecture with random weights, in bfloat16, at 512 and 768 pixels: throughput of sampling,
# decoding, scoring and training, their shares of the measured matrix peak, peak memory, and the projected time of
# RLCM's four tasks; then the same within 8, 12 and 24 GB. Nothing is downloaded. Writes one JSON file each.
set -eu
folder=${1:-gpu-bench}
mkdir -p "$folder"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$folder/device.csv"
for size in 512 768; do
    for budget in whole 8GB 12GB 24GB; do
        set -- --architecture sd15-lcm --device cuda --dtype bfloat16 --size "$size" --seconds 2 \
            --task compression --task incompression --task aesthetic --task prompt_image_alignment
        if [ "$budget" != whole ]; then set -- "$@" --memory-budget "$budget"; fi
        echo "== $size pixels, memory: $budget"
        rlcm bench "$@" --json > "$folder/sd15-lcm-$size-$budget.json"
    done
done
