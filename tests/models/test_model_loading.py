import re
import shutil

import pytest
import torch
from diffusers import LCMScheduler
from model_helpers import draw, edit_json, load_tiny
from safetensors.torch import load_file, save_file

from rlcm_cli.config import SampleSettings
from rlcm_cli.core.device import select_device
from rlcm_cli.core.lcm import lcm_schedule
from rlcm_cli.errors import ModelError
from rlcm_cli.models.loading import load_model
from rlcm_cli.phases.schedules import drawing_schedule

UNET = "unet/diffusion_pytorch_model.safetensors"


def assert_refused(name, pattern, **settings):
    with pytest.raises(ModelError, match=pattern) as caught:
        load_model(str(name), **{"revision": None, "dtype": "float32", "device": "cpu", **settings})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(name) in message or "device" in message


def pickle_weights(folder, file):
    """Replace safetensors by a pickle, as old repositories have it."""
    torch.save(load_file(folder / file), folder / file.replace(".safetensors", ".bin"))
    (folder / file).unlink()


# What loads


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_comes_frozen_in_eval_mode_and_in_its_dtype(tiny_lcm, dtype):
    model = load_tiny(tiny_lcm, dtype)
    for module in (model.unet, model.pipeline.vae, model.pipeline.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert {parameter.dtype for parameter in module.parameters()} == {model.dtype}
    assert str(model.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_nearly_the_same_images_on_the_cpu(tiny_lcm, dtype):
    drawn = draw(load_tiny(tiny_lcm, dtype), ["cat"], [0])
    assert drawn.trajectories.latents_BSCHW.dtype == getattr(torch, dtype)
    difference = drawn.images.float() - draw(load_tiny(tiny_lcm), ["cat"], [0]).images.float()
    assert difference.abs().mean() < 2


def test_loading_and_drawing_say_nothing(tiny_lcm, caplog, capfd):
    for dtype in ("float32", "float16"):
        draw(load_tiny(tiny_lcm, dtype), ["cat"], [0])
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def without_scheduler(folder):
    edit_json(folder / "model_index.json", scheduler=[None, None])
    shutil.rmtree(folder / "scheduler")


def with_another_scheduler(folder):
    edit_json(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")


@pytest.mark.parametrize("change", [without_scheduler, with_another_scheduler])
def test_a_folder_without_lcm_scheduler_gets_one(tiny_lcm, tiny_lcm_copy, change):
    """Early revisions of LCM_Dreamshaper_v7 have a null scheduler."""
    change(tiny_lcm_copy)
    model = load_tiny(tiny_lcm_copy)
    assert isinstance(model.pipeline.scheduler, LCMScheduler)
    assert torch.equal(draw(model, ["cat"], [0]).images, draw(load_tiny(tiny_lcm), ["cat"], [0]).images)


def test_the_schedule_follows_the_configuration_of_the_pipeline(tiny_lcm_copy):
    edit_json(
        tiny_lcm_copy / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        timestep_scaling=5.0,
        beta_end=0.02,
    )
    schedule = drawing_schedule(SampleSettings(steps=4, spacing="strided"), load_tiny(tiny_lcm_copy))
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear")
    expected = lcm_schedule(
        scheduler.alphas_cumprod, torch.tensor([999, 759, 519, 279]), "v_prediction", timestep_scaling=5.0
    )
    for name, values in vars(expected).items():
        assert torch.equal(getattr(schedule, name), values), name


def test_the_digest_changes_with_any_weight_and_the_dtype(tiny_lcm, tiny_lcm_copy):
    digest = load_tiny(tiny_lcm).digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert load_tiny(tiny_lcm_copy).digest == digest
    assert load_tiny(tiny_lcm, "bfloat16").digest != digest
    weights = load_file(tiny_lcm_copy / UNET)
    bias = weights["conv_out.bias"]
    bias[-1] = torch.nextafter(bias[-1], torch.tensor(9.0))
    save_file(weights, tiny_lcm_copy / UNET, metadata={"format": "pt"})
    assert load_tiny(tiny_lcm_copy).digest != digest


@pytest.mark.parametrize(
    "file", ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "scheduler"]
)
def test_the_digest_covers_all_parts_that_make_an_image(tiny_lcm, tiny_lcm_copy, file):
    if file == "scheduler":
        config = tiny_lcm_copy / "scheduler/scheduler_config.json"
        config.write_text(config.read_text().replace("0.00085", "0.00084"))
    else:
        weights = load_file(tiny_lcm_copy / file)
        first = sorted(weights)[0]
        weights[first] = weights[first] + 1
        save_file(weights, tiny_lcm_copy / file, metadata={"format": "pt"})
    assert load_tiny(tiny_lcm_copy).digest != load_tiny(tiny_lcm).digest


# What is refused


def test_a_folder_that_is_no_pipeline(tmp_path):
    assert_refused(
        tmp_path, "is no diffusers pipeline of Stable Diffusion or a latent consistency model .*model_index.json"
    )


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
def test_a_scheduler_that_follows_no_gaussian(tiny_lcm_copy, setting):
    edit_json(tiny_lcm_copy / "scheduler" / "scheduler_config.json", **{setting: True})
    assert_refused(tiny_lcm_copy, "clips or thresholds")


@pytest.mark.parametrize("file", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_missing_weights(tiny_lcm_copy, file):
    (tiny_lcm_copy / file).unlink()
    assert_refused(tiny_lcm_copy, "is no diffusers pipeline.*safetensors")


@pytest.mark.parametrize("file", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_pickled_weights_are_not_read(tiny_lcm_copy, file):
    pickle_weights(tiny_lcm_copy, file)
    assert_refused(tiny_lcm_copy, "is no diffusers pipeline.*safetensors")


def test_truncated_weights(tiny_lcm_copy):
    data = (tiny_lcm_copy / UNET).read_bytes()
    (tiny_lcm_copy / UNET).write_bytes(data[: len(data) // 2])
    assert_refused(tiny_lcm_copy, "is no diffusers pipeline")


def test_weights_of_another_shape(tiny_lcm_copy):
    weights = load_file(tiny_lcm_copy / UNET)
    weights["conv_out.bias"] = torch.zeros(7)
    save_file(weights, tiny_lcm_copy / UNET, metadata={"format": "pt"})
    assert_refused(tiny_lcm_copy, "is no diffusers pipeline")


def test_weights_that_lack_a_tensor(tiny_lcm_copy):
    weights = load_file(tiny_lcm_copy / UNET)
    del weights["conv_out.bias"]
    save_file(weights, tiny_lcm_copy / UNET, metadata={"format": "pt"})
    assert_refused(tiny_lcm_copy, "UNet2DConditionModel lack 'conv_out.bias'")


@pytest.mark.parametrize("text", ["", "{", "[]", '"LatentConsistencyModelPipeline"'])
def test_a_model_index_that_is_no_json_object(tiny_lcm_copy, text):
    (tiny_lcm_copy / "model_index.json").write_text(text)
    assert_refused(tiny_lcm_copy, "is no diffusers pipeline")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "./no/such/folder", "emoji-lmc"])
def test_a_name_that_cannot_be_reached_points_to_the_embedded_model(name):
    assert_refused(name, "could not be loaded from the hub.*--model emoji-lcm")


@pytest.mark.parametrize("device", ["warp", "cuda:99", ""])
def test_a_device_that_is_not_there(tiny_lcm, device):
    assert_refused(tiny_lcm, f"device '{device}' is not there.*--device cpu", device=device)


def test_auto_takes_a_device_that_works():
    assert torch.ones(2, device=select_device("auto")).sum().item() == 2
    assert select_device("cpu") == torch.device("cpu")
