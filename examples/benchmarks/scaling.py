"""How the cost of an iteration grows with the images and with the model calls, and what memory it takes.

    OMP_NUM_THREADS=1 python -m examples.benchmarks.scaling
    OMP_NUM_THREADS=1 python -m examples.benchmarks.scaling --images --calls --samples-of-memory 10000

Each point is a process of its own that draws, scores and trains one iteration, after a small one for warm-up:
images 1×, 4× and 16× at H = 4, then H = 2, 4, 8 and 16. Prints processor seconds an image; for the calls the
straight line through the points of sampling (a constant for decoding, a slope a call) and of training (a slope an
action), with the largest distance of a point from it; the peak of the resident memory; and last the peak of one run
of many images in many shards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.benchmarks.costs import describe_machine, print_table, write_json
from examples.benchmarks.rlcm_side import RlcmSide
from rlcm_cli.config import Config, resolve_config

BATCH = 64
WARM_UP = 64


def configure(model: str, samples: int, steps: int, per_shard: int) -> Config:
    """Give the task: compression by the size of the JPEG alone."""
    values = {
        "model.name": model,
        "rewards": {"compressibility": 1.0},
        "prompts.source": "simple_animals",
        "sample.samples": samples,
        "sample.shards": max(1, samples // per_shard),
        "sample.batch_size": BATCH,
        "sample.steps": steps,
        "train.minibatch_size": min(samples, BATCH),
        "runtime.micro_batch_size": BATCH,
        "runtime.device": "cpu",
    }
    return resolve_config(["compression"], flags=values)


def run_point(model: str, samples: int, steps: int, per_shard: int) -> dict[str, float]:
    """Do an iteration in this process: processor seconds by phase, and the peak of the resident memory in MB."""
    with tempfile.TemporaryDirectory() as place:
        RlcmSide(Path(place) / "warm-up", configure(model, WARM_UP, steps, per_shard)).iterate()
        costs = RlcmSide(Path(place) / "run", configure(model, samples, steps, per_shard)).iterate()
    # Not getrusage: across exec it keeps the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
    return {**{phase: cost.processor for phase, cost in costs.items()}, "peak_megabytes": peak}


def measure_point(model: str, samples: int, steps: int, per_shard: int) -> dict[str, float]:
    """Do the same in a process of its own."""
    command = [sys.executable, "-m", "examples.benchmarks.scaling", "--model", model, "--per-shard", str(per_shard)]
    done = subprocess.run([*command, "--point", str(samples), str(steps)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def fit_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit y = constant + slope · x, each point by its relative distance: constant, slope, and the largest distance."""
    inputs, values = np.array(x, dtype=float), np.array(y, dtype=float)
    slope, constant = np.polyfit(inputs, values, 1, w=1 / values)
    fitted = constant + slope * inputs
    return {
        "constant": float(constant),
        "slope": float(slope),
        "largest_distance": float(np.max(np.abs(fitted / values - 1))),
    }


def show_images(points: dict[int, dict[str, float]]) -> None:
    """Print the cost an image at each number of images, and what it is of the cost at the smallest."""
    smallest = min(points)
    rows = []
    for images, point in points.items():
        cells = []
        for phase in ("sample", "train"):
            cost = point[phase] / images
            cells.append(f"{1000 * cost:.1f} (×{cost / points[smallest][phase] * smallest:.2f})")
        rows.append([f"{images} images", *cells, f"{point['peak_megabytes']:.0f}"])
    print_table(["", "sample ms/image", "train ms/image", "peak MB"], rows)


def show_calls(points: dict[int, dict[str, float]], images: int, lines: dict[str, dict[str, float]]) -> None:
    """Print the cost an image at each number of calls, and the lines through the points."""
    rows = [
        [
            f"H = {calls}",
            *(f"{1000 * point[phase] / images:.1f}" for phase in ("sample", "train")),
            f"{point['peak_megabytes']:.0f}",
        ]
        for calls, point in points.items()
    ]
    print_table(["", "sample ms/image", "train ms/image", "peak MB"], rows)
    for phase, unit in (("sample", "call"), ("train", "action")):
        line = lines[phase]
        print(
            f"{phase}: {1000 * line['constant']:.1f} ms + {1000 * line['slope']:.2f} ms a {unit}, "
            f"every point within {100 * line['largest_distance']:.0f} %"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-lcm")
    parser.add_argument("--images", type=int, nargs="*", default=[64, 256, 1024], help="at H = 4")
    parser.add_argument("--calls", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--images-of-calls", type=int, default=256, help="images of each point of --calls")
    parser.add_argument("--samples-of-memory", type=int, default=10_000, help="0: leave it out")
    parser.add_argument("--per-shard", type=int, default=250, help="images a shard, of larger iterations")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--point", type=int, nargs=2, metavar=("IMAGES", "CALLS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model, per_shard = arguments.model, arguments.per_shard
    if arguments.point:
        print(json.dumps(run_point(model, *arguments.point, per_shard)))
        return
    report: dict[str, Any] = {"machine": describe_machine(), "model": model}
    if arguments.images:
        points = {images: measure_point(model, images, 4, per_shard) for images in arguments.images}
        report["images"] = points
        show_images(points)
    if arguments.calls:
        images = arguments.images_of_calls
        points = {calls: measure_point(model, images, calls, per_shard) for calls in arguments.calls}
        lines = {
            phase: fit_line([calls - less for calls in points], [point[phase] / images for point in points.values()])
            for phase, less in (("sample", 0), ("train", 1))
        }
        report["calls"] = {"images": images, "points": points, "lines": lines}
        show_calls(points, images, lines)
    if arguments.samples_of_memory:
        samples = arguments.samples_of_memory
        point = measure_point(model, samples, 4, per_shard)
        report["memory"] = {"samples": samples, **point}
        print(f"{samples} images in shards of {per_shard}: peak {point['peak_megabytes']:.0f} MB")
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
