"""A small run of any family's tiny pipeline, by the command line."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.models.latent_model import LatentModel

SETTINGS = """
task = "compression"
rewards = { compressibility = 1.0 }
[sampler]
kind = "KIND"
eta = 1.0
[sample]
samples = 2
batch_size = 2
steps = 3
guidance_scale = 1.0
[train]
minibatch_size = 2
[evaluate]
prompts = 1
images_per_prompt = 1
[runtime]
iterations = 1
device = "cpu"
"""


def describe_family_run(folder: Path, pipeline: Path, model: LatentModel) -> list[object]:
    """Write the settings and prompts of a run to a folder, and return the options with which `loop` starts it."""
    settings, prompts = folder / "settings.toml", folder / "prompts.txt"
    settings.write_text(SETTINGS.replace("KIND", model.sampler.kind))
    # A preset's hundreds are all encoded first, which takes a minute with some.
    prompts.write_text("a cat\na dog\na hen\na cow\n")
    height, width = model.image_size  # its own: what is recommended for a published model is larger
    size = f"{width}x{height}"
    return ["--config", settings, "--model", pipeline, "--prompts", prompts, "--size", size]
