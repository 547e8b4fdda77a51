"""What rewards say of a run's held-out images, checkpoint by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlcm_cli.judging.summary import Judgement, judge_ways
from rlcm_cli.store.evaluations import comparable_evaluations, read_evaluation
from rlcm_cli.store.layout import RunLayout


def judge_checkpoints(
    layout: RunLayout, checkpoints: Sequence[int], rewards: Sequence[str]
) -> dict[str, list[Judgement]]:
    """Compare the held-out images of checkpoints with those of the first one that was evaluated.

    Args:
        layout: The run.
        checkpoints: Which, of the evaluated ones.
        rewards: Which.

    Returns:
        What the images are of (all, or those of prompts that are kept out of training) → judgements; their ways are
        the numbers of the checkpoints. The second is missing where there are no such prompts.
    """
    first = layout.evaluations()[:1]
    numbers = sorted({*first, *checkpoints})
    found = comparable_evaluations([read_evaluation(layout, number, images=False) for number in numbers])
    base = str(first[0]) if first else None
    if not found:
        return {}
    plain = found[-1]
    same = [own for own in found if own.prompts == plain.prompts and own.seed.tolist() == plain.seed.tolist()]
    judged = {}
    for name, rows in (("all", np.arange(len(plain.prompts))), ("held_out", np.flatnonzero(plain.held_out))):
        ways = {
            str(own.checkpoint): {
                reward: own.rewards[reward][rows].astype(np.float64).tolist()
                for reward in rewards
                if reward in own.rewards
            }
            for own in same
        }
        if len(rows):
            against = {way: base for way in ways if base is not None}
            judged[name] = judge_ways(ways, [plain.prompts[row] for row in rows], against)
    return judged
