"""What people prefer among images of one prompt, learnt by fine-tuning CLIP ViT-H/14: PickScore, HPS v2.1 and v2.0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.folders import check_configuration, read_json_object
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.base.weights import WeightFile, Weights
from rlcm_cli.rewards.networks.clip_model import PROCESSOR_FILES, WEIGHT_FILES, ClipModel, assemble_clip, load_clip
from rlcm_cli.rewards.networks.loading import fill_network, quiet_transformers
from rlcm_cli.rewards.networks.open_clip import map_open_clip
from rlcm_cli.rewards.networks.prompt_cleaning import clean_prompt
from rlcm_cli.rewards.networks.tensor_file import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

PICK_SCORE = Weights("yuvalkirstain/PickScore_v1", WEIGHT_FILES, "3.9 GB")
HPS = WeightFile("xswu/HPSv2/HPS_v2.1_compressed.pt", "2.0 GB")
HPS_2_0 = WeightFile("xswu/HPSv2/HPS_v2_compressed.pt", "2.0 GB")
CLIP_H14 = Weights(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    # Its config.json says how many heads there are, which no shape of an HPS tensor tells.
    ("config*", *PROCESSOR_FILES),
    "4 MB",
    words="the processor of",
)
"""The model that all were tuned from: their repositories have neither tokenizer nor preprocessing."""


def pick_score(model: Path, processor: Path) -> RewardFn:
    """Make the reward: exp(logit_scale) · cos(image, prompt), the scale being the model's own, 100 (arXiv 2305.01569).

    Args:
        model: Folder of PickScore's weights.
        processor: Folder with the tokenizer and the preprocessing.

    Raises:
        RewardError: If the weights or the processor cannot be loaded.
    """
    clip = load_clip(model, reward="pick_score", processor=processor)
    scale = clip.network.logit_scale.exp().item()
    return lambda images, prompts, metadata: scale * clip.cosines(images, prompts)


def hps_v2(checkpoint: Path, processor: Path, *, reward: str = "hps_v2") -> RewardFn:
    """Make the reward: cos(image, prompt), without the logit scale, as the hpsv2 package gives it (arXiv 2306.09341).

    Versions 2.0 and 2.1 are the same network with other weights, and their values cannot be compared.

    As there, prompts are cleaned, and an image that is not square is fitted into black. The package resizes images as
    floats and does not round them to whole levels afterwards, as transformers does.

    Args:
        checkpoint: HPS_v2.1_compressed.pt or HPS_v2_compressed.pt, weights of open_clip's ViT-H-14, or the same
            tensors as safetensors.
        processor: Folder with the configuration, the tokenizer and the preprocessing of CLIP ViT-H/14.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If the weights or the processor cannot be loaded, or are not of one architecture. The reward
            itself raises it for a prompt that cannot be cleaned without the package ftfy, where that is missing.
    """
    clip = _load_open_clip(checkpoint, processor, reward)
    clip = replace(clip, preprocess=replace(clip.preprocess, fit="pad"))

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        return clip.cosines(images, [clean_prompt(prompt, reward=reward) for prompt in prompts])

    return score


def _load_open_clip(path: Path, processor: Path, reward: str) -> ClipModel:
    from transformers import CLIPConfig, CLIPModel

    tensors = map_open_clip(read_tensors(path, reward=reward))
    try:
        check_configuration(read_json_object(processor / "config.json"), processor / "config.json")
        with quiet_transformers(), faults_of_libraries():
            config = CLIPConfig.from_pretrained(processor, local_files_only=True)
    except ForeignError as error:
        raise RewardError(
            f"reward {reward!r}: {processor} holds no config.json of a CLIP model ({error}); set processor to "
            f"{CLIP_H14.source} or a copy of it"
        ) from error
    network = fill_network(CLIPModel, config, tensors, path, reward=reward)
    return assemble_clip(network, processor, reward=reward)


def _describe_hps(factory: Callable[..., RewardFn], release: str, checkpoint: WeightFile) -> RewardEntry:
    return RewardEntry(
        factory,
        description=f"which image people prefer for the prompt: HPS {release}, a CLIP ViT-H/14",
        value_range="-1 to 1, mostly 0.2 to 0.35",
        bounds=(-1.0, 1.0),
        weights={"checkpoint": checkpoint, "processor": CLIP_H14},
        needs="for prompts beyond ASCII the extra hps",
        version=2,
        neural=True,
        differentiable=True,
    )


ENTRIES = {
    "pick_score": RewardEntry(
        pick_score,
        description="which image people pick for the prompt: PickScore v1, a CLIP ViT-H/14",
        value_range="-100 to 100, mostly 16 to 26",
        bounds=(-100.0, 100.0),
        weights={"model": PICK_SCORE, "processor": CLIP_H14},
        neural=True,
        differentiable=True,
    ),
    "hps_v2": _describe_hps(hps_v2, "v2.1", HPS),
    "hps_v2_0": _describe_hps(functools.partial(hps_v2, reward="hps_v2_0"), "v2.0", HPS_2_0),
}
