"""A family and a sampler that have all that those of today have not, put into a copy of the package and trained.

A transformer and flow matching: no ᾱ, times that are not whole, noise at calls in the middle only, scaled initial
noise, texts of different lengths with a mask, an autoencoder without posterior.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from package_copy import extend_program
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rlcm_cli.models.embedded import embedded_folder

SYNTHETIC = Path(__file__).parent / "synthetic"
SETTINGS = """
task = "compression"
[sample]
samples = 4
batch_size = 2
shards = 2
guidance_scale = 1.0
[train]
minibatch_size = 4
min_count = 1
[lora]
rank = 2
alpha = 4
[evaluate]
prompts = 2
images_per_prompt = 1
[runtime]
iterations = 2
device = "cpu"
"""


def build_pipeline(folder: Path) -> Path:
    torch.manual_seed(5)
    tokenizer = CLIPTokenizer.from_pretrained(embedded_folder("emoji-lcm") / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=1,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
    )
    diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rlcm(tmp_path_factory):
    """Run the program of a copy of the package with two new files."""
    new = {"samplers": "flow_window.py", "families": "masked_flow.py"}
    files = {f"{room}/{file}": (SYNTHETIC / file).read_text(encoding="utf-8") for room, file in new.items()}
    return extend_program(tmp_path_factory.mktemp("copy"), files)


@pytest.fixture(scope="module")
def trained(rlcm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    build_pipeline(folder / "model")
    (folder / "settings.toml").write_text(SETTINGS)
    (folder / "prompts.txt").write_text("cat\na very large dog on blue\na bee\nan ant on a plain red ground\n")
    words = ["--model", folder / "model", "--prompts", folder / "prompts.txt", "--size", "16x24", "--steps", "5"]
    rlcm("loop", "--config", folder / "settings.toml", "--run", folder / "run", *words, "-q")
    return folder / "run"


def test_it_is_trained(trained):
    manifest = json.loads((trained / "rollouts/000001/manifest.json").read_text())
    schedule = manifest["schedule"]
    assert manifest["policy"]["kind"] == "flow-window"
    assert [std > 0 for std in schedule["std"]] == [False, True, True, False, False]
    assert schedule["initial_scale"] == 1.5
    assert schedule["timesteps"][1] == pytest.approx(1000 * 3 * 0.8 / (1 + 2 * 0.8))
    for number in (1, 2):
        metrics = json.loads((trained / f"metrics/{number:06}.json").read_text())
        assert metrics["ratio_drift"] < 4e-6
        assert metrics["updates"] == 1
        assert metrics["grad_norm"] > 0


def test_what_is_stored_has_masks_and_the_states_of_the_window(trained):
    lengths = set()
    for file in (trained / "rollouts/000001").glob("shard-*.safetensors"):
        shard = load_file(file)
        assert shard["latents"].shape[1:] == (4, 4, 12, 8)
        assert shard["timesteps"].dtype == torch.float64
        assert shard["images"].shape[1:] == (3, 24, 16)
        mask, embeds = shard["conditioning.prompt_mask"], shard["conditioning.prompt_embeds"]
        assert mask.dtype == torch.bool
        assert mask.shape == embeds.shape[:2]
        assert not embeds[~mask].any()
        lengths |= {*mask.sum(1).tolist()}
    assert len(lengths) > 1


def test_its_lora_is_loaded_back(rlcm, trained, tmp_path):
    words = ["--prompt", "cat", "--steps", "5", "--size", "16x24", "-q"]
    model = trained.parent / "model"
    checkpoint = trained / "checkpoints/000002/pytorch_lora_weights.safetensors"
    tensors = load_file(checkpoint)
    assert all(name.startswith("transformer.") for name in tensors)
    rlcm("generate", "--lora", trained, *words, "--out", tmp_path / "run")
    rlcm("generate", "--lora", checkpoint, "--model", model, *words, "--out", tmp_path / "file")
    rlcm("generate", "--model", model, *words, "--out", tmp_path / "base")
    pictures = {name: Image.open(next((tmp_path / name).glob("0*.png"))) for name in ("run", "file", "base")}
    assert pictures["run"].size == (16, 24)
    assert pictures["run"].tobytes() == pictures["file"].tobytes()
    assert pictures["run"].tobytes() != pictures["base"].tobytes()
