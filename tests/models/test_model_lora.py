import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.utils import convert_state_dict_to_kohya
from model_helpers import GUIDANCE, MODULES, attach_tiny, draw, draw_with_diffusers, load_tiny, shake_lora
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ModelError
from rlcm_cli.learning.optimizer import optimizer_tensors, restore_optimizer
from rlcm_cli.models.lora import (
    LORA,
    attach_lora,
    base_model,
    load_foreign_lora,
    load_lora,
    lora_parameters,
    save_lora,
)
from rlcm_cli.pictures.drawing import find_lora, load_drawing_model, plan_drawing
from rlcm_cli.pictures.generate import generate
from rlcm_cli.store.adapters import read_adapter_settings
from rlcm_cli.store.checkpoint import LORA_FILE, digest_safetensors

PROMPTS, SEEDS = ["cat", "dog"], [3, 4]


@pytest.fixture(scope="module")
def trained(tiny_lcm):
    """A model with an adapter of alpha 4 × its rank that visibly acts."""
    model = load_tiny(tiny_lcm)
    attach_tiny(model)
    shake_lora(model)
    return model


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "000001"
    save_lora(trained, folder)
    return folder


@pytest.fixture
def model(tiny_lcm):
    """A model without adapter."""
    return load_tiny(tiny_lcm)


@pytest.fixture(scope="module")
def base_images(tiny_lcm):
    return draw(load_tiny(tiny_lcm), PROMPTS, SEEDS).images


def without_metadata(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    save_file(load_file(checkpoint / LORA_FILE), folder / LORA_FILE)
    return folder


# Attaching


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(model, base_images):
    attach_tiny(model)
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, base_images)
    parameters = lora_parameters(model)
    assert parameters
    for name, parameter in parameters.items():
        assert ("lora_A" in name) != ("lora_B" in name)
        assert bool(parameter.any()) == ("lora_A" in name)
        assert parameter.dtype == torch.float32
    modules = {name.partition(".lora_")[0] for name in parameters}
    assert modules == {name for name, _ in model.denoiser.named_modules() if name.endswith(MODULES)}


def test_the_adapter_of_half_precision_weights_is_float32(tiny_lcm):
    half = load_tiny(tiny_lcm, "bfloat16")
    attach_tiny(half)
    assert {parameter.dtype for parameter in lora_parameters(half).values()} == {torch.float32}
    assert {p.dtype for p in half.denoiser.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_an_adapter_depends_on_the_run_seed_alone(model):
    def first_weights(run_seed):
        torch.rand(7)
        attach_tiny(model, run_seed=run_seed)
        return torch.cat([parameter.detach().flatten() for parameter in lora_parameters(model).values()])

    assert torch.equal(first_weights(0), first_weights(0))
    assert not torch.equal(first_weights(0), first_weights(1))


def test_attaching_leaves_the_global_generator_alone(model):
    torch.manual_seed(derive_seed(0, "test") % 2**32)
    state = torch.get_rng_state()
    attach_tiny(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_module_is_one_clear_line(model):
    with pytest.raises(ModelError, match=r"lora\.target_modules \['to_qq'\]: no such module") as caught:
        attach_tiny(model, target_modules=("to_qq",))
    assert "\n" not in str(caught.value)


# Saving and loading


def test_a_saved_adapter_states_rank_alpha_and_modules(checkpoint):
    settings = read_adapter_settings(checkpoint / LORA_FILE)
    assert (settings.rank, settings.alpha, settings.target_modules) == (2, 8, tuple(sorted(MODULES)))


def test_an_adapter_survives_saving_and_loading(model, trained, checkpoint, tmp_path):
    attach_tiny(model, run_seed=9)
    digest = digest_safetensors(checkpoint / LORA_FILE)
    load_lora(model, load_file(checkpoint / LORA_FILE), digest)
    assert model.adapter_digest == digest
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, draw(trained, PROMPTS, SEEDS).images)
    save_lora(model, tmp_path)
    assert digest_safetensors(tmp_path / LORA_FILE) == digest


def test_an_adapter_that_is_there_is_not_loaded_again(model, checkpoint):
    attach_tiny(model)
    load_lora(model, load_file(checkpoint / LORA_FILE), "digest")
    load_lora(model, {}, "digest")
    attach_tiny(model)
    assert model.adapter_digest is None


@pytest.mark.parametrize(
    "settings", [{"rank": 3}, {"target_modules": ("to_q", "to_k", "to_v")}, {"target_modules": (*MODULES, "proj_in")}]
)
def test_an_adapter_of_another_shape_is_refused_and_nothing_is_loaded(model, checkpoint, settings):
    attach_tiny(model, **settings)
    before = {name: parameter.detach().clone() for name, parameter in lora_parameters(model).items()}
    with pytest.raises(ModelError, match=r"does not fit the adapter .*rank.*target_modules"):
        load_lora(model, load_file(checkpoint / LORA_FILE), "digest")
    assert model.adapter_digest is None
    assert all(torch.equal(before[name], parameter) for name, parameter in lora_parameters(model).items())


def test_base_model_switches_the_adapter_off_and_on_again(trained, base_images):
    adapted = draw(trained, PROMPTS, SEEDS).images
    assert not torch.equal(adapted, base_images)
    with base_model(trained):
        assert torch.equal(draw(trained, PROMPTS, SEEDS).images, base_images)
    assert torch.equal(draw(trained, PROMPTS, SEEDS).images, adapted)
    with pytest.raises(ZeroDivisionError), base_model(trained):
        raise ZeroDivisionError
    assert torch.equal(draw(trained, PROMPTS, SEEDS).images, adapted)
    assert lora_parameters(trained)


def test_the_metadata_are_in_an_order_that_no_process_chooses(checkpoint):
    """Sets of strings have another order in each process: the file, and so its digest, must not show it."""
    with safe_open(checkpoint / LORA_FILE, "pt") as file:
        [text] = [value for key, value in file.metadata().items() if key.endswith("metadata")]
    values = json.loads(text)
    assert list(values) == sorted(values)
    lists = [value for value in values.values() if isinstance(value, list)]
    assert any(len(value) > 1 for value in lists)
    assert all(value == sorted(value) for value in lists)


# Drawing with diffusers and with `rlcm generate`


@pytest.fixture
def generated(tiny_lcm, checkpoint, tmp_path):
    """What `rlcm generate` draws of each prompt with the checkpoint at a scale."""

    def run(scale: float = 1.0) -> torch.Tensor:
        drawing = plan_drawing(
            PROMPTS,
            count=1,
            seed=SEEDS[0],
            adapter=find_lora(str(checkpoint), scale),
            model={"name": str(tiny_lcm)},
            sample={"steps": 4, "guidance_scale": GUIDANCE},
            sampler={},
        )
        list(generate(drawing, load_drawing_model(drawing, "cpu"), tmp_path / "images"))
        files = sorted((tmp_path / "images").glob("0*.png"))
        return torch.from_numpy(np.stack([np.array(Image.open(file)) for file in files])).permute(0, 3, 1, 2)

    return run


@pytest.fixture
def plain_pipeline(tiny_lcm):
    pipeline = LatentConsistencyModelPipeline.from_pretrained(tiny_lcm)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_plain_diffusers_reproduces_the_images_of_generate(generated, plain_pipeline, checkpoint, trained):
    images = generated()
    plain_pipeline.load_lora_weights(checkpoint)
    assert torch.equal(images, draw_with_diffusers(plain_pipeline, PROMPTS, SEEDS))
    assert torch.equal(images, draw(trained, PROMPTS, SEEDS).images), "and so does the model in training"


def test_without_the_alpha_metadata_diffusers_would_draw_other_images(
    generated, plain_pipeline, checkpoint, base_images, tmp_path
):
    plain_pipeline.load_lora_weights(without_metadata(checkpoint, tmp_path / "bare"))
    weaker = draw_with_diffusers(plain_pipeline, PROMPTS, SEEDS)
    assert not torch.equal(weaker, base_images)
    assert (weaker.int() - generated().int()).abs().max() > 10


def test_the_scale_of_a_lora_acts_and_0_is_the_base_model(generated, base_images):
    assert torch.equal(generated(0.0), base_images)
    assert not torch.equal(generated(0.5), generated(1.0))
    assert not torch.equal(generated(0.5), base_images)


def test_a_file_is_loaded_by_its_own_name(model, trained, checkpoint, tmp_path):
    other = tmp_path / "my lora.safetensors"
    other.write_bytes((checkpoint / LORA_FILE).read_bytes())
    load_foreign_lora(model, str(other), 1.0)
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, draw(trained, PROMPTS, SEEDS).images)


def test_a_kohya_file_is_loaded_with_its_alpha(model, trained, checkpoint, tmp_path):
    tensors = convert_state_dict_to_kohya(load_file(checkpoint / LORA_FILE))
    tensors = {
        key: torch.tensor(8.0) if key.endswith(".alpha") else value.contiguous() for key, value in tensors.items()
    }
    assert any(key.startswith("lora_unet_") for key in tensors)
    save_file(tensors, tmp_path / "kohya.safetensors")
    load_foreign_lora(model, str(tmp_path / "kohya.safetensors"), 1.0)
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, draw(trained, PROMPTS, SEEDS).images)


def save_without_prefix(folder, trained):
    trained.denoiser.save_lora_adapter(folder, adapter_name="policy")
    return folder


def save_foreign_names(folder, trained):
    folder.mkdir()
    save_file(
        {"unet.nothing.lora_A.weight": torch.ones(2, 16), "unet.nothing.lora_B.weight": torch.ones(16, 2)},
        folder / LORA_FILE,
    )
    return folder


def save_no_lora(folder, trained):
    folder.mkdir()
    save_file({"weight": torch.ones(2)}, folder / LORA_FILE)
    return folder


def save_truncated(folder, trained):
    save_lora(trained, folder)
    data = (folder / LORA_FILE).read_bytes()
    (folder / LORA_FILE).write_bytes(data[: len(data) // 2])
    return folder


@pytest.mark.parametrize("save", [save_without_prefix, save_foreign_names, save_no_lora, save_truncated])
def test_a_lora_that_binds_nothing_is_refused(model, trained, tmp_path, save):
    place = save(tmp_path / "lora", trained)
    with pytest.raises(ModelError) as caught:
        load_foreign_lora(model, str(place / LORA_FILE), 1.0)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["nowhere/lora.safetensors", "nobody/no-such-lora"])
def test_a_lora_that_is_not_there_is_one_clear_line(model, place):
    with pytest.raises(ModelError, match=f"^LoRA '{place}' is not here .*hub id") as caught:
        load_foreign_lora(model, place, 1.0)
    assert "\n" not in str(caught.value)


# The optimizer's state


def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tiny_lcm):
    def start():
        model = load_tiny(tiny_lcm)
        attach_tiny(model)
        return lora_parameters(model), torch.optim.AdamW(lora_parameters(model).values(), lr=1e-2)

    def step(parameters, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    parameters, optimizer = start()
    assert optimizer_tensors(optimizer, parameters) == {}
    step(parameters, optimizer, 0)
    saved = {key: tensor.clone() for key, tensor in optimizer_tensors(optimizer, parameters).items()}
    assert len(saved) == 3 * len(parameters)
    resumed, resumed_optimizer = start()
    with torch.no_grad():
        for name, parameter in resumed.items():
            parameter.copy_(parameters[name])
    restore_optimizer(resumed_optimizer, resumed, saved)
    step(parameters, optimizer, 1)
    step(resumed, resumed_optimizer, 1)
    assert all(torch.equal(resumed[name], parameter) for name, parameter in parameters.items())


def test_without_names_the_modules_are_those_of_the_family(tiny_lcm):
    asked, unasked = load_tiny(tiny_lcm), load_tiny(tiny_lcm)
    narrow = dataclasses.replace(unasked.family, lora_targets=("to_v", "to_k"))
    unasked.family = narrow
    attach_lora(asked, rank=2, alpha=4, target_modules=("to_k", "to_v"), run_seed=7)
    attach_lora(unasked, rank=2, alpha=4, target_modules=None, run_seed=7)
    mine, theirs = lora_parameters(asked), lora_parameters(unasked)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_trained_is_set_by_attaching_it(tiny_lcm):
    model = load_tiny(tiny_lcm)
    with pytest.raises(RuntimeError, match="nothing is attached"):
        _ = model.trained
    attach_lora(model, rank=2, alpha=4, target_modules=None, run_seed=7)
    assert model.trained is LORA
