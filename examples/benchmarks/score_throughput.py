"""How fast `rlcm score` gives JPEG sizes to many images, beside the bare encoder.

    python -m examples.benchmarks.score_throughput --images 10000 --size 512

Makes a run directory with that many pictures (7.9 GB at 512x512), then takes turns, each in a process of its own:
the phase `score` with the reward compressibility, its cache of scores empty; and the bare work, one JPEG encoding
and one SHA-256 of each image by as many threads, over images that are in memory already. Prints images/s of
both, their ratio, and the peak memory of scoring.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from rlcm_cli.config import parse_config
from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.rewards.base.threads import map_threaded
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import PolicyIdentity, RolloutManifest, ScheduleRecord, publish_manifest, split_groups
from rlcm_cli.store.rollouts import RolloutShard, publish_shard, read_shard
from rlcm_cli.store.score_cache import ScoreCache


def draw_pictures(count: int, size: int, seed: int) -> torch.Tensor:
    """Draw uint8 [N, 3, size, size]: soft blobs with a grain, about as large as photographs when encoded."""
    generator = torch.Generator().manual_seed(seed)
    picture = 127.0 + torch.zeros(count, 3, size, size)
    for cells, strength in ((4, 50.0), (32, 20.0), (size // 2, 6.0)):
        noise = strength * torch.randn(count, 3, cells, cells, generator=generator)
        picture += torch.nn.functional.interpolate(noise, size=size, mode="bilinear")
    return picture.clamp(0, 255).byte()


def make_run(root: Path, images: int, size: int, per_shard: int) -> None:
    """Make a run with one rollout; its trajectories are empty, its pictures repeat after 64 with a shift of hue."""
    config = {
        "task": "compression",
        "rewards": {"compressibility": 1.0},
        "sample": {"samples": images, "shards": images // per_shard},
        "train": {"minibatch_size": None},
    }
    run = create_run(root, parse_config(config))
    manifest = RolloutManifest(
        iteration=0,
        tasks=("compression",),
        run_seed=0,
        model_digest="none",
        dtype="float32",
        policy=PolicyIdentity(kind="lcm", checkpoint=0, digest="none"),
        schedule=ScheduleRecord(
            timesteps=(999,),
            next_timesteps=(-1,),
            latents_coef=(1.0,),
            output_coef=(1.0,),
            std=(0.0,),
            guidance_scale=1.0,
        ),
        reduction="mean",
        prompts=("cat",) * images,
        group_tasks=(0,) * images,
        group_size=1,
        shards=split_groups(images, 1, images // per_shard),
        batch_size=1,
    )
    publish_manifest(run.layout.manifest(0), manifest)
    pictures = draw_pictures(64, size, 0)
    for number, (start, stop) in enumerate(manifest.shards):
        rows = torch.arange(start, stop)
        shift = (rows // 64 % 251).view(-1, 1, 1, 1).to(torch.uint8)
        empty = torch.zeros(len(rows), dtype=torch.int64)
        shard = RolloutShard(
            trajectories=Trajectories(
                torch.zeros(len(rows), 1, 1, 1, 1), torch.zeros(len(rows), 0), empty.new_zeros(0, 2), empty[:0]
            ),
            images=pictures[rows % 64] + shift,
            sample_index=rows,
            seed=rows.clone(),
            prompts=("cat",),
            prompt_index=empty,
            conditioning={},
        )
        publish_shard(run.layout, manifest, number, shard)


def score_run(root: Path) -> dict[str, float]:
    """Score the run from nothing: images/s and peak memory in MB."""
    shutil.rmtree(RunLayout(root).rollout(0) / "rewards", ignore_errors=True)
    cache = root / "scores.sqlite3"
    cache.unlink(missing_ok=True)
    run = open_run(root)
    scorers = load_scorers(run, cache=ScoreCache(cache))
    jpeg_kilobytes(torch.zeros(3, 8, 8, dtype=torch.uint8))  # imports Pillow
    started = time.perf_counter()
    for _ in score(run, scorers):
        pass
    seconds = time.perf_counter() - started
    # Not getrusage: across exec it keeps the peak of the process that started this one, which made the run.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
    return {"images_per_second": run.config.sample.samples / seconds, "peak_megabytes": peak}


def encode_bare(root: Path) -> dict[str, float]:
    """Encode and hash every image of the run in as many threads as `score` has; reading is not counted."""
    from rlcm_cli.store.manifest import read_manifest

    layout = RunLayout(root)
    manifest = read_manifest(layout.manifest(0))

    def work(image: torch.Tensor) -> None:
        jpeg_kilobytes(image)
        hashlib.sha256(image.numpy().data).digest()

    seconds, images = 0.0, 0
    for number in range(len(manifest.shards)):
        pictures = read_shard(layout, manifest, number).images
        started = time.perf_counter()
        map_threaded(work, pictures)
        seconds += time.perf_counter() - started
        images += len(pictures)
    return {"images_per_second": images / seconds}


def measure(mode: str, root: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "examples.benchmarks.score_throughput", "--run", str(root), "--only", mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Make the run, measure by turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--per-shard", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/score_throughput"))
    parser.add_argument("--only", choices=["score", "bare"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps((score_run if arguments.only == "score" else encode_bare)(arguments.run)))
        return
    if not arguments.run.exists():
        make_run(arguments.run, arguments.images, arguments.size, arguments.per_shard)
    scored, bare = [], []
    for _ in range(arguments.rounds):
        bare.append(measure("bare", arguments.run))
        scored.append(measure("score", arguments.run))
    ratios = [
        ours["images_per_second"] / theirs["images_per_second"] for ours, theirs in zip(scored, bare, strict=True)
    ]
    print(f"{arguments.images} images of {arguments.size}x{arguments.size}, {os.cpu_count()} cores")
    for name, rows in (("rlcm score", scored), ("one JPEG and one SHA-256", bare)):
        rates = [row["images_per_second"] for row in rows]
        print(f"{name}: {statistics.median(rates):.0f} images/s (from {min(rates):.0f} to {max(rates):.0f})")
    print(f"ratio: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")
    print(f"peak memory of scoring: {max(row['peak_megabytes'] for row in scored):.0f} MB")


if __name__ == "__main__":
    main()
