"""Pipelines that the package carries, so that the first run needs no download."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.recommendation import Recommendation

EMBEDDED = {
    "emoji-lcm": Recommendation("lcm", steps=4, guidance_scale=4.0, source="its card"),
    "emoji-diffusion": Recommendation("ddim", steps=20, guidance_scale=4.0, source="its card"),
    "emoji-sprint": Recommendation(
        "scm", steps=4, guidance_scale=4.5, training={"sample.steps": 2}, source="its card"
    ),
    "emoji-sana": Recommendation(
        "flow",
        steps=20,
        guidance_scale=4.5,
        training={"sampler.noise": "flow-sde", "sampler.eta": 0.7},
        source="its card",
    ),
}
"""How each was found to draw best. The configuration has the names too, in `EMBEDDED_MODELS`."""


def embedded_folder(name: str) -> Path | None:
    """Return the folder of an embedded pipeline; None for any other name."""
    return Path(__file__).parent / name if name in EMBEDDED else None
