"""Text encoders are in memory only while prompts are encoded, and nothing that is computed depends on it."""

import gc
import weakref

import pytest
import torch
from lora_files import ATTENTION, TEXT, make_modules, save_diffusers
from model_helpers import attach_tiny, shake_lora
from phase_runs import finish, make_config
from tiny_pipelines import BUILDERS, build_sd, build_sdxl

from rlcm_cli.models import latent_model, loading
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import load_foreign_lora, save_lora
from rlcm_cli.models.text_encoders import encoders_of
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import load_policy_model, start_run

MAKES = [(family, name) for family, makes in BUILDERS.items() for name in makes]


def load(folder, prompts=None, **settings):
    return load_model(str(folder), revision=None, dtype="float32", device="cpu", prompts=prompts, **settings)


def is_absent(model):
    return all(
        parameter.is_meta
        for part in encoders_of(model.pipeline, model.family)
        for parameter in getattr(model.pipeline, part).parameters()
    )


@pytest.fixture
def reads(monkeypatch):
    """Names of the components whose weights are loaded, in order."""
    names = []

    def load_module(folder, part, kind, dtype, own=loading.load_module):
        names.append(part)
        return own(folder, part, kind, dtype)

    monkeypatch.setattr(loading, "load_module", load_module)
    return names


@pytest.mark.parametrize(("family", "name"), MAKES)
def test_nothing_depends_on_whether_they_stay(family, name, tmp_path):
    folder = BUILDERS[family][name](tmp_path / name)
    whole, freed = load(folder), load(folder, ["a cat", "a dog"])
    assert freed.digest == whole.digest
    assert is_absent(freed)
    assert not is_absent(whole)
    for prompts in (["a cat", "a dog"], ["a dog", "of another prompt"]):  # the last is none of those that are known
        mine, theirs = (model.encode_prompts(prompts) for model in (freed, whole))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert is_absent(freed)


def test_they_are_loaded_first_and_once(tmp_path, reads):
    model = load(build_sdxl(tmp_path / "sdxl"), ["a cat", "a dog"])
    assert reads == ["text_encoder", "text_encoder_2", "unet", "vae"]
    model.encode_prompts(["a dog", "a cat", "a dog"])
    assert len(reads) == 4
    model.read_prompts(["a bee", "a cat", "an owl"])
    assert reads[4:] == ["text_encoder", "text_encoder_2"]


@pytest.mark.parametrize(
    ("prompts", "there"),
    [
        (["a cat"], {"text_encoder": 0, "text_encoder_2": 1, "unet": 0, "vae": 1}),
        ([], {"text_encoder": 0, "text_encoder_2": 0, "unet": 0, "vae": 1}),
        (None, {"text_encoder": 0, "text_encoder_2": 1, "unet": 2, "vae": 3}),
    ],
)
def test_components_are_in_memory_only_together_where_they_must(tmp_path, monkeypatch, prompts, there):
    alive = weakref.WeakSet()
    found = {}

    def load_module(folder, part, kind, dtype, own=loading.load_module):
        gc.collect()
        found[part] = len(alive)
        module = own(folder, part, kind, dtype)
        alive.add(module)
        return module

    monkeypatch.setattr(loading, "load_module", load_module)
    load(build_sdxl(tmp_path / "sdxl"), prompts)
    assert found == there


def test_training_has_no_use_for_them(tiny_lcm, tmp_path, monkeypatch):
    config = make_config(tiny_lcm)
    run, model = start_run(tmp_path / "run", config)
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    trainer = load_policy_model(config, [])
    monkeypatch.setattr(type(trainer), "read_prompts", None)
    finish(train(run, trainer))
    assert is_absent(trainer)
    assert run.layout.checkpoints() == [0, 1]


def test_a_run_encodes_its_prompts_at_the_start(tiny_lcm, tmp_path, reads):
    run, model = start_run(tmp_path / "run", make_config(tiny_lcm))
    assert is_absent(model)
    model.encode_prompts(run.all_prompts())
    assert reads.count("text_encoder") == 1


def test_a_run_with_captions_keeps_them(tiny_lcm):
    config = make_config(tiny_lcm)
    captions = config.model_copy(update={"pretraining": config.pretraining.model_copy(update={"source": "photos"})})
    assert not is_absent(load_policy_model(captions, ["a cat"]))


def test_more_prompts_than_there_is_room_for_are_encoded_for_each_plan(tiny_lcm, reads, monkeypatch):
    one = sum(row.nbytes for row in load(tiny_lcm).encode_prompts(["a cat"]).values())
    monkeypatch.setattr(latent_model, "KEPT_BYTES", 3 * one)
    prompts = ["a cat", "a dog", "a bee", "an owl"]
    reads.clear()
    model = load(tiny_lcm, prompts)
    assert reads.count("text_encoder") == 1
    model.read_prompts(prompts[:2])  # only the first was encoded
    assert reads.count("text_encoder") == 2
    # Those of a plan are kept, all of them; the oldest of others go.
    model.read_prompts(prompts)
    model.encode_prompts(prompts)
    assert reads.count("text_encoder") == 3
    model.read_prompts(["a fox"])
    model.encode_prompts(["a fox", "an owl"])
    assert reads.count("text_encoder") == 4
    model.encode_prompts(["a cat"])
    assert reads.count("text_encoder") == 5


def save_lora_of_encoder(folder, file):
    """A LoRA with layers for the text encoder too."""
    modules = make_modules(load(folder).pipeline, ends=(*ATTENTION, *TEXT), parts=["unet", "text_encoder"])
    return str(save_diffusers(modules, file))


def test_a_lora_with_layers_of_theirs_brings_them_back(tiny_lcm, tmp_path):
    lora = save_lora_of_encoder(tiny_lcm, tmp_path / "lora.safetensors")
    whole, freed = load(tiny_lcm), load(tiny_lcm, ["a cat"])
    before = whole.encode_prompts(["a cat"])["prompt_embeds"]
    for model in (whole, freed):
        load_foreign_lora(model, lora, 1.0)
    mine, theirs = (model.encode_prompts(["a cat"])["prompt_embeds"] for model in (freed, whole))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, before)
    assert not is_absent(freed)


def test_what_is_fused_into_them_is_not_lost(tmp_path):
    """They stay where a distilled LoRA has changed them, although prompts were given."""
    folder = build_sd(tmp_path / "sd")
    lora = save_lora_of_encoder(folder, tmp_path / "lora.safetensors")
    whole, freed = (load(folder, prompts, distilled_lora=lora) for prompts in (None, ["a cat"]))
    assert not is_absent(freed)
    assert whole.digest == freed.digest
    assert torch.equal(*(model.encode_prompts(["a cat"])["prompt_embeds"] for model in (whole, freed)))


def test_a_lora_of_the_denoiser_leaves_them_away(tiny_lcm, tmp_path):
    model = load(tiny_lcm, ["a cat"])
    attach_tiny(model)
    shake_lora(model)
    save_lora(model, tmp_path)
    freed = load(tiny_lcm, ["a cat"])
    load_foreign_lora(freed, str(tmp_path), 1.0)
    assert is_absent(freed)
