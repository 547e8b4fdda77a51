"""Evaluations between the first and the last checkpoint."""

import pytest
from phase_runs import finish, make_config, make_loop, scorers_of, shared_model

from rlcm_cli.config import parse_config
from rlcm_cli.events import Evaluated
from rlcm_cli.phases.loop import loop
from rlcm_cli.runs.run import check_run


@pytest.mark.parametrize(("every", "drawn"), [(None, [0, 3]), (1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 3])])
def test_checkpoints_are_evaluated_as_often_as_asked(tmp_path, tiny_lcm, every, drawn):
    config = make_config(tiny_lcm, evaluate={"every": every}, runtime={"iterations": 3})
    run = make_loop(tmp_path / "run", config)
    assert run.layout.evaluations() == drawn


def test_an_evaluation_is_told_of_once_and_made_where_a_kill_left_it_out(tmp_path, tiny_lcm):
    config = make_config(tiny_lcm, evaluate={"every": 2}, runtime={"iterations": 2})
    run = make_loop(tmp_path / "run", config)
    record = run.layout.evaluation(2)
    record.unlink(), record.with_suffix(".json").unlink()
    longer = check_run(run.layout.root, make_config(tiny_lcm, evaluate={"every": 2}, runtime={"iterations": 4}))
    scorers = scorers_of(longer, {"compressibility": lambda images, prompts, metadata: images.float().mean((1, 2, 3))})
    events = finish(loop(longer, shared_model(tiny_lcm), scorers))
    assert [event.checkpoint for event in events if isinstance(event, Evaluated)] == [0, 2, 4]
    assert longer.layout.evaluations() == [0, 2, 4]


def test_how_often_may_change_when_a_run_is_continued(tmp_path, tiny_lcm):
    run = make_loop(tmp_path / "run", make_config(tiny_lcm, runtime={"iterations": 1}))
    changed = make_config(tiny_lcm, evaluate={"every": 1}, runtime={"iterations": 2})
    assert changed.identity() == run.config.identity()
    make_loop(run.layout.root, changed)
    assert run.layout.evaluations() == [0, 1, 2]
    assert parse_config(changed.model_dump(mode="json")).evaluate.every == 1
