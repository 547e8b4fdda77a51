"""Which sampler a folder is sampled with, and the scheduler that it gets for it."""

import json
import shutil

import diffusers
import pytest
import torch
from model_helpers import edit_json
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_sd, build_sdxl, edit_scheduler, save_distilled_lora

from rlcm_cli.errors import ModelError
from rlcm_cli.models.embedded import EMBEDDED
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import load_model

SCHEDULERS = {"lcm": "LCMScheduler", "ddim": "DDIMScheduler", "tcd": "TCDScheduler"}


def load(folder, **settings):
    return load_model(str(folder), **{"revision": None, "dtype": "float32", "device": "cpu", **settings})


def assert_refused(folder, pattern, **settings):
    with pytest.raises(ModelError, match=pattern) as caught:
        load(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(folder) in message


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return build_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return build_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def sdxl_lcm(tmp_path_factory):
    """Its scheduler is Euler's: the U-Net alone tells what it is."""
    return build_sdxl(tmp_path_factory.mktemp("models") / "sdxl-lcm", guided_by_embedding=True)


@pytest.fixture
def sd_copy(sd, tmp_path):
    """A copy to change."""
    return shutil.copytree(sd, tmp_path / "sd-copy")


@pytest.fixture(scope="module")
def lora(sd, tmp_path_factory):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    return save_distilled_lora(pipeline, tmp_path_factory.mktemp("lora"))


def set_scheduler(folder, name):
    edit_json(folder / "model_index.json", scheduler=["diffusers", SCHEDULERS[name]])
    edit_scheduler(folder, _class_name=SCHEDULERS[name], clip_sample=False)


# The sampler


@pytest.mark.parametrize(
    ("own", "asked", "distilled", "expected"),
    [
        (None, None, False, "ddim"),
        (None, None, True, "lcm"),
        (None, "tcd", True, "tcd"),
        (None, "ddim", True, "ddim"),
        (None, "lcm", False, "lcm"),
        (None, "tcd", False, "tcd"),
        ("lcm", None, False, "lcm"),
        ("tcd", None, False, "tcd"),
        ("tcd", None, True, "tcd"),
        ("ddim", None, True, "lcm"),
        ("lcm", "ddim", False, "ddim"),
    ],
)
def test_a_plain_unet(sd_copy, lora, own, asked, distilled, expected):
    """`own`: the folder's scheduler, PNDM if None."""
    if own:
        set_scheduler(sd_copy, own)
    model = load(sd_copy, sampler=asked, distilled_lora=str(lora) if distilled else None)
    assert model.sampler.kind == expected
    assert type(model.pipeline.scheduler).__name__ == SCHEDULERS[expected]
    assert type(model.pipeline).__name__ == "StableDiffusionPipeline"
    assert not model.guided_by_embedding


@pytest.mark.parametrize("asked", [None, "lcm"])
def test_a_unet_with_a_guidance_embedding_is_an_lcm_whatever_its_scheduler(sdxl_lcm, asked):
    model = load(sdxl_lcm, sampler=asked)
    assert (model.sampler.kind, model.guided_by_embedding) == ("lcm", True)
    assert type(model.pipeline.scheduler).__name__ == "LCMScheduler"


def test_sdxl_is_sampled_with_ddim(sdxl):
    model = load(sdxl)
    assert (model.sampler.kind, type(model.pipeline).__name__) == ("ddim", "StableDiffusionXLPipeline")


def test_the_embedded_models_and_their_guidance():
    teacher, student = (load(name) for name in ("emoji-diffusion", "emoji-lcm"))
    assert (teacher.sampler.kind, teacher.guided_by_embedding) == ("ddim", False)
    assert (student.sampler.kind, student.guided_by_embedding) == ("lcm", True)
    assert [EMBEDDED[name].guidance_scale for name in ("emoji-lcm", "emoji-diffusion")] == [4.0, 4.0]
    # The student learned to ask once what the teacher is asked twice for.
    latents = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    predictions = []
    for model in (teacher, student):
        conditioning = model.encode_prompts(["cat", "dog", "bee", "pig"])
        with torch.no_grad():
            predictions.append(model.predict(latents, torch.full((4,), 999), conditioning, 4.0))
    correlation = torch.corrcoef(torch.stack([prediction.flatten() for prediction in predictions]))[0, 1]
    assert correlation > 0.95


# The scheduler


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_the_noise_schedule_of_the_folder_is_taken_over_and_nothing_is_clipped(sd_copy, sampler):
    edit_scheduler(sd_copy, beta_end=0.02, prediction_type="v_prediction", timestep_spacing="trailing")
    with quiet_libraries():
        plain = diffusers.StableDiffusionPipeline.from_pretrained(sd_copy, safety_checker=None)
        expected = getattr(diffusers, SCHEDULERS[sampler]).from_config(plain.scheduler.config, clip_sample=False)
    assert type(plain.scheduler).__name__ == "PNDMScheduler"
    scheduler = load(sd_copy, sampler=sampler).pipeline.scheduler
    settings, wanted = (
        {key: value for key, value in config.items() if not key.startswith("_")}
        for config in (scheduler.config, expected.config)
    )
    assert settings == wanted
    assert torch.equal(scheduler.alphas_cumprod, expected.alphas_cumprod)
    config = scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert (config.set_alpha_to_one, config.steps_offset, config.beta_end) == (False, 1, 0.02)
    assert (config.clip_sample, config.thresholding) == (False, False)


def test_zero_terminal_snr_survives_a_scheduler_that_knows_nothing_of_it(sd_copy):
    edit_scheduler(sd_copy, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert load(sd_copy).alphas_cumprod[-1] < 1e-7


def test_the_schedule_of_sdxl_keeps_its_offset_and_spacing(sdxl):
    config = load(sdxl).pipeline.scheduler.config
    assert (config.steps_offset, config.timestep_spacing, config.clip_sample) == (1, "leading", False)


def test_a_folder_without_scheduler_gets_that_of_stable_diffusion(sd, sd_copy):
    edit_json(sd_copy / "model_index.json", scheduler=[None, None])
    shutil.rmtree(sd_copy / "scheduler")
    model = load(sd_copy)
    config = model.pipeline.scheduler.config
    assert (model.sampler.kind, config.set_alpha_to_one, config.steps_offset) == ("ddim", False, 1)
    assert torch.equal(model.alphas_cumprod, load(sd).alphas_cumprod)


def test_the_digest_covers_the_distilled_lora_and_the_noise_schedule(sd, sd_copy, lora):
    digest = load(sd, sampler="lcm").digest
    assert load(sd_copy, sampler="lcm").digest == digest
    assert load(sd, sampler="lcm", distilled_lora=str(lora)).digest != digest
    edit_scheduler(sd_copy, beta_end=0.02)
    assert load(sd_copy, sampler="lcm").digest != digest


@pytest.mark.parametrize("part", ["text_encoder_2", "force_zeros_for_empty_prompt"])
def test_the_digest_covers_what_only_sdxl_has(sdxl, tmp_path, part):
    copy = shutil.copytree(sdxl, tmp_path / "sdxl-copy")
    assert load(copy).digest == load(sdxl).digest
    if part == "text_encoder_2":
        weights = load_file(copy / part / "model.safetensors")
        weights["text_projection.weight"] += 1
        save_file(weights, copy / part / "model.safetensors", metadata={"format": "pt"})
    else:
        edit_json(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    assert load(copy).digest != load(sdxl).digest


# What is refused


@pytest.mark.parametrize("sampler", ["ddim", "tcd"])
def test_another_sampler_on_the_unet_of_an_lcm(sdxl_lcm, sampler):
    assert_refused(sdxl_lcm, f"cannot be drawn with the sampler '{sampler}'; use --sampler lcm", sampler=sampler)


def test_a_distilled_lora_on_the_unet_of_an_lcm(sdxl_lcm, lora):
    assert_refused(sdxl_lcm, "is a latent consistency model already", distilled_lora=str(lora))


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
@pytest.mark.parametrize("own", ["ddim", None])
def test_a_scheduler_that_clips(sd_copy, setting, own):
    if own:
        set_scheduler(sd_copy, own)
    edit_scheduler(sd_copy, **{setting: True})
    assert_refused(sd_copy, "clips or thresholds predictions")


def test_a_scheduler_without_betas(sd_copy):
    edit_json(sd_copy / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    (sd_copy / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    assert_refused(sd_copy, "EDMEulerScheduler, states no schedule of betas")


def test_a_unet_for_inpainting(sd_copy):
    edit_json(sd_copy / "unet" / "config.json", in_channels=9)
    assert_refused(sd_copy, "takes 9 channels and gives 4, as for inpainting")


def test_the_refiner_of_sdxl(sdxl, tmp_path):
    copy = shutil.copytree(sdxl, tmp_path / "refiner")
    edit_json(copy / "model_index.json", text_encoder=[None, None], _class_name="StableDiffusionXLImg2ImgPipeline")
    assert_refused(copy, "is SDXL's refiner")


def test_a_pipeline_without_unet(tmp_path):
    index = {"_class_name": "HunyuanDiTPipeline", "transformer": ["diffusers", "HunyuanDiT2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert_refused(tmp_path, "is a HunyuanDiTPipeline, which is of no family that is known here")


def test_a_part_of_sdxl_that_lacks_weights(sdxl, tmp_path):
    copy = shutil.copytree(sdxl, tmp_path / "sdxl-copy")
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    assert_refused(copy, "safetensors")
