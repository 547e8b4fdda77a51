"""What a reward is: its function, its entry under a name, and the check that all its values pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.base.weights import WeightFile, Weights

if TYPE_CHECKING:
    from torch import Tensor

Settings = Mapping[str, Any]
"""A reward's settings, defaults filled in; plain JSON values."""


class RewardFn(Protocol):
    """Returns a number for each image of a batch; higher is better.

    The same arguments give the same numbers.

    Args:
        images: uint8 [B, 3, H, W], RGB. A differentiable reward takes float32 of 0 … 255 as well, and then its
            numbers carry a gradient with respect to the images; whole values give the numbers of the uint8 images.
        prompts: B prompts, the ones that the images were drawn for.
        metadata: B mappings of whatever else is known of each sample: `sample` and `seed`, `group` (a number that
            the images of one prompt that were drawn together share), `iteration` or `evaluation`.

    Returns:
        float32 [B].

    Raises:
        RewardError: If the reward is not defined for a sample.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]], /) -> Tensor:
        """Return one reward per image."""
        ...


class SetRewardFn(Protocol):
    """Returns a number for each image of one group, which depends on all of them; higher is better.

    Args:
        images: uint8 [K, 3, H, W], RGB: the images of one prompt that were drawn together, at least two.
        prompt: Their prompt.
        metadata: K mappings, as in `RewardFn`.

    Returns:
        float32 [K]; where the number belongs to the group as a whole, the same one K times.

    Raises:
        RewardError: If the reward is not defined for the group.
    """

    def __call__(self, images: Tensor, prompt: str, metadata: Sequence[Mapping[str, object]], /) -> Tensor:
        """Return one reward per image."""
        ...


@dataclass(frozen=True)
class RewardEntry:
    """A reward that a configuration can name.

    Attributes:
        factory: Makes the function and loads what is behind it; takes the settings as keyword arguments, and for those
            of `weights` the path where they are.
        description: What it measures, in one line.
        value_range: Range and unit of its values, in words.
        bounds: The least and the largest value that it can have, for charts.
        weights: The weights that it loads, by the setting that names them.
        settings: Every other setting with its default.
        check: Raises `ConfigError` for settings with an impossible value, before any weights are fetched.
        needs: What it needs besides the package and its weights (an extra, an endpoint), in words.
        version: Raised whenever the same image and settings would get another value.
        placement: Settings that say where and how patiently something is asked, not what is measured. They are not
            part of the reward's digest, and may change when a run is resumed.
        set_level: The factory makes a `SetRewardFn`. An attribute of that name of the function takes precedence.
        neural: It runs a network on the device of the images, so that it is worth moving them to a GPU.
        differentiable: The function takes float images too, see `RewardFn`. An attribute of that name of the function
            takes precedence.
        revise: Of a reward with something else than weights behind it: from the settings to a digest of that.
        obstacle: Of such a reward: from the settings to the reason why it cannot run here now, with what to do; None
            where it can. Loads nothing and does not ask the hub.
    """

    factory: Callable[..., Any]
    description: str
    value_range: str
    bounds: tuple[float, float] = (-math.inf, math.inf)
    weights: Mapping[str, Weights | WeightFile] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    check: Callable[[Settings], None] | None = None
    needs: str = ""
    version: int = 1
    placement: frozenset[str] = frozenset()
    set_level: bool = False
    neural: bool = False
    differentiable: bool = False
    revise: Callable[[Settings], str] | None = None
    obstacle: Callable[[Settings], str | None] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """Every setting with its default."""
        return {name: weights.source for name, weights in self.weights.items()} | dict(self.settings)

    @property
    def requirements(self) -> str:
        """What it needs with its default settings, in words."""
        things = [weights.requirement for weights in self.weights.values()]
        things += ["groups of several images"] if self.set_level else []
        return "; ".join(filter(None, [" and ".join(filter(None, things)), self.needs])) or "nothing"


@dataclass(frozen=True)
class Reward:
    """A reward that is loaded and can score.

    Attributes:
        name: Its name in the configuration.
        function: Scores images.
        set_level: Which of the two kinds `function` is.
        neural: As in `RewardEntry`.
        differentiable: Whether `function` takes float images as well. Never true of a set-level reward.
        revision: Digest of the weights, the code or the service behind it; empty where there is none.
        by_people: Only people give it: `function` raises `RewardError`, and no phase asks it.
    """

    name: str
    function: RewardFn | SetRewardFn
    set_level: bool = False
    neural: bool = False
    differentiable: bool = False
    revision: str = ""
    by_people: bool = False

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        """Score a batch and check what comes back.

        Args:
            images: uint8 [B, 3, H, W], RGB; of a set-level reward the whole groups.
            prompts: B prompts.
            metadata: B mappings; a set-level reward reads `group`.

        Returns:
            Finite rewards, float32 [B], on the CPU.

        Raises:
            RewardError: If the function raises it, or returns no float32 tensor, not B values, or a value that
                is NaN or infinite; if a set-level reward is given a group of one image.
        """
        import torch

        if not self.set_level:
            rewards = self._checked(self.function(images, prompts, metadata), len(images))  # type: ignore[arg-type]
        else:
            rewards = torch.empty(len(images))
            for rows in _groups(metadata):
                if len(rows) < 2:
                    raise RewardError(
                        f"reward {self.name!r} compares the images of a prompt, and prompt {prompts[rows[0]]!r} has "
                        "one; set sample.group_size (and evaluate.images_per_prompt) to 2 or more"
                    )
                part = self.function(images[rows], prompts[rows[0]], [metadata[row] for row in rows])
                rewards[rows] = self._checked(part, len(rows))
        # A copy: a function may return the same tensor again, filled with other numbers.
        rewards = rewards.detach().cpu().clone()
        self._refuse_broken(rewards, prompts, metadata)
        return rewards

    def score_floats(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        """Score a batch with a gradient, and check what comes back. Only for a `differentiable` reward.

        Args:
            images: float32 [B, 3, H, W] in 0 … 255, RGB, of a graph.
            prompts: B prompts.
            metadata: B mappings.

        Returns:
            Finite rewards, float32 [B], of the same graph, on any device.

        Raises:
            RewardError: As `score`; or if no gradient leads back to the images.
        """
        rewards = self._checked(self.function(images, prompts, metadata), len(images))  # type: ignore[arg-type]
        self._refuse_broken(rewards, prompts, metadata)
        if not rewards.requires_grad:
            raise RewardError(
                f"reward {self.name!r} is declared differentiable and returned numbers without a gradient; compute "
                "them from the float images with torch only, or remove its attribute 'differentiable'"
            )
        return rewards

    def _refuse_broken(
        self, rewards: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]
    ) -> None:
        import torch

        broken = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
        if broken:
            first = broken[0]
            raise RewardError(
                f"reward {self.name!r} returned {rewards[first].item()} for {len(broken)} of {len(rewards)} samples, "
                f"the first being sample {first}, prompt {prompts[first]!r}, metadata {dict(metadata[first])}; "
                "look at its image and fix the reward"
            )

    def _checked(self, rewards: object, count: int) -> Tensor:
        import torch

        if not isinstance(rewards, torch.Tensor) or rewards.dtype != torch.float32:
            found = rewards.dtype if isinstance(rewards, torch.Tensor) else type(rewards).__name__
            raise RewardError(f"reward {self.name!r} returned {found}, not a float32 tensor; fix the reward")
        if tuple(rewards.shape) != (count,):
            raise RewardError(
                f"reward {self.name!r} returned shape {list(rewards.shape)} for {count} images, "
                f"not [{count}]; fix the reward"
            )
        return rewards


def _groups(metadata: Sequence[Mapping[str, object]]) -> list[list[int]]:
    """Return the rows of each group, groups in the order of their first rows."""
    rows: dict[object, list[int]] = {}
    for row, known in enumerate(metadata):
        rows.setdefault(known["group"], []).append(row)
    return list(rows.values())
