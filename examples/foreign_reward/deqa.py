"""Serve DeQA-Score (arXiv 2501.11561): the quality of an image, whatever its prompt, from 1 (bad) to 5 (excellent).

Its architecture is code in the hub repository, which runs here and nowhere else:

    python examples/foreign_reward/deqa.py --revision COMMIT
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from server import ScoreFn, Served, run

MODEL = "zhiyuanyou/DeQA-Score-Mix3"


def load(revision: str) -> ScoreFn:
    """Load the model, and run the code of that commit of its repository."""
    import torch
    from PIL import Image
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        MODEL,
        revision=revision,
        trust_remote_code=True,
        attn_implementation="eager",
        torch_dtype=torch.float16,
        device_map="auto",
    )

    def score(images: np.ndarray, prompts: Sequence[str]) -> Sequence[float]:
        pictures = [Image.fromarray(image) for image in np.ascontiguousarray(images.transpose(0, 2, 3, 1))]
        with torch.no_grad():
            return [float(rating) for rating in model.score(pictures)]

    return score


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", required=True, help=f"commit of {MODEL} whose code you have read")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    chosen = parser.parse_args()
    served = Served(
        "deqa", load(chosen.revision), f"{MODEL} {chosen.revision}", "quality of the image (DeQA-Score)", "1 to 5"
    )
    run(served, chosen.host, chosen.port)


if __name__ == "__main__":
    main()
