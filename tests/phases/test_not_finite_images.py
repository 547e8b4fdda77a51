"""Images that a model gives NaN or infinity for are an error wherever they are drawn, and never become pixels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from phase_runs import finish, make_config

from rlcm_cli.errors import NotFiniteError
from rlcm_cli.models.export import draw_by_pipeline
from rlcm_cli.models.loading import load_model
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.sample import draw_batch, sample
from rlcm_cli.runs.policy import ensure_start, load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.samplers import PipelineCall


@pytest.fixture
def model(tiny_lcm):
    return load_policy_model(make_config(tiny_lcm))


def damage_decoder(model, value: float) -> None:
    with torch.no_grad():
        model.pipeline.vae.decoder.layers[-1].bias[0] = value


def draw(model, prompts, **settings):
    schedule = drawing_schedule(model.sampler.default_settings(), 2, model)
    return draw_batch(model, schedule, prompts, range(5, 5 + len(prompts)), guidance_scale=4.0, reduction="mean")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_decoder_is_named_with_the_images(model, value):
    damage_decoder(model, value)
    with pytest.raises(NotFiniteError) as caught:
        draw(model, ["a cat", "a dog", "a fox"])
    message = str(caught.value)
    assert message.startswith("prompt 'a cat', seed 5 and 2 more of 3 images: the model's autoencoder gives NaN")
    assert "in float32; its weights or those of the LoRA are damaged" in message
    assert caught.value.rows == (0, 1, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_unet_is_named_where_the_decoder_would_hide_it(model, value):
    """The tiny decoder squashes what is infinite to a finite value."""
    with torch.no_grad():
        model.denoiser.conv_out.bias[0] = value
    with pytest.raises(NotFiniteError, match="the model's U-Net gives NaN or infinity in float32"):
        draw(model, ["a cat"])


def test_only_the_images_that_are_not_finite_are_named(model):
    latents = torch.zeros(130, *model.latent_shape)  # more than are decoded at once
    latents[129, 0, 0, 0] = torch.nan
    latents[3] = torch.inf
    with pytest.raises(NotFiniteError) as caught:
        model.decode(latents[[0, 3, 5]])
    assert caught.value.rows == (1,)
    with pytest.raises(NotFiniteError) as caught:
        model.decode(torch.cat([latents[4:], latents[:3]]))
    assert caught.value.rows == (125,)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [("float16", "use --dtype float32 or bfloat16"), ("bfloat16", "use --dtype float32; if that gives NaN too")],
)
def test_the_advice_is_that_of_the_dtype(tiny_lcm, dtype, advice):
    model = load_model(str(tiny_lcm), revision=None, dtype=dtype, device="cpu")
    damage_decoder(model, float("nan"))
    with pytest.raises(NotFiniteError, match=f"autoencoder gives NaN or infinity in {dtype}; .*{advice}"):
        model.decode(torch.zeros(1, *model.latent_shape, dtype=model.dtype))


def test_neither_samples_nor_evaluations_are_published(model, tiny_lcm, tmp_path):
    run = create_run(tmp_path / "run", make_config(tiny_lcm))
    ensure_start(run, model)
    damage_decoder(model, float("nan"))
    with pytest.raises(NotFiniteError):
        finish(sample(run, model))
    with pytest.raises(NotFiniteError):
        finish(evaluate(run, model, {}, 0))
    assert not list(run.layout.root.rglob("shard-*"))
    assert not run.layout.evaluations()


def test_what_diffusers_draws_with_an_export_is_looked_at():
    def pipeline(prompt, **arguments):
        return SimpleNamespace(images=torch.full((1, 3, 4, 4), torch.nan))

    with pytest.raises(NotFiniteError, match=r"prompt 'a cat': diffusers draws NaN; use"):
        draw_by_pipeline(pipeline, "a cat", 0, PipelineCall("LCMScheduler", {}))
