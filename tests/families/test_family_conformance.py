"""What every family must do. Being in the folder is what puts one under these tests."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import diffusers
import pytest
import torch
from command_line import succeed
from conftest import tiny_values
from drawn_rollouts import SAMPLES, draw_rollout, ratio_drift
from family_runs import SETTINGS, describe_family_run
from model_helpers import attach_tiny, draw, edit_json, shake_lora
from package_copy import PACKAGE, extend_package
from tiny_pipelines import BUILDERS, SIZES, build_sd

from rlcm_cli.config import parse_config
from rlcm_cli.core.lora_file import DENOISERS
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.families import DENOISER_TITLES, FAMILIES, Family, find_family
from rlcm_cli.learning.log_probs import refresh_log_probs
from rlcm_cli.models.export import describe_call, write_kohya, write_lora
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import ADAPTER, LORA_FILE, load_foreign_lora, lora_parameters
from rlcm_cli.models.lora_binding import adapted_layers
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.models.variant import Variant
from rlcm_cli.samplers import SAMPLERS
from rlcm_cli.store.checkpoint import digest_safetensors

UNCLIPPED = {"clip_sample": False}
"""What diffusers' DDIM has to be told; other schedulers do not know it."""

CASES = [
    pytest.param((kind, name), id=f"{kind} {name}", marks=[pytest.mark.slow] if number else [])
    for kind in FAMILIES
    for number, name in enumerate(BUILDERS.get(kind, {"without a builder": None}))
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
    """(height, width) in pixels."""

    @property
    def absent(self) -> dict[str, None]:
        """What diffusers has to be told that the pipeline is without."""
        index: Mapping[str, object] = diffusers.DiffusionPipeline.load_config(self.folder)
        return {part: None for part, stated in index.items() if stated == [None, None]}

    def __call__(self, dtype: str = "float32", sampler: str | None = None) -> LatentModel:
        with quiet_libraries():
            return load_model(
                str(self.folder),
                revision=None,
                dtype=dtype,
                device="cpu",
                sampler=sampler,
                variant=Variant(self.size),
            )


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


@pytest.fixture(scope="module")
def plain(case):
    """The pipeline as diffusers itself loads it."""
    _, tiny = case
    with quiet_libraries():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tiny.folder, **tiny.absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ways(case):
    """The model as each sampler draws it that it can be drawn with, its own first."""
    _, tiny = case
    own = tiny()
    found = {own.sampler.kind: own}
    for kind in SAMPLERS:
        with contextlib.suppress(ModelError, ConfigError):
            other = tiny(sampler=kind)
            build_schedule(other, other.sampler.drawing_settings(), 2)
            found.setdefault(kind, other)
    return found


@contextlib.contextmanager
def recorded_latents(pipeline):
    """What the autoencoder of a pipeline decodes within the block."""
    decoded, own = [], pipeline.vae.decode

    def decode(latents, *arguments, **settings):
        decoded.append(latents.detach().clone())
        return own(latents, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.vae, "decode", decode)
        yield decoded


def compare_with_diffusers(model, plain, settings, *, steps, guidance_scale, size=None):
    """Draw with both, from the same noise; the latents agree to float32's rounding, the images but for that."""
    own_size = model.image_size
    model.set_image_size(*(size or own_size))
    call = describe_call(model, settings, steps=steps, guidance_scale=guidance_scale)
    assert call is not None
    arguments = dict(call.arguments)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(PROMPTS)
    with torch.no_grad(), quiet_libraries(), recorded_latents(plain) as expected_latents:
        kind, own = getattr(diffusers, call.scheduler), plain.scheduler
        plain.scheduler = kind.from_config(own.config, **UNCLIPPED, **call.settings)
        expected = plain(
            prompt=[*PROMPTS],  # which a pipeline may change
            generator=[seed_generator(seed) for seed in SEEDS],
            output_type="pt",
            **{"height": model.image_size[0], "width": model.image_size[1], **arguments},
        ).images
        plain.scheduler = own
    with recorded_latents(model.pipeline) as latents:
        images = draw(model, PROMPTS, SEEDS, steps=steps, guidance_scale=guidance_scale, sampler=settings).images
    model.set_image_size(*own_size)
    latents, expected_latents = torch.cat(latents), torch.cat(expected_latents)
    assert (latents - expected_latents).abs().max() <= 1e-5 * expected_latents.abs().max()
    difference = (images.int() - expected.mul(255).round().int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 2e-3
    assert all(image.unique().numel() > 20 for image in images)
    return images


@pytest.mark.parametrize(
    "steps", [1, 2, 4, 8, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (3, 5, 6, 7))]
)
def test_images_are_those_of_the_pipeline_of_diffusers(ways, plain, steps):
    model = next(iter(ways.values()))
    compare_with_diffusers(model, plain, model.sampler.drawing_settings(), steps=steps, guidance_scale=1.0)


def test_so_are_those_of_every_sampler_with_noise_and_without(ways, plain):
    for model in ways.values():
        usual = model.sampler.default_settings()
        without = [usual.model_copy(update={"eta": 0.0})] if hasattr(usual, "eta") else []
        called = [
            settings
            for settings in (usual, *without)
            if describe_call(model, settings, steps=2, guidance_scale=1.0) is not None
        ]
        assert called
        for settings in called:
            compare_with_diffusers(model, plain, settings, steps=2, guidance_scale=1.0)


def test_guided_images_are_those_of_the_pipeline_of_diffusers(ways, plain):
    model = next(iter(ways.values()))
    settings = model.sampler.drawing_settings()
    guided = compare_with_diffusers(model, plain, settings, steps=2, guidance_scale=GUIDANCE)
    if model.count_predictions(GUIDANCE) > 1:
        unguided = draw(model, PROMPTS, SEEDS, steps=2, guidance_scale=1.0, sampler=settings).images
        assert not torch.equal(guided, unguided)


def test_images_of_other_sizes_are_those_of_the_pipeline_of_diffusers(ways, plain):
    model = next(iter(ways.values()))
    height, width = model.image_size
    settings = model.sampler.drawing_settings()
    compare_with_diffusers(model, plain, settings, steps=2, guidance_scale=1.0, size=(2 * height, width))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_1_before_the_first_update(case, dtype):
    family, tiny = case
    model = tiny(dtype)
    attach_tiny(model, target_modules=family.lora_targets)
    shake_lora(model)
    sample = {"samples": SAMPLES, "guidance_scale": 3.0, "shards": 1}
    config = parse_config(tiny_values(tiny.folder, sample=sample, sampler={"kind": model.sampler.kind}))
    rollout = draw_rollout([model], config)
    if dtype != "float32":
        # 16 bits round otherwise in another batch: training takes the old log-probabilities itself, here in the same.
        rollout, _ = refresh_log_probs(model, rollout, 4)
        assert ratio_drift(model, rollout, config, 4, order=torch.arange(SAMPLES)) <= 1e-4
        return
    assert ratio_drift(model, rollout, config, 5) <= 4e-6
    # It could fail: other factors are another policy.
    schedule = replace(rollout.schedule, output_coef=1.01 * rollout.schedule.output_coef)
    assert ratio_drift(model, replace(rollout, schedule=schedule), config) > 1e-5


def test_a_run_is_stopped_resumed_and_exported(case, tmp_path, capsys):
    """Its bytes are those of one that was not stopped, and plain diffusers draws its images with the export."""
    family, tiny = case
    model = tiny()
    options = describe_family_run(tmp_path, tiny.folder, model)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run, iterations in ((whole, 2), (stopped, 1), (stopped, 2)):
        given = options if not run.exists() else []
        succeed(capsys, "loop", *given, "--run", run, "--iterations", iterations, "-q")
    for name in (LORA_FILE, "optimizer.safetensors"):
        one, other = (root / "checkpoints" / "000002" / name for root in (whole, stopped))
        assert digest_safetensors(one) == digest_safetensors(other), name
    attach_tiny(model, target_modules=family.lora_targets)
    layers = [name for name, _ in adapted_layers(model.denoiser, ADAPTER)]
    for form in ("diffusers", *["kohya"] * bool(family.names.stack(layers))):
        out = tmp_path / form
        # It compares the images of plain diffusers with the checkpoint's own.
        succeed(capsys, "export", whole, "--format", form, "--out", out, "--device", "cpu", "-q")
        assert list(out.glob("*.safetensors"))


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
    settings.write_text(SETTINGS.replace("KIND", "ddim"))
    trained = tmp_path / "run"
    run("-m", "rlcm_cli", "loop", "--config", settings, "--model", folder, "--run", trained, "-q")
    assert (trained / "checkpoints" / "000001").is_dir()
    out = tmp_path / "out"
    run("-m", "rlcm_cli", "generate", "--lora", trained, "--prompt", "cat", "--out", out, "--device", "cpu", "-q")
    assert len(list(out.glob("0*.png"))) == 1
    found = "import json; from rlcm_cli.families import find_family; from pathlib import Path; "
    asked = f"print(find_family('it', json.loads(Path({str(folder / 'model_index.json')!r}).read_text())).kind)"
    assert run("-c", found + asked).strip() == "marked"
