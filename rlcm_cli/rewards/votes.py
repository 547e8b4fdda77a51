"""What people prefer: not computed, but given by their votes on pairs, which `rlcm vote` collects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn

if TYPE_CHECKING:
    from torch import Tensor

VOTES = "votes"


class _Votes:
    """Stands for the people; has no number for an image that they have not seen."""

    by_people = True

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        raise RewardError("reward 'votes' is given by people: collect their votes with `rlcm vote RUN`")


def votes() -> RewardFn:
    """Make the reward that only people give: it raises `RewardError` when it is asked."""
    return _Votes()


ENTRIES = {
    VOTES: RewardEntry(
        votes,
        description="which image people prefer: scores (Bradley and Terry 1952) from their votes on pairs",
        value_range="log-odds, 0 on average over the images of a prompt, mostly -2 to 2",
        needs="people, who vote with `rlcm vote RUN`",
    )
}
