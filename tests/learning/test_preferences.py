"""Which image of a pair is better: by rewards, and by tables."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from phase_runs import finish, make_config, prepare

from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.preferences import find_pairs, pick_pairs, read_pairs
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.train import train
from rlcm_cli.store.checkpoint import read_trainer_state, read_weights

ROWS = [(0, 1, 0), (0, 6, 7), (1, 3, 2), (0, 6, 7)]


def configure(model, table=None, kind="pso"):
    return make_config(model, objective={"kind": kind, "pairs": table}, sample={"group_size": 2})


@pytest.fixture(scope="module")
def rollout(tiny_lcm, tmp_path_factory):
    """Of 8 samples in groups of 2."""
    run, model = prepare(tmp_path_factory.mktemp("runs") / "run", configure(tiny_lcm))
    return read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)


def write_table(path, rows=ROWS):
    if path.suffix == ".csv":
        path.write_text("iteration,chosen,rejected,who\n" + "".join(f"{a},{b},{c},me\n" for a, b, c in rows))
    else:
        keys = ("iteration", "chosen", "rejected")
        path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return path


def test_rewards_choose_the_best_and_the_worst_of_each_group(tiny_lcm, rollout):
    weights = torch.tensor([0.0, 1.0, 5.0, 5.0, 3.0, -1.0, 2.0, 2.5])
    learner = Learner(None, rollout, weights, configure(tiny_lcm))
    assert pick_pairs(learner, torch.arange(8)).tolist() == [[1, 0], [4, 5], [7, 6]]
    assert pick_pairs(learner, torch.tensor([6, 7, 2, 3])).tolist() == [[7, 6]]
    four = dataclasses.replace(rollout, manifest=rollout.manifest.model_copy(update={"group_size": 4}))
    assert pick_pairs(dataclasses.replace(learner, rollout=four), torch.arange(8)).tolist() == [[2, 0], [4, 5]]


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_a_table_chooses_its_own(tiny_lcm, rollout, tmp_path, name):
    config = configure(tiny_lcm, str(write_table(tmp_path / name)))
    pairs = find_pairs(config, rollout)
    assert pairs.tolist() == [[1, 0], [6, 7], [6, 7]]
    learner = Learner(None, rollout, torch.zeros(8), config, pairs=pairs)
    assert pick_pairs(learner, torch.tensor([6, 7, 2, 3])).tolist() == [[6, 7], [6, 7]]
    assert pick_pairs(learner, torch.tensor([2, 3])).shape == (0, 2)
    assert find_pairs(configure(tiny_lcm), rollout) is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1, 0, 1)], "has no pair of iteration 0; add rows"),
        ([(0, 8, 1)], "there is no sample 8; the iteration has 8"),
        ([(0, 1, 2)], "samples 1 and 2 are not two of one group"),
        ([(0, 1, 1)], "samples 1 and 1 are not two of one group"),
        ([(0, 1, 0), ("zero", 1, 0)], "line 3: 'iteration' is not a whole number of 0 or more"),
        ([(0, "-1", 0)], "'chosen' is not a whole number of 0 or more"),
        ([(0, 1, "")], "'rejected' is not a whole number of 0 or more"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(rollout, tmp_path, rows, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_pairs(write_table(tmp_path / "pairs.csv", rows), rollout)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_such_table_is_refused(rollout, tmp_path):
    (tmp_path / "pairs.csv").write_text("iteration,better\n0,1\n")
    with pytest.raises(ConfigError, match="there is no column 'chosen'; the columns are iteration, chosen, rejected"):
        read_pairs(tmp_path / "pairs.csv", rollout)
    with pytest.raises(ConfigError, match=r"is not a table; name a file that ends in \.csv"):
        read_pairs(tmp_path / "pairs.txt", rollout)
    with pytest.raises(ConfigError, match=r"pairs file .* is not there"):
        read_pairs(tmp_path / "none.csv", rollout)


@pytest.mark.parametrize("kind", ["dpo", "pso"])
def test_a_table_teaches_what_it_says(tiny_lcm, tmp_path, kind):
    """Also where rewards do not differ: tables of opposite pairs move the policy in opposite directions."""
    steps = []
    for name, rows in (("one", [(0, 1, 0), (0, 5, 4)]), ("other", [(0, 0, 1), (0, 4, 5)])):
        config = configure(tiny_lcm, str(write_table(tmp_path / f"{name}.csv", rows)), kind)
        run, model = prepare(tmp_path / name, config)
        before = read_weights(run.layout, 0)
        finish(train(run, model))
        after = read_weights(run.layout, 1)
        steps.append(torch.cat([(after[key] - before[key]).flatten() for key in before]))
    # Adam's first step is the learning rate, 1e-3, along the sign of the gradient.
    torch.testing.assert_close(steps[0], -steps[1], rtol=1e-3, atol=1e-6)
    assert steps[0].abs().max() == pytest.approx(1e-3, rel=1e-3)
