"""What it costs to serve a pixel reward instead of computing it in the run itself, on one machine.

    python -m examples.benchmarks.served_reward --clients 8

Starts `rlcm serve-reward` and lets several clients score batches at the same time, each as a run does; in turns
with as many images scored in this process, so that a machine whose speed drifts slows both. Clients, server and
the reward share the same cores. Prints images a second of both and the ratio, for 512×512 and 64×64 images.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rlcm_cli.rewards import Reward, RewardSpec, load_reward

DISTINCT_BYTES = 300 * 10**6
"""Images that are scored before one comes again."""


def draw_images(count: int, size: int) -> Tensor:
    """Draw smooth shapes with some grain, which are about as large as JPEG files as photographs are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    grain = torch.randn(count, 3, size, size, generator=generator) * 3
    return (smooth + grain).clamp(0, 255).to(torch.uint8)


@contextlib.contextmanager
def serving(name: str) -> Iterator[str]:
    """Serve a reward on a port that is free, and give its address."""
    command = [sys.executable, "-m", "rlcm_cli", "serve-reward", name, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split(": ")[0] if process.stdout else ""
        process.terminate()


def score_together(rewards: Sequence[Reward], batches: Sequence[Tensor], turns: int) -> float:
    """Let each client score some of the batches in turn, all at the same time, and give the images a second."""
    size = len(batches[0])
    prompts, metadata = ["a cat"] * size, [{"sample": index} for index in range(size)]

    def score(reward: Reward, first: int) -> None:
        for turn in range(turns):
            reward.score(batches[(first + turn) % len(batches)], prompts, metadata)

    threads = [threading.Thread(target=score, args=(reward, number)) for number, reward in enumerate(rewards)]

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return len(rewards) * turns * size / timed(run)


def timed(work: Callable[[], object]) -> float:
    """Give the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="compressibility")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    here = load_reward(RewardSpec(arguments.reward))
    with serving(arguments.reward) as address:
        clients = [load_reward(RewardSpec(address)) for _ in range(arguments.clients)]
        for size, turns in ((512, 3), (64, 80)):
            # As in a run, where an image is scored once, none is in the processor's cache from the last time.
            images = draw_images(arguments.batch, size)
            batches = [images.roll(shift, 1) for shift in range(DISTINCT_BYTES // images.nbytes + 1)]
            for rewards in ([here], clients):
                score_together(rewards, batches, 2)
            served, local = [], []
            for _ in range(arguments.rounds):
                local.append(score_together([here], batches, turns * len(clients)))
                served.append(score_together(clients, batches, turns))
            ratios = [there / here for there, here in zip(served, local, strict=True)]
            print(
                f"{arguments.reward}, {size}×{size}, batches of {arguments.batch}: in process "
                f"{statistics.median(local):.0f} images/s, served to {len(clients)} clients "
                f"{statistics.median(served):.0f} images/s, ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
