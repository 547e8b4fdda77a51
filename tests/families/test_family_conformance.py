"""What every family must do. Being in the folder is what puts one under these tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import tiny_values
from drawn_rollouts import SAMPLES, draw_rollout, ratio_drift
from model_helpers import attach_tiny, draw, edit_json, load_tiny, shake_lora
from package_copy import PACKAGE, extend_package
from tiny_pipelines import BUILDERS, SIZES, build_sd

from rlcm_cli.config import parse_config
from rlcm_cli.core.lora_file import DENOISERS
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ModelError
from rlcm_cli.families import DENOISER_TITLES, FAMILIES, Family, find_family
from rlcm_cli.models.export import describe_call, write_kohya, write_lora
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import ADAPTER, load_foreign_lora, lora_parameters
from rlcm_cli.models.lora_binding import adapted_layers

SETTINGS = """
task = "compression"
rewards = { compressibility = 1.0 }
[sampler]
kind = "ddim"
eta = 1.0
[sample]
samples = 2
batch_size = 2
steps = 3
[train]
minibatch_size = 2
[evaluate]
prompts = 1
images_per_prompt = 1
[runtime]
iterations = 1
device = "cpu"
"""
CASES = [
    pytest.param((kind, name), id=f"{kind} {name}")
    for kind in FAMILIES
    for name in BUILDERS.get(kind, {"without a builder": None})
]
PROMPTS, SEEDS, GUIDANCE = ["cat", "a dog on blue"], [5, 7], 4.0


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """The family, and what loads a tiny pipeline of it, whose folder it names."""
    kind, name = request.param
    folder = BUILDERS[kind][name](tmp_path_factory.mktemp("models") / name)
    return FAMILIES[kind], Tiny(folder, SIZES.get(kind))


@dataclass(frozen=True)
class Tiny:
    folder: Path
    size: tuple[int, int] | None

    @property
    def absent(self) -> dict[str, None]:
        """What diffusers has to be told that the pipeline is without."""
        index: Mapping[str, object] = diffusers.DiffusionPipeline.load_config(self.folder)
        return {part: None for part, stated in index.items() if stated == [None, None]}

    def __call__(self) -> LatentModel:
        return load_tiny(self.folder, image_size=self.size)


def test_each_family_has_tiny_pipelines():
    assert BUILDERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_record_is_complete_and_small(kind):
    family = FAMILIES[kind]
    assert family.denoiser in DENOISERS
    assert tuple(DENOISER_TITLES) == DENOISERS
    assert family.denoiser in family.loading.components
    assert {*family.loading.components.values()} <= {"diffusers", "transformers"}
    assert all(hasattr(diffusers, name) for name in family.pipelines)
    assert family.lora_targets
    parts = [Family, *(type(getattr(family, name)) for name in ("loading", "scheduling", "names", "autoencoder"))]
    assert all(len(fields(record)) <= 15 for record in parts)


def test_a_pipeline_is_of_one_family(case):
    family, tiny = case
    model = tiny()
    assert model.family is family
    assert model.denoiser is model.pipeline.components[family.denoiser]
    assert type(model.pipeline).__name__ in family.pipelines
    index: Mapping[str, object] = diffusers.DiffusionPipeline.load_config(tiny.folder)
    assert [one for one in FAMILIES.values() if one.recognise(index)] == [family]
    assert find_family("it", index) is family
    assert model.decode(torch.zeros(1, *model.latent_shape)).shape == (1, 3, *model.image_size)


@pytest.mark.parametrize("guidance_scale", [1.0, GUIDANCE])
def test_images_are_those_of_the_pipeline_of_diffusers(case, guidance_scale):
    _, tiny = case
    model = tiny()
    settings = model.sampler.drawing_settings()
    with torch.no_grad(), quiet_libraries():
        plain = diffusers.DiffusionPipeline.from_pretrained(tiny.folder, **tiny.absent)
        call = describe_call(model, settings, steps=4, guidance_scale=guidance_scale)
        kind = getattr(diffusers, call.scheduler)
        plain.scheduler = kind.from_config(plain.scheduler.config, clip_sample=False, **call.settings)
        plain.set_progress_bar_config(disable=True)
        arguments = dict(call.arguments)
        if tiny.size is not None:
            arguments |= dict(zip(("height", "width"), tiny.size, strict=True))
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(PROMPTS)
        expected = plain(
            prompt=[*PROMPTS],  # which a pipeline may change
            generator=[seed_generator(seed) for seed in SEEDS],
            output_type="pt",
            **arguments,
        ).images
    images = draw(model, PROMPTS, SEEDS, guidance_scale=guidance_scale, sampler=settings).images
    # The latents agree to rounding, which may carry single pixels over a half.
    difference = (images.int() - expected.mul(255).round().int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 2e-3
    assert all(image.unique().numel() > 20 for image in images)


def test_the_ratio_is_1_before_the_first_update(case):
    family, tiny = case
    model = tiny()
    attach_tiny(model, target_modules=family.lora_targets)
    shake_lora(model)
    sample = {"samples": SAMPLES, "guidance_scale": 3.0, "shards": 1}
    config = parse_config(tiny_values(tiny.folder, sample=sample, sampler={"kind": model.sampler.kind}))
    rollout = draw_rollout([model], config)
    assert ratio_drift(model, rollout, config, 5) <= 4e-6
    # It could fail: other factors are another policy.
    schedule = replace(rollout.schedule, output_coef=1.01 * rollout.schedule.output_coef)
    assert ratio_drift(model, replace(rollout, schedule=schedule), config) > 1e-5


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_is_trained_exported_and_loaded_back(case, tmp_path, form):
    family, tiny = case
    model = tiny()
    attach_tiny(model, target_modules=family.lora_targets)
    parameters = lora_parameters(model)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.05)
    for _ in range(2):  # B is zero at first, so that A moves at the second step
        optimizer.zero_grad()
        latents = torch.randn(2, *model.latent_shape, generator=seed_generator(0))
        conditioning = model.encode_prompts(PROMPTS)
        model.predict(latents, torch.tensor([900, 400]), conditioning, GUIDANCE).square().mean().backward()
        optimizer.step()
    moved = {name for name, parameter in parameters.items() if not torch.equal(before[name], parameter)}
    # Some have no effect on an image, such as those of a last block on the text.
    assert all(name in moved or p.grad is None or not p.grad.any() for name, p in parameters.items())
    assert len(moved) > 0.7 * len(parameters)
    untrained = draw(tiny(), PROMPTS, SEEDS).images
    wanted = draw(model, PROMPTS, SEEDS).images
    assert (wanted.int() - untrained.int()).abs().float().mean() > 1

    layers = [name for name, _ in adapted_layers(model.denoiser, ADAPTER)]
    if form == "kohya" and not family.names.stack(layers):
        with pytest.raises(ModelError, match="which kohya's format has no name for"):
            write_kohya(model, tmp_path / "x.safetensors", torch.float32, title="x")
        return
    if form == "kohya":
        file = write_kohya(model, tmp_path / "x.safetensors", torch.float32, title="x")
    else:
        file = write_lora(model, tmp_path, torch.float32)
    other = tiny()
    load_foreign_lora(other, str(file), 1.0)
    difference = (draw(other, PROMPTS, SEEDS).images.int() - wanted.int()).abs()
    assert difference.max() <= 1


def test_a_new_family_is_one_file(tmp_path):
    """Put into a copy of the package, it recognises its pipelines, which are trained and drawn with."""
    text = (PACKAGE / "families" / "stable_diffusion.py").read_text(encoding="utf-8")
    for old, new in (
        ('kind="stable-diffusion"', 'kind="marked"'),
        ('title="Stable Diffusion 1.x', 'title="Marked models, Stable Diffusion 1.x'),
        ("pipelines=PIPELINES", 'pipelines=("MarkedPipeline",)'),
        ("return unet.has_unet(index) and", 'return index.get("_class_name") == "MarkedPipeline" and'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    run = extend_package(tmp_path / "copy", {"families/marked.py": text})

    folder = build_sd(tmp_path / "model")
    edit_json(folder / "model_index.json", _class_name="MarkedPipeline")
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    trained = tmp_path / "run"
    run("-m", "rlcm_cli", "loop", "--config", settings, "--model", folder, "--run", trained, "-q")
    assert (trained / "checkpoints" / "000001").is_dir()
    out = tmp_path / "out"
    run("-m", "rlcm_cli", "generate", "--lora", trained, "--prompt", "cat", "--out", out, "--device", "cpu", "-q")
    assert len(list(out.glob("0*.png"))) == 1
    found = "import json; from rlcm_cli.families import find_family; from pathlib import Path; "
    asked = f"print(find_family('it', json.loads(Path({str(folder / 'model_index.json')!r}).read_text())).kind)"
    assert run("-c", found + asked).strip() == "marked"
