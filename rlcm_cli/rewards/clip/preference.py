"""What people prefer among images of one prompt, learnt by fine-tuning CLIP ViT-H/14: PickScore and HPS v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.folders import check_configuration, read_json_object
from rlcm_cli.rewards.clip.clip_model import (
    PROCESSOR_FILES,
    WEIGHT_FILES,
    ClipModel,
    assemble_clip,
    join_digests,
    load_clip,
)
from rlcm_cli.rewards.clip.open_clip import map_open_clip
from rlcm_cli.rewards.clip.prompt_cleaning import clean_prompt
from rlcm_cli.rewards.clip.tensor_file import digest_file, find_file, missing_file, read_tensors
from rlcm_cli.rewards.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.network import fill_network
from rlcm_cli.rewards.weights import digest_weights, find_weights, missing_weights, quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor

PICK_SCORE = "yuvalkirstain/PickScore_v1"
HPS = "xswu/HPSv2/HPS_v2.1_compressed.pt"
CLIP_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The model that both were tuned from: their repositories have neither tokenizer nor preprocessing."""

_PICK_SIZE, _HPS_SIZE, _PROCESSOR_SIZE = "3.9 GB", "2.0 GB", "4 MB"
# Its config.json says how many heads there are, which no shape of an HPS tensor tells.
_PROCESSOR_FILES = ("config*", *PROCESSOR_FILES)


def pick_score(model: str, processor: str) -> RewardFn:
    """Make the reward: exp(logit_scale) · cos(image, prompt), the scale being the model's own, 100 (arXiv 2305.01569).

    Args:
        model: Folder or hub id of PickScore's weights.
        processor: Folder or hub id with the tokenizer and the preprocessing.

    Raises:
        ConfigError: If a setting is no text.
        RewardError: If the weights or the processor cannot be had.
    """
    folder = find_weights(model, WEIGHT_FILES, reward="pick_score", size=_PICK_SIZE)
    clip = load_clip(folder, reward="pick_score", processor=_find_processor(processor, "pick_score"))
    scale = clip.network.logit_scale.exp().item()
    return lambda images, prompts, metadata: scale * clip.cosines(images, prompts)


def hps_v2(checkpoint: str, processor: str) -> RewardFn:
    """Make the reward: cos(image, prompt), without the logit scale, as the hpsv2 package gives it (arXiv 2306.09341).

    As there, prompts are cleaned, and an image that is not square is fitted into black. The package resizes images as
    floats and does not round them to whole levels afterwards, as transformers does.

    Args:
        checkpoint: HPS_v2.1_compressed.pt or HPS_v2_compressed.pt, weights of open_clip's ViT-H-14, or the same
            tensors as safetensors: a file here, or OWNER/REPOSITORY/FILE of the hub.
        processor: Folder or hub id with the configuration, the tokenizer and the preprocessing of CLIP ViT-H/14.

    Raises:
        ConfigError: If a setting is no text.
        RewardError: If the weights or the processor cannot be had, or are not of one architecture. The reward itself
            raises it for a prompt that cannot be cleaned without the package ftfy, where that is missing.
    """
    path = find_file(checkpoint, reward="hps_v2", setting="checkpoint", size=_HPS_SIZE)
    clip = _load_open_clip(path, _find_processor(processor, "hps_v2"))
    clip = replace(clip, preprocess=replace(clip.preprocess, fit="pad"))

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        return clip.cosines(images, [clean_prompt(prompt, reward="hps_v2") for prompt in prompts])

    return score


def _load_open_clip(path: Path, processor: Path) -> ClipModel:
    from transformers import CLIPConfig, CLIPModel

    tensors = map_open_clip(read_tensors(path, reward="hps_v2"))
    try:
        check_configuration(read_json_object(processor / "config.json"), processor / "config.json")
        with quiet_transformers(), faults_of_libraries():
            config = CLIPConfig.from_pretrained(processor, local_files_only=True)
    except ForeignError as error:
        raise RewardError(
            f"reward 'hps_v2': {processor} holds no config.json of a CLIP model ({error}); set processor to "
            f"{CLIP_H14} or a copy of it"
        ) from error
    network = fill_network(CLIPModel, config, tensors, path, reward="hps_v2")
    return assemble_clip(network, processor, reward="hps_v2")


def _find_processor(processor: str, reward: str) -> Path:
    return find_weights(processor, _PROCESSOR_FILES, reward=reward, size=_PROCESSOR_SIZE, setting="processor")


def _missing_processor(processor: str, reward: str) -> str | None:
    return missing_weights(processor, _PROCESSOR_FILES, reward=reward, size=_PROCESSOR_SIZE, setting="processor")


def _digest_processor(processor: str, reward: str) -> str:
    return digest_weights(_find_processor(processor, reward), _PROCESSOR_FILES, reward=reward)


def _revise_pick_score(settings: Mapping[str, Any]) -> str:
    folder = find_weights(settings["model"], WEIGHT_FILES, reward="pick_score", size=_PICK_SIZE)
    return join_digests(
        digest_weights(folder, WEIGHT_FILES, reward="pick_score"),
        _digest_processor(settings["processor"], "pick_score"),
    )


def _revise_hps(settings: Mapping[str, Any]) -> str:
    path = find_file(settings["checkpoint"], reward="hps_v2", setting="checkpoint", size=_HPS_SIZE)
    return join_digests(digest_file(path), _digest_processor(settings["processor"], "hps_v2"))


ENTRIES = {
    "pick_score": RewardEntry(
        pick_score,
        description="which image people pick for the prompt: PickScore v1, a CLIP ViT-H/14",
        value_range="-100 to 100, mostly 16 to 26",
        bounds=(-100.0, 100.0),
        needs=f"{PICK_SCORE} ({_PICK_SIZE}) and the processor of {CLIP_H14} ({_PROCESSOR_SIZE})",
        defaults={"model": PICK_SCORE, "processor": CLIP_H14},
        neural=True,
        differentiable=True,
        revise=_revise_pick_score,
        obstacle=lambda settings: (
            missing_weights(settings["model"], WEIGHT_FILES, reward="pick_score", size=_PICK_SIZE)
            or _missing_processor(settings["processor"], "pick_score")
        ),
    ),
    "hps_v2": RewardEntry(
        hps_v2,
        description="which image people prefer for the prompt: HPS v2.1 (or v2), a CLIP ViT-H/14",
        value_range="-1 to 1, mostly 0.2 to 0.35",
        bounds=(-1.0, 1.0),
        needs=(
            f"{HPS} ({_HPS_SIZE}) and the processor of {CLIP_H14} ({_PROCESSOR_SIZE}); for prompts beyond ASCII the "
            "extra hps"
        ),
        version=2,
        defaults={"checkpoint": HPS, "processor": CLIP_H14},
        neural=True,
        differentiable=True,
        revise=_revise_hps,
        obstacle=lambda settings: (
            missing_file(settings["checkpoint"], reward="hps_v2", setting="checkpoint", size=_HPS_SIZE)
            or _missing_processor(settings["processor"], "hps_v2")
        ),
    ),
}
