"""Small random models in the hub's layout, and what every test of a reward of the clip package asks of them."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from rlcm_cli.rewards import Reward, RewardSpec, load_reward

EDGE = 32
CONTEXT = 20
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTHS = {"projection_dim": 24, "hidden_size": 32}


def images(count: int, height: int = EDGE, width: int = EDGE) -> torch.Tensor:
    """Random images, uint8 [count, 3, height, width]: one hue each, so that a random model tells them apart."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.randint(0, 100, (count, 3, height, width), generator=generator)
    return (noise + torch.randint(0, 156, (count, 3, 1, 1), generator=generator)).to(torch.uint8)


def save_clip_tokenizer(folder: Path) -> int:
    """Save a CLIP tokenizer of one token a letter; return the size of its vocabulary, the end token being the last."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + ",.!"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    return len(tokens)


def clip_config(vocabulary: int, hidden_act: str = "quick_gelu"):
    from transformers import CLIPConfig

    shared = {
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": hidden_act,
        "projection_dim": WIDTHS["projection_dim"],
    }
    return CLIPConfig(
        text_config={
            **shared,
            "hidden_size": 16,
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        vision_config={**shared, "hidden_size": WIDTHS["hidden_size"], "image_size": EDGE, "patch_size": 8},
        projection_dim=WIDTHS["projection_dim"],
    )


def save_processor(folder: Path) -> int:
    """Save tokenizer and preprocessing; return the size of the vocabulary."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    crop = {"height": EDGE, "width": EDGE}
    CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=crop).save_pretrained(folder)
    return save_clip_tokenizer(folder)


def save_small_clip(folder: Path, seed: int = 0) -> Path:
    """Save a CLIP model with everything beside it; return the folder."""
    from transformers import CLIPModel

    torch.manual_seed(seed)
    model = CLIPModel(clip_config(save_processor(folder)))
    for parameter in model.parameters():
        if parameter.ndim > 1:  # CLIP's own initial values are so small that all prompts look the same.
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def load(name: str, **settings) -> Reward:
    return load_reward(RewardSpec(name, settings))


def obstacle(name: str, **settings) -> str | None:
    return RewardSpec(name, settings).find_obstacle()


def revision(name: str, **settings) -> str:
    spec = RewardSpec(name, settings)
    return spec.revise(spec.find_paths())


def score(name: str, batch: torch.Tensor, prompts: list[str], **settings) -> torch.Tensor:
    return load(name, **settings).score(batch, prompts, [{}] * len(prompts))


def refusal(kind: type[Exception], name: str, **settings) -> str:
    """Load a reward that cannot be; return the message, which is one line."""
    with pytest.raises(kind) as caught:
        load(name, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_any_split(reward: Reward, batch: torch.Tensor, prompts: list[str], tolerance: float) -> None:
    """Assert that images score the same together and in parts, and not all the same."""
    known = [{}] * len(prompts)
    whole = reward.score(batch, prompts, known)
    parts = [
        reward.score(batch[start:end], prompts[start:end], known[start:end])
        for start, end in pairwise([0, 1, 3, len(prompts)])
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=tolerance)
    assert whole.std() > 100 * tolerance


def cut_off_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be out of reach."""
    import huggingface_hub

    def refuse(*arguments, **keywords):
        raise huggingface_hub.errors.LocalEntryNotFoundError("ConnectError:\nno network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
