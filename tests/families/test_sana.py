"""SANA and SANA-Sprint: what the conformance suite does not say of them."""

from __future__ import annotations

import json
import logging
import re
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_values
from diffusers import AutoencoderDC, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict
from model_helpers import attach_tiny, draw, edit_json, load_tiny
from phase_runs import finish
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_sd
from tiny_sana import build_gemma_tokenizer, build_sana, build_sana_sprint
from transformers import Gemma2ForCausalLM

from rlcm_cli.config import parse_config
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.events import Warned
from rlcm_cli.families._sana import TOKENS, read_instruction
from rlcm_cli.families.sana import FAMILY as SANA
from rlcm_cli.families.sana_sprint import FAMILY as SPRINT
from rlcm_cli.models.export import describe_call, use_scheduler, write_lora
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import load_foreign_lora
from rlcm_cli.models.parts import recommend
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.models.variant import Variant
from rlcm_cli.phases.sample import sample
from rlcm_cli.pictures.generate import generate_plan
from rlcm_cli.pictures.generate_request import Request, plan_request
from rlcm_cli.processes.worker import Worker
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.samplers.scm import ScmSettings

HUB = "https://huggingface.co/Efficient-Large-Model/"
LONG = "a cat and a dog, " * 200


@pytest.fixture(scope="module")
def sprint(tmp_path_factory):
    return build_sana_sprint(tmp_path_factory.mktemp("models") / "sprint")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_sana(tmp_path_factory.mktemp("models") / "sana")


@pytest.fixture(params=["sprint", "base"])
def folder(request):
    return request.getfixturevalue(request.param)


def load_plainly(folder):
    with quiet_libraries():
        pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# Drawing


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_last_latents_of_sana_sprint_are_the_pipeline_s(sprint, steps):
    """Although it keeps others on the way: those here are what the transformer is fed."""
    model, plain = load_tiny(sprint), load_plainly(sprint)
    model.set_image_size(64, 32)
    call = describe_call(model, model.sampler.drawing_settings(), steps=steps, guidance_scale=4.5)
    use_scheduler(plain, call)
    expected = plain("a dog on blue", generator=seed_generator(3), output_type="latent", **call.arguments).images
    schedule = build_schedule(model, ScmSettings(), steps)
    drawn = draw(model, ["a dog on blue"], [3], steps=steps, guidance_scale=4.5).final_latents
    assert (drawn - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert schedule.actions == steps - 1


def test_a_solver_is_replaced_by_euler_at_its_shift(base, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_tiny(base)
    lines = [record.message for record in caplog.records]
    assert lines == [
        f"{base}: its scheduler, DPMSolverMultistepScheduler, is a multistep solver, whose steps are not those of a "
        "policy; it is drawn by Euler's steps (sampler flow) at the same shift of the noise levels, 3"
    ]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(20)
    schedule = build_schedule(model, model.sampler.drawing_settings(), 20)
    assert schedule.timesteps.tolist() == pytest.approx(scheduler.timesteps.tolist(), rel=1e-6)
    call = describe_call(model, model.sampler.drawing_settings(), steps=20, guidance_scale=4.5)
    assert (call.scheduler, call.settings) == ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})


def test_a_scheduler_of_flow_matching_stays(base, tmp_path, caplog):
    folder = shutil.copytree(base, tmp_path / "copy")
    FlowMatchEulerDiscreteScheduler(shift=6.0).save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with caplog.at_level(logging.WARNING):
        assert load_tiny(folder).pipeline.scheduler.config.shift == 6.0
    assert not caplog.records


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_images_in_16_bits_are_nearly_those_of_float32(folder, dtype):
    images = [
        draw(load_tiny(folder, one), ["a cat"], [1], steps=2, guidance_scale=4.5).images.int()
        for one in ("float32", dtype)
    ]
    assert (images[0] - images[1]).abs().float().mean() < 6


def test_what_overflows_float16_computes_in_other_types(folder):
    model = load_tiny(folder, "float16")
    pipeline = model.pipeline
    assert (pipeline.transformer.dtype, pipeline.text_encoder.dtype, pipeline.vae.dtype) == (
        torch.float16,
        torch.bfloat16,
        torch.float32,
    )
    assert model.encode_prompts(["a cat"])["prompt_embeds"].dtype == torch.float16
    pipeline = load_tiny(folder, "bfloat16").pipeline
    assert pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.bfloat16


def test_pictures_are_encoded_as_the_autoencoder_does(folder):
    model = load_tiny(folder)
    picture = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=seed_generator(0))
    plain = AutoencoderDC.from_pretrained(folder / "vae")
    with torch.no_grad():
        expected = plain.encode(picture.float() / 127.5 - 1).latent * 0.41407
    assert torch.allclose(model.encode_images(picture), expected, atol=1e-5)


def test_the_time_is_scaled_as_the_transformer_wants_it(tmp_path):
    """Published models but for a few have a scale of 1."""
    model = load_tiny(build_sana(tmp_path / "scaled", timestep_scale=0.001))
    told = []
    model.denoiser.register_forward_pre_hook(
        lambda module, arguments, settings: told.append(settings["timestep"]), with_kwargs=True
    )
    draw(model, ["a cat"], [1], steps=3, guidance_scale=1.0)
    times = build_schedule(model, model.sampler.drawing_settings(), 3).timesteps
    assert times[0] == 1000
    assert [float(time) for time in told] == pytest.approx((times / 1000).tolist())


# Prompts


def test_prompts_are_those_of_the_pipeline_without_the_padding(folder):
    model, plain = load_tiny(folder), load_plainly(folder)
    instruction = read_instruction(type(plain))
    for prompt in ("a cat", "A Dog on BLUE ", LONG):
        embeds, mask, *negative = plain.encode_prompt(
            prompt, device=torch.device("cpu"), complex_human_instruction=instruction
        )
        rows = model.encode_prompts([prompt])
        length = int(mask.sum())
        assert rows["prompt_embeds"].shape == (1, length, 16)
        assert torch.allclose(rows["prompt_embeds"], embeds[:, :length], atol=1e-6)
        assert rows["prompt_attention_mask"].tolist() == [[1] * length]
        if negative:
            assert torch.allclose(rows["negative_prompt_embeds"][:, :1], negative[0][:, :1], atol=1e-6)
            assert rows["negative_prompt_attention_mask"].tolist() == [[1] + [0] * (length - 1)]
    assert length == TOKENS


def test_a_prediction_does_not_depend_on_the_longest_prompt_beside_it(folder):
    model = load_tiny(folder)
    conditioning = model.encode_prompts(["a cat", "a very red car and a dog on blue"])
    latents = torch.randn(2, *model.latent_shape, generator=seed_generator(0))
    times = torch.tensor([0.9, 0.4])
    both = model.predict(latents, times, conditioning, 4.0)
    alone = model.predict(latents[:1], times[:1], model.encode_prompts(["a cat"]), 4.0)
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_prompts_that_are_cut_are_counted(folder):
    model = load_tiny(folder)
    tokens = len(model.pipeline.tokenizer.encode("a cat and a dog, ")) - 1
    fits = "a cat and a dog, " * ((TOKENS - 2) // tokens)
    assert model.count_cut_prompts(["a cat", fits.strip(), LONG]) == (1, TOKENS - 2)
    # What is not counted as cut is read to its end.
    whole, cut = (int(model.encode_prompts([text])["prompt_attention_mask"].sum()) for text in (fits, LONG))
    assert whole < cut == TOKENS


# Recommended settings


def test_makers_recommendations_are_known(sprint, base, tmp_path):
    small = shutil.copytree(sprint, tmp_path / "small")
    edit_json(small / "transformer" / "config.json", num_layers=28)
    assert recommend(str(small), revision=None) == Recommendation(
        "scm", 2, 4.5, source=f"{HUB}Sana_Sprint_0.6B_1024px_diffusers"
    )
    assert recommend(str(sprint), revision=None).source == f"{HUB}Sana_Sprint_1.6B_1024px_diffusers"
    plain = recommend(str(base), revision=None)
    noise = {"sampler.noise": "flow-sde", "sampler.eta": 0.7}
    assert plain == Recommendation("flow", 20, 4.5, training=noise, source=f"{HUB}Sana_1600M_1024px_BF16_diffusers")
    assert recommend(str(base), revision=None, distilled_lora="me/mine").guidance_scale == 1.0


def test_images_have_the_size_of_the_training(sprint, tmp_path):
    assert load_tiny(sprint).image_size == (32, 32)
    assert load_tiny(build_sana_sprint(tmp_path / "larger", sample_size=12)).image_size == (96, 96)


# What is refused


@pytest.mark.parametrize("size", [(16, 32), (32, 40), (48, 48)])
def test_a_size_between_the_patches(folder, size):
    with pytest.raises(
        ModelError, match=r"^images of [\dx ]+ pixels: this model's are multiples of 32 pixels; choose"
    ):
        load_model(str(folder), revision=None, dtype="float32", device="cpu", variant=Variant(size))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sprint", {"sampler": "flow"}, "is a SANA-Sprint, .* the sampler 'flow'; use --sampler scm, or leave"),
        ("sprint", {"distilled_lora": "me/mine"}, "is distilled to a few steps already; leave the distilled LoRA"),
        (
            "base",
            {"sampler": "scm"},
            "is a model of flow matching, which .* 'scm' cannot draw; use --sampler flow",
        ),
    ],
)
def test_what_it_cannot_be_drawn_with(request, name, settings, words):
    folder = request.getfixturevalue(name)
    with pytest.raises(ModelError, match=re.escape(f"{folder}: ") + words):
        load_model(str(folder), revision=None, dtype="float32", device="cpu", **settings)


def test_a_lora_of_another_family(folder, tmp_path):
    other = load_tiny(build_sd(tmp_path / "sd"))
    attach_tiny(other)
    file = write_lora(other, tmp_path, torch.float32)
    with pytest.raises(ModelError, match=r"holds no LoRA layer for the transformer \(its keys should begin"):
        load_foreign_lora(load_tiny(folder), str(file), 1.0)


def test_pipelines_and_transformers_that_do_not_belong_together(sprint, base, tmp_path):
    for source, kind, words in (
        (sprint, "SanaPipeline", r"has the transformer of a SANA-Sprint \(guidance_embeds\), and is called SanaPipe"),
        (base, "SanaSprintPipeline", r"is called a SANA-Sprint, but its transformer has no guidance embedding"),
    ):
        folder = shutil.copytree(source, tmp_path / kind)
        edit_json(folder / "model_index.json", _class_name=kind)
        with pytest.raises(ModelError, match=words):
            load_tiny(folder)


@pytest.mark.parametrize("changes", [{"prediction_type": "epsilon"}, {"sigma_data": 0}, {"sigma_data": "much"}])
def test_a_scheduler_that_is_not_sana_sprint_s(sprint, tmp_path, changes):
    folder = shutil.copytree(sprint, tmp_path / "copy")
    edit_json(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ModelError, match=r"is not one of continuous-time consistency .* belongs to the model"):
        load_tiny(folder)


def test_a_scheduler_that_is_not_of_flow_matching(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "copy")
    edit_json(folder / "scheduler" / "scheduler_config.json", use_flow_sigmas=False)
    with pytest.raises(ModelError, match="DPMSolverMultistepScheduler, is not one of flow matching"):
        load_tiny(folder)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("text_encoder", {"hidden_size": 24}, "gives vectors of 24 numbers, and its transformer takes 16"),
        ("text_encoder", {"vocab_size": 5}, r"its tokenizer has [\d,]+ tokens, and its text encoder knows 5;"),
        ("vae", {"latent_channels": 8}, "its vae makes latents of 8 channels, and its transformer takes 4"),
        ("transformer", {"out_channels": 8}, "its transformer takes 4 channels and gives 8"),
        ("transformer", {"sample_size": 0}, "sample_size of its transformer is 0, not a number of latents"),
    ],
)
def test_components_that_do_not_fit(folder, file, changes, words):
    parts = dict(load_tiny(folder).pipeline.components)
    config = parts[file].config
    if file == "text_encoder":
        changed = type(config)(**{**config.to_dict(), **changes})
    else:
        changed = FrozenDict({**config, **changes})
    with pytest.raises(ModelError, match=f"^it: .*{words}"):
        SANA.loading.check_fit("it", {**parts, file: SimpleNamespace(config=changed)})


def test_a_text_encoder_with_a_head_and_a_tokenizer_that_cannot_pad(sprint, tmp_path):
    parts = dict(load_tiny(sprint).pipeline.components)
    with pytest.raises(ModelError, match=r"its text encoder, Gemma2ForCausalLM, gives tokens .* \(Gemma2Model in"):
        SPRINT.loading.check_fit("it", {**parts, "text_encoder": Gemma2ForCausalLM(parts["text_encoder"].config)})
    folder = shutil.copytree(sprint, tmp_path / "copy")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", pad_token=None)
    with pytest.raises(ModelError, match="its tokenizer has no pad_token"):
        load_tiny(folder)


def test_no_other_tool_has_a_name_for_it(folder):
    model = load_tiny(folder)
    assert model.family.names.describe(model.pipeline) is None
    assert model.family.names.stack(["transformer_blocks.0.attn1.to_q"]) == {}


# Folders as the hub has them


def draw_one(folder):
    return draw(load_tiny(folder), ["a cat"], [1], steps=2).images


def shard(folder):
    """Split the text encoder's weights in two files with an index, under the names of a model with a head."""
    part = folder / "text_encoder"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(part / "model.safetensors").items()}
    (part / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (name > names[9])}-of-00002.safetensors" for name in names}
    for file in {*files.values()}:
        save_file({name: tensors[name] for name in names if files[name] == file}, part / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))


def name_fast_tokenizer(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "GemmaTokenizer"]
    edit_json(folder / "model_index.json", tokenizer=["transformers", "GemmaTokenizerFast"])


def save_as_variant(folder, variant):
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors")))


@pytest.mark.parametrize(
    "change", [shard, name_fast_tokenizer, partial(save_as_variant, variant="bf16")], ids=["shards", "fast", "bf16"]
)
def test_it_is_loaded_as_others_have_written_it(sprint, tmp_path, change, caplog):
    folder = shutil.copytree(sprint, tmp_path / "copy")
    change(folder)
    assert torch.equal(draw_one(folder), draw_one(sprint))
    assert all("as the bf16 variant only" in record.message for record in caplog.records)


def test_the_tokenizer_of_the_tests_is_like_gemma_s():
    tokenizer = build_gemma_tokenizer()
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert tokenizer.padding_side == "left"
    assert tokenizer.encode("a cat")[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer.encode("ein Hund, 猫")[1:]) == "ein Hund, 猫"


def test_a_window_of_sana_sprint_is_drawn_but_not_by_diffusers(sprint):
    model = load_tiny(sprint)
    assert describe_call(model, ScmSettings(window=(0,)), steps=4, guidance_scale=4.5) is None
    with pytest.raises(ConfigError, match=r"sampler.angles are \[1.5, 1.2\], and sample.steps is 4"):
        build_schedule(model, ScmSettings(angles=(1.5, 1.2)), 4)


# Few steps


def list_warnings(events):
    return [event.message for event in finish(events) if isinstance(event, Warned)]


@pytest.mark.parametrize(("name", "steps", "told"), [("base", 2, True), ("base", 5, False), ("sprint", 2, False)])
def test_a_base_model_that_is_asked_for_few_steps_is_told(request, tmp_path, name, steps, told):
    folder = request.getfixturevalue(name)
    kind = "flow" if name == "base" else "scm"
    said = rf" is made for 20 steps of the sampler flow, and {steps} give blurred images; use --steps 20, or a model"
    config = parse_config(tiny_values(folder, sample={"steps": steps}, sampler={"kind": kind}))
    run, model = create_run(tmp_path / "run", config), load_policy_model(config)
    found = [message for number in (0, 1) for message in list_warnings(sample(run, model, Worker(number, 2)))]
    assert [bool(re.search(said, message)) for message in found] == [True] * told
    plan = plan_request(Request(["a cat"], steps=[steps], model={"name": str(folder)}))
    found = list_warnings(generate_plan(plan, "cpu", tmp_path / "pictures"))
    assert [bool(re.search(said, message)) for message in found] == [True] * told
