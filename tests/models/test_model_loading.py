import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler
from model_helpers import draw, edit_json, load_tiny
from safetensors.torch import load_file, save_file
from tiny_pipelines import BETAS, build_sd

from rlcm_cli.core.device import select_device
from rlcm_cli.errors import ModelError
from rlcm_cli.models.loading import load_model
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.samplers.lcm import LcmSettings, lcm_schedule

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
WEIGHTS = [UNET, "vae/diffusion_pytorch_model.safetensors", TEXT]
UNET_BIAS = "conv_out.bias"


def assert_refused(name, pattern, **settings):
    with pytest.raises(ModelError, match=pattern) as caught:
        load_model(str(name), **{"revision": None, "dtype": "float32", "device": "cpu", **settings})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(name) in message or "device" in message


def change_weights(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def last(weights):
    return sorted(weights)[-1]


def pickle_weights(folder, file):
    """Replace safetensors by a pickle, as old repositories have it."""
    torch.save(load_file(folder / file), folder / file.replace(".safetensors", ".bin"))
    (folder / file).unlink()


# What loads


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_comes_frozen_in_eval_mode_and_in_its_dtype(tiny_lcm, dtype):
    model = load_tiny(tiny_lcm, dtype)
    for module in (model.denoiser, model.pipeline.vae, model.pipeline.text_encoder):
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


def test_a_scheduler_with_an_infinite_setting_is_digested(tmp_path):
    """Those of DPM-Solver write one, which JSON does not know."""
    folder = build_sd(tmp_path / "sd")
    DPMSolverMultistepScheduler(**BETAS).save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    assert load_tiny(folder).digest == load_tiny(folder).digest


def test_the_schedule_follows_the_configuration_of_the_pipeline(tiny_lcm_copy):
    edit_json(
        tiny_lcm_copy / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        timestep_scaling=5.0,
        beta_end=0.02,
    )
    schedule = drawing_schedule(LcmSettings(spacing="strided"), 4, load_tiny(tiny_lcm_copy))
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear")
    expected = lcm_schedule(
        scheduler.alphas_cumprod, torch.tensor([999, 759, 519, 279]), "v_prediction", timestep_scaling=5.0
    )
    for name, values in vars(expected).items():
        assert torch.equal(*map(torch.as_tensor, (getattr(schedule, name), values))), name


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


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"act_fn": "gelu"}),
        ("unet/config.json", {"sample_size": 16}),
        ("vae/config.json", {"scaling_factor": 0.5}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("text_encoder/config.json", {"layer_norm_eps": 0.1}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 7}),
    ],
)
def test_the_digest_covers_what_configurations_change(tiny_lcm, tiny_lcm_copy, file, changes):
    edit_json(tiny_lcm_copy / file, **changes)
    assert load_tiny(tiny_lcm_copy).digest != load_tiny(tiny_lcm).digest


def test_the_digest_covers_how_words_are_cut(tiny_lcm, tiny_lcm_copy):
    file = tiny_lcm_copy / "tokenizer/tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["merges"].pop()
    file.write_text(json.dumps(values))
    assert load_tiny(tiny_lcm_copy).digest != load_tiny(tiny_lcm).digest


def test_the_digest_does_not_tell_who_wrote_the_files(tiny_lcm, tiny_lcm_copy):
    edit_json(tiny_lcm_copy / "unet/config.json", _diffusers_version="0.20.0", _name_or_path="elsewhere")
    edit_json(tiny_lcm_copy / "text_encoder/config.json", transformers_version="4.30.0", dtype="float16")
    assert load_tiny(tiny_lcm_copy).digest == load_tiny(tiny_lcm).digest


# What is refused


def test_a_folder_that_is_no_pipeline(tmp_path):
    assert_refused(tmp_path, "is not a pipeline of diffusers .no model_index.json.*safetensors weights")


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
def test_a_scheduler_that_follows_no_gaussian(tiny_lcm_copy, setting):
    edit_json(tiny_lcm_copy / "scheduler" / "scheduler_config.json", **{setting: True})
    assert_refused(tiny_lcm_copy, "clips or thresholds")


@pytest.mark.parametrize("file", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_missing_weights(tiny_lcm_copy, file):
    (tiny_lcm_copy / file).unlink()
    assert_refused(tiny_lcm_copy, f"{file.partition('/')[0]} holds no safetensors weights")


@pytest.mark.parametrize("file", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_pickled_weights_are_not_read(tiny_lcm_copy, file):
    pickle_weights(tiny_lcm_copy, file)
    assert_refused(tiny_lcm_copy, "only as a pickle.*convert it to safetensors")


def test_truncated_weights(tiny_lcm_copy):
    data = (tiny_lcm_copy / UNET).read_bytes()
    (tiny_lcm_copy / UNET).write_bytes(data[: len(data) // 2])
    assert_refused(tiny_lcm_copy, f"{UNET} is damaged or not safetensors")


@pytest.mark.parametrize("file", WEIGHTS)
def test_weights_of_another_shape(tiny_lcm_copy, file):
    change_weights(tiny_lcm_copy / file, lambda weights: weights.update({last(weights): torch.zeros(7)}))
    assert_refused(tiny_lcm_copy, f"the weights of its {file.partition('/')[0]} .* in another shape than its config")


@pytest.mark.parametrize("file", WEIGHTS)
def test_weights_that_lack_a_tensor(tiny_lcm_copy, file):
    """transformers draws what is missing at random in each process, and only logs it."""
    change_weights(tiny_lcm_copy / file, lambda weights: weights.pop(last(weights)))
    assert_refused(tiny_lcm_copy, f"the weights of its {file.partition('/')[0]} .* lack ")


@pytest.mark.parametrize("file", WEIGHTS)
def test_weights_that_nothing_uses_are_told(tiny_lcm, tiny_lcm_copy, file, caplog):
    change_weights(tiny_lcm_copy / file, lambda weights: weights.update(more=torch.zeros(3)))
    assert load_tiny(tiny_lcm_copy).digest == load_tiny(tiny_lcm).digest
    (line,) = caplog.messages
    assert re.search(f"{file.partition('/')[0]} hold 1 tensors.*'more'", line)


@pytest.mark.parametrize("name", ["text_model.embeddings.position_ids", "text_projection.weight", "logit_scale"])
def test_tensors_that_a_text_encoder_computes_or_leaves_to_others_are_no_fault(tiny_lcm_copy, name, caplog):
    tensor = torch.arange(8)[None] if name.endswith("ids") else torch.zeros(4)
    change_weights(tiny_lcm_copy / TEXT, lambda weights: weights.update({name: tensor}))
    load_tiny(tiny_lcm_copy)
    assert caplog.messages == []


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_quantised(tiny_lcm_copy, dtype):
    change_weights(tiny_lcm_copy / UNET, lambda weights: weights.update({UNET_BIAS: torch.zeros(4).to(dtype)}))
    assert_refused(tiny_lcm_copy, f"stores {UNET_BIAS} as .*quantised")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"LatentConsistencyModelPipeline"', "[" * 100_000, f'{{"a": {"9" * 5000}}}']
)
def test_a_model_index_that_is_no_json_object(tiny_lcm_copy, text):
    (tiny_lcm_copy / "model_index.json").write_text(text)
    assert_refused(tiny_lcm_copy, "model_index.json is not (readable as JSON|a JSON object)")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("value", [[], "x", ["os", "system"]])
def test_components_that_are_no_class(tiny_lcm_copy, part, value):
    edit_json(tiny_lcm_copy / "model_index.json", **{part: value})
    assert_refused(tiny_lcm_copy, f"{part}|of no family")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"block_out_channels": []}),
        ("unet/config.json", {"block_out_channels": [16, 10**13]}),
        ("unet/config.json", {"layers_per_block": "x"}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"sample_size": [8, 8]}),
        ("unet/config.json", {"sample_size": 0}),
        ("unet/config.json", {"act_fn": "import"}),
        ("unet/config.json", {"cross_attention_dim": 24}),
        ("unet/config.json", {"num_class_embeds": 3}),
        ("unet/config.json", {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        ("vae/config.json", {"latent_channels": 3}),
        ("vae/config.json", {"scaling_factor": 0}),
        ("vae/config.json", {"scaling_factor": "x"}),
        ("vae/config.json", {"latents_mean": [0.0], "latents_std": [1.0]}),
        ("text_encoder/config.json", {"hidden_act": "no-such"}),
        ("text_encoder/config.json", {"num_attention_heads": 0}),
        ("text_encoder/config.json", {"hidden_size": "x"}),
        ("text_encoder/config.json", {"_attn_implementation": "owner/kernel"}),
        ("text_encoder/config.json", {"text_config": {"_attn_implementation": "owner/kernel"}}),
        ("text_encoder/config.json", {"attn_implementation": "owner/kernel"}),
        ("text_encoder/config.json", {"attn_implementation": "no-such"}),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "gptq"}}),
        ("text_encoder/config.json", {"max_position_embeddings": 4}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}),
        ("scheduler/scheduler_config.json", {"beta_start": float("nan")}),
        ("scheduler/scheduler_config.json", {"beta_start": -1.0}),
        ("scheduler/scheduler_config.json", {"beta_end": 10.0}),
        ("scheduler/scheduler_config.json", {"beta_end": "x"}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "no-such"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -5}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}),
        ("scheduler/scheduler_config.json", {"trained_betas": []}),
        ("scheduler/scheduler_config.json", {"trained_betas": "x"}),
    ],
)
def test_configurations_that_make_no_model(tiny_lcm_copy, file, changes):
    edit_json(tiny_lcm_copy / file, **changes)
    assert_refused(tiny_lcm_copy, file.partition("/")[0].replace("_", "."))


@pytest.mark.parametrize("file", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "\xff\xfe"])
def test_configurations_that_are_no_json_object(tiny_lcm_copy, file, text):
    (tiny_lcm_copy / file).write_bytes(text.encode("latin-1"))
    assert_refused(tiny_lcm_copy, f"{file} is not")


@pytest.mark.parametrize("file", ["unet/config.json", UNET, "text_encoder/model.safetensors", "model_index.json"])
def test_files_that_never_end_are_not_opened(tiny_lcm_copy, file):
    (tiny_lcm_copy / file).unlink()
    os.mkfifo(tiny_lcm_copy / file)
    assert_refused(tiny_lcm_copy, f"{Path(file).name} is not a regular file|no model_index")


def test_an_entry_that_the_library_does_not_know_is_told(tiny_lcm_copy, caplog):
    edit_json(tiny_lcm_copy / "unet/config.json", sharpness_of_tomorrow=2)
    load_tiny(tiny_lcm_copy)
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "diffusers ignores sharpness_of_tomorrow in unet/config.json"
    ]


def test_a_component_that_has_no_place_here_is_told(tiny_lcm_copy, caplog):
    edit_json(
        tiny_lcm_copy / "model_index.json", controlnet=["diffusers", "ControlNetModel"], image_encoder=[None, None]
    )
    load_tiny(tiny_lcm_copy)
    assert [line.partition(": ")[2] for line in caplog.messages] == ["its controlnet is not used"]


# Tokenizers


def without_vocabulary(folder):
    (folder / "tokenizer/tokenizer.json").unlink()


def of_unknown_words(folder):
    edit_json(
        folder / "tokenizer/tokenizer.json", model={"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    )


def not_json(folder):
    (folder / "tokenizer/tokenizer.json").write_text("{}")


@pytest.mark.parametrize("breaking", [without_vocabulary, of_unknown_words, not_json])
def test_a_tokenizer_without_its_vocabulary(tiny_lcm_copy, breaking):
    """All prompts would be drawn as the same one."""
    breaking(tiny_lcm_copy)
    assert_refused(tiny_lcm_copy, "its tokenizer cannot be used")


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_knows(tiny_lcm_copy):
    edit_json(tiny_lcm_copy / "text_encoder/config.json", vocab_size=100)
    change_weights(tiny_lcm_copy / TEXT, shrink_embedding)
    assert_refused(tiny_lcm_copy, r"its tokenizer has 750 tokens, and its text encoder knows 100")


def shrink_embedding(weights):
    key = next(key for key in weights if key.endswith("token_embedding.weight"))
    weights[key] = weights[key][:100].contiguous()


# Variants and shards


def name_variant(folder, variant, parts=("unet", "vae", "text_encoder")):
    for part in parts:
        for file in list((folder / part).glob("*.safetensors")):
            file.rename(file.with_suffix(f".{variant}.safetensors"))


def test_a_folder_of_variants_alone_is_loaded_and_told(tiny_lcm, tiny_lcm_copy, caplog):
    name_variant(tiny_lcm_copy, "fp16")
    model = load_tiny(tiny_lcm_copy)
    assert model.digest == load_tiny(tiny_lcm).digest
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        f"its {part} is there as the fp16 variant only; loaded as float32" for part in ("text_encoder", "unet", "vae")
    ]


def test_the_weights_without_a_variant_come_first(tiny_lcm, tiny_lcm_copy):
    shutil.copy(tiny_lcm_copy / UNET, tiny_lcm_copy / UNET.replace(".safetensors", ".fp16.safetensors"))
    change_weights(
        tiny_lcm_copy / UNET.replace(".safetensors", ".fp16.safetensors"), lambda weights: weights[UNET_BIAS].add_(1)
    )
    assert load_tiny(tiny_lcm_copy).digest == load_tiny(tiny_lcm).digest


def test_several_unknown_variants_are_not_chosen_from(tiny_lcm_copy):
    shutil.copy(tiny_lcm_copy / UNET, tiny_lcm_copy / UNET.replace(".safetensors", ".ema.safetensors"))
    (tiny_lcm_copy / UNET).rename(tiny_lcm_copy / UNET.replace(".safetensors", ".raw.safetensors"))
    assert_refused(tiny_lcm_copy, "in the variants ema, raw only")


def shard(file, variant=""):
    """Split a file of weights into two with an index, as large models have it."""
    weights = load_file(file)
    names, stem = sorted(weights), file.name.removesuffix(".safetensors")
    halves = {f"{stem}{variant}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for name, keys in halves.items():
        save_file({key: weights[key] for key in keys}, file.with_name(name), metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, keys in halves.items() for key in keys}}
    ending = f".index{variant}.json" if variant and "diffusion" in stem else f"{variant and ''}.index.json"
    target = file.with_name(f"{stem}.safetensors{ending}")
    if variant and "diffusion" not in stem:
        target = file.with_name(f"{stem}.safetensors.index{variant}.json")
    target.write_text(json.dumps(index))
    file.unlink()
    return target


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_sharded_weights_are_the_same_model(tiny_lcm, tiny_lcm_copy, file):
    shard(tiny_lcm_copy / file)
    assert load_tiny(tiny_lcm_copy).digest == load_tiny(tiny_lcm).digest


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_sharded_weights_of_a_variant_are_the_same_model(tiny_lcm, tiny_lcm_copy, file, caplog):
    shard(tiny_lcm_copy / file, ".fp16")
    assert load_tiny(tiny_lcm_copy).digest == load_tiny(tiny_lcm).digest
    assert "fp16 variant only" in caplog.text


@pytest.mark.parametrize("file", [UNET, TEXT])
@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "sub/x.safetensors", "x.bin", "gone.safetensors"]
)
def test_an_index_never_leads_out_of_its_folder(tiny_lcm_copy, file, name):
    index = shard(tiny_lcm_copy / file)
    shutil.copy(next(index.parent.glob("*.safetensors")), tiny_lcm_copy / "outside.safetensors")
    values = json.loads(index.read_text())
    values["weight_map"] = dict.fromkeys(values["weight_map"], name)
    index.write_text(json.dumps(values))
    assert_refused(tiny_lcm_copy, "which is not a safetensors file of the same folder|is missing")


def test_shards_without_their_index(tiny_lcm_copy):
    shard(tiny_lcm_copy / UNET).unlink()
    assert_refused(tiny_lcm_copy, "without its index")


# Files and names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.diffusion_model.x", "cond_stage_model.transformer.x"], "StableDiffusionPipeline as P"),
        (["model.diffusion_model.x", "conditioner.embedders.1.x"], "StableDiffusionXLPipeline as P"),
        (["model.diffusion_model.x"], "without its text encoders"),
        (["lora_unet_x.lora_down.weight"], "is a LoRA"),
        (["x"], "is not a model of a known family in one file"),
    ],
)
def test_a_model_in_one_file_comes_with_the_way_to_convert_it(tmp_path, names, said):
    file = tmp_path / "dream.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    assert_refused(file, said)


def test_a_model_in_one_pickle_is_not_opened(tmp_path):
    (tmp_path / "dream.ckpt").write_bytes(b"\x80")
    assert_refused(tmp_path / "dream.ckpt", "a pickle could run code")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "emoji-lmc"])
def test_a_name_that_cannot_be_reached_points_to_the_embedded_model(name):
    assert_refused(name, "could not be loaded from the hub: HF_HUB_OFFLINE is set.*--model emoji-lcm")


@pytest.mark.parametrize("name", ["./no/such/folder", "a/b/c", "no such", "/gone"])
def test_a_path_that_is_no_hub_id_is_not_asked_for(name):
    assert_refused(name, "is not a folder here, nor a hub id.*--model emoji-lcm")


@pytest.mark.parametrize("device", ["warp", "cuda:99", ""])
def test_a_device_that_is_not_there(tiny_lcm, device):
    assert_refused(tiny_lcm, f"device '{device}' is not available.*--device cpu", device=device)


def test_auto_takes_a_device_that_works():
    assert torch.ones(2, device=select_device("auto")).sum().item() == 2
    assert select_device("cpu") == torch.device("cpu")
