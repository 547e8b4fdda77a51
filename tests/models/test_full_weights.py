"""The U-Net's own weights as what is trained: attached, saved, loaded, and put back."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from model_helpers import attach_tiny, draw, load_tiny
from safetensors.torch import load_file

from rlcm_cli.errors import ModelError
from rlcm_cli.models.full import attach_full, base_denoiser, denoiser_parameters, load_denoiser, save_denoiser
from rlcm_cli.models.weights import exchanged_weights
from rlcm_cli.store.checkpoint import DENOISER_FILES, digest_safetensors

UNET_FILE = DENOISER_FILES[0]

PROMPTS, SEEDS = ["cat", "dog"], [3, 4]
HOST = torch.device("cpu")


@pytest.fixture
def model(tiny_lcm):
    model = load_tiny(tiny_lcm)
    attach_full(model, keep_base_on=HOST)
    return model


def shake(model, seed=1):
    """Stand in for some updates."""
    generator = torch.Generator().manual_seed(seed)
    model.adapter_digest = None
    with torch.no_grad():
        for parameter in denoiser_parameters(model).values():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


def test_all_of_the_u_net_and_nothing_else_trains(model):
    assert all(parameter.requires_grad for parameter in model.denoiser.parameters())
    assert denoiser_parameters(model).keys() == model.denoiser.state_dict().keys()
    others = (model.pipeline.vae, model.pipeline.text_encoder)
    assert not any(parameter.requires_grad for other in others for parameter in other.parameters())


def test_attaching_changes_nothing_and_says_that_the_base_is_there(model, tiny_lcm):
    base = load_tiny(tiny_lcm)
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, draw(base, PROMPTS, SEEDS).images)
    assert model.adapter_digest == model.digest == base.digest


def test_what_is_saved_is_a_u_net_of_diffusers(model, tmp_path):
    shake(model)
    save_denoiser(model, tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert all(torch.equal(loaded.state_dict()[name], p) for name, p in denoiser_parameters(model).items())
    assert {file.name for file in (tmp_path / "unet").iterdir()} == {"config.json", UNET_FILE.split("/")[1]}


def test_what_is_saved_does_not_say_where_the_base_came_from(model, tiny_lcm, tmp_path):
    save_denoiser(model, tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert str(tiny_lcm) not in json.dumps(config)
    assert config["_class_name"] == "UNet2DConditionModel"


def test_weights_survive_saving_and_loading(model, tiny_lcm, tmp_path):
    shake(model)
    save_denoiser(model, tmp_path)
    images = draw(model, PROMPTS, SEEDS).images
    digest = digest_safetensors(tmp_path / UNET_FILE)
    other = load_tiny(tiny_lcm)  # also without anything attached, as for drawing
    load_denoiser(other, load_file(tmp_path / UNET_FILE), digest)
    assert other.adapter_digest == digest
    assert torch.equal(draw(other, PROMPTS, SEEDS).images, images)


def test_the_base_is_put_back_by_its_digest_and_by_attaching_anew(model, tiny_lcm):
    base = draw(load_tiny(tiny_lcm), PROMPTS, SEEDS).images
    for put_back in (
        lambda: load_denoiser(model, {}, model.digest),
        lambda: attach_full(model, keep_base_on=HOST),
    ):
        shake(model)
        assert not torch.equal(draw(model, PROMPTS, SEEDS).images, base)
        put_back()
        assert model.adapter_digest == model.digest
        assert torch.equal(draw(model, PROMPTS, SEEDS).images, base)


def test_another_u_net_is_refused_and_nothing_is_loaded(model):
    before = {name: p.detach().clone() for name, p in denoiser_parameters(model).items()}
    tensors = dict(before)
    name, tensor = tensors.popitem()
    for wrong in (tensors, {**tensors, name: tensor[None]}, {**before, "odd": tensor}):
        with pytest.raises(ModelError, match=r"the U-Net is another than the model's \(at ") as caught:
            load_denoiser(model, wrong, "digest")
        assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], p) for name, p in denoiser_parameters(model).items())


def test_the_base_is_there_within_the_block_alone(model, tiny_lcm):
    base = draw(load_tiny(tiny_lcm), PROMPTS, SEEDS).images
    shake(model)
    shaken, parameters = draw(model, PROMPTS, SEEDS).images, dict(model.denoiser.named_parameters())
    with base_denoiser(model):
        assert torch.equal(draw(model, PROMPTS, SEEDS).images, base)
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, shaken)
    with pytest.raises(ZeroDivisionError), base_denoiser(model):
        raise ZeroDivisionError
    assert torch.equal(draw(model, PROMPTS, SEEDS).images, shaken)
    assert all(parameters[name] is p for name, p in model.denoiser.named_parameters())  # as the optimizer knows them


def test_the_gradient_of_a_graph_from_before_the_block_is_that_without_it():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    parameters = dict(layer.named_parameters())
    base = {name: torch.randn_like(p) for name, p in parameters.items()}
    x = torch.randn(5, 3, requires_grad=True)

    def gradient(*, exchange):
        layer.zero_grad()
        x.grad = None
        out = layer(x)
        if exchange:
            with exchanged_weights(parameters, base), torch.no_grad():
                other = layer(x)
        else:
            with torch.no_grad():
                other = torch.func.functional_call(layer, base, x)
        (out - other).square().sum().backward()
        return [x.grad.clone(), *(p.grad.clone() for p in parameters.values())]

    pairs = zip(gradient(exchange=True), gradient(exchange=False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_file_s_tensors_bind_to_the_parameters(tiny_lcm, tmp_path, kind):
    model = load_tiny(tiny_lcm)
    attach_tiny(model) if kind == "lora" else attach_full(model, keep_base_on=HOST)
    trained = model.trained
    trained.save(model, tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    bound = trained.bind(model, load_file(file))
    parameters = trained.parameters(model)
    assert bound.keys() == parameters.keys()
    assert all(torch.equal(bound[name], parameters[name]) for name in bound)
    with pytest.raises(ModelError):
        trained.bind(model, {})
