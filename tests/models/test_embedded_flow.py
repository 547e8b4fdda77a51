"""The embedded flow matching pair: emoji-sprint of few steps, and emoji-sana, its teacher."""

from __future__ import annotations

import pytest
import torch
from diffusers import SanaPipeline, SanaSprintPipeline
from model_helpers import draw

from examples.emoji_sprint.pipelines import at_own_size
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.models.embedded import EMBEDDED, embedded_folder
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import load_model

PROMPTS, SEEDS = ["a cat", "a frog on blue"], [3, 4]


def load(name):
    return load_model(name, revision=None, dtype="float32", device="cpu")


def load_plainly(kind, name):
    with quiet_libraries():
        pipeline = kind.from_pretrained(embedded_folder(name))
    pipeline.set_progress_bar_config(disable=True)
    return at_own_size(pipeline)


def test_the_pair_and_how_it_is_drawn():
    teacher, student = (load(name) for name in ("emoji-sana", "emoji-sprint"))
    assert (teacher.sampler.kind, teacher.guided_by_embedding) == ("flow", False)
    assert (student.sampler.kind, student.guided_by_embedding) == ("scm", True)
    assert teacher.latent_shape == student.latent_shape == (128, 3, 3)
    assert teacher.image_size == student.image_size == (96, 96)


@pytest.mark.parametrize(
    ("kind", "name", "steps"),
    [
        (SanaSprintPipeline, "emoji-sprint", 1),
        (SanaSprintPipeline, "emoji-sprint", 2),
        (SanaSprintPipeline, "emoji-sprint", 4),
        (SanaPipeline, "emoji-sana", 5),
    ],
)
def test_plain_diffusers_draws_the_same_images(kind, name, steps):
    guidance, model = EMBEDDED[name].guidance_scale, load(name)
    as_drawn = model.sampler.drawing_settings()
    images = draw(model, PROMPTS, SEEDS, steps=steps, guidance_scale=guidance, sampler=as_drawn).images.int()
    expected = load_plainly(kind, name)(
        prompt=PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[seed_generator(seed) for seed in SEEDS],
        output_type="pt",
    ).images
    assert (images - expected.mul(255).round().int()).abs().max() <= 1
    assert images.float().std() > 20


def test_the_student_learned_to_ask_once_what_the_teacher_is_asked_twice_for():
    teacher, student = (load(name) for name in ("emoji-sana", "emoji-sprint"))
    latents = torch.randn(4, *teacher.latent_shape, generator=seed_generator(0))
    prompts = ["a cat", "a dog", "a bee", "a pig"]
    with torch.no_grad():
        # Of pure noise, both velocities are noise less the image; the teacher's is of the mean image.
        asked_once = student.predict(latents, torch.ones(4), student.encode_prompts(prompts), 1.0)
        asked_twice = teacher.predict(latents, torch.full((4,), 1000.0), teacher.encode_prompts(prompts), 1.0)
    assert torch.corrcoef(torch.stack([asked_once.flatten(), asked_twice.flatten()]))[0, 1] > 0.8
