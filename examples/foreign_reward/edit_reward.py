"""Serve EditReward (arXiv 2509.26346): how well an image follows an instruction to edit a source image.

The prompt is the instruction; a file says which source image belongs to it:

    python examples/foreign_reward/edit_reward.py --config CONFIG.yaml --checkpoint FOLDER --sources sources.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from server import ScoreFn, Served, run


def load(config: str, checkpoint: str, sources: Mapping[str, str]) -> ScoreFn:
    """Load the model with the package EditReward, which is a checkout on the Python path."""
    import torch
    from EditReward.inference_vl_edit import EditRewardVLInferencer
    from PIL import Image

    judge = EditRewardVLInferencer(
        config_path=config,
        checkpoint_path=checkpoint,
        device="cuda" if torch.cuda.is_available() else "cpu",
        reward_dim="overall_detail",
        rm_head_type="ranknet_multi_head",
    )

    def score(images: np.ndarray, prompts: Sequence[str]) -> Sequence[float]:
        for prompt in prompts:
            if prompt not in sources:
                raise ValueError(f"there is no source image for the instruction {prompt!r}")
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            paths = [str(Path(folder, f"{row}.png")) for row in range(len(images))]
            for path, image in zip(paths, np.ascontiguousarray(images.transpose(0, 2, 3, 1)), strict=True):
                Image.fromarray(image).save(path)
            sources_of = [sources[prompt] for prompt in prompts]
            rewards = judge.reward(prompts=list(prompts), image_src=sources_of, image_paths=paths)
            return [float(reward[0]) for reward in rewards]

    return score


def read_sources(file: Path) -> dict[str, str]:
    """Read which image each instruction edits: lines {"prompt": INSTRUCTION, "source": FILE}, relative to the file."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {line["prompt"].strip(): str(file.parent / line["source"]) for line in lines}


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a file of EditReward/config")
    parser.add_argument("--checkpoint", required=True, help="folder of the weights")
    parser.add_argument("--sources", required=True, type=Path, help="file of instructions and their source images")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101)
    chosen = parser.parse_args()
    score = load(chosen.config, chosen.checkpoint, read_sources(chosen.sources))
    revision = f"EditReward {Path(chosen.config).stem} {Path(chosen.checkpoint).name} {chosen.sources.name}"
    served = Served("edit_reward", score, revision, "how well an edit follows its instruction (EditReward)", "any")
    run(served, chosen.host, chosen.port)


if __name__ == "__main__":
    main()
