"""The iterations of a run, whoever does their work: evaluations, alarms, and what is not to be kept."""

import pytest
from phase_runs import finish, make_config, make_loop, scorers_of, shared_model
from store_samples import make_manifest, write_checkpoint, write_rollout
from trainable_runs import make_rising_row, publish_trainable_run

from rlcm_cli.config import parse_config
from rlcm_cli.events import Evaluated, FilesPruned, FlatFound, HackingFound, IterationTrained, Warned
from rlcm_cli.phases import iterations
from rlcm_cli.phases.iterations import run_iterations
from rlcm_cli.phases.loop import loop
from rlcm_cli.runs import held_out
from rlcm_cli.runs.run import Run, check_run
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.timings import read_ending, read_planned


class TestOrder:
    """The work itself is that of the tests: checkpoints written by hand."""

    @pytest.fixture
    def go_on(self, tmp_path, monkeypatch):
        """Go on with a run that has `done` iterations; give its layout, what was called, and the events."""

        def run(done=0, *, rows=lambda number: {}, prunes=True, wanted=3, **sections):
            layout = RunLayout(tmp_path / "run")
            runtime = {"iterations": wanted, **sections.pop("runtime", {})}
            config = publish_trainable_run(monkeypatch, layout, done, runtime=runtime, **sections)
            calls = []

            def iterate():
                number = layout.checkpoints()[-1] + 1
                calls.append(f"train {number}")
                write_rollout(layout, make_manifest(number - 1))
                row = make_rising_row(number - 1, **rows(number))
                publish_metrics(layout, row)
                write_checkpoint(layout, number)
                yield IterationTrained(number, row)

            def evaluate(checkpoint):
                calls.append(f"evaluate {checkpoint}")
                yield Evaluated(checkpoint, 0.0, None, {}, {})

            events = list(run_iterations(Run(layout, config), iterate, evaluate, prunes=prunes))
            return layout, calls, events

        return run

    def test_the_first_and_the_last_checkpoint_are_evaluated_once(self, go_on):
        _, calls, _ = go_on()
        assert calls == ["evaluate 0", "train 1", "train 2", "train 3", "evaluate 3"]

    def test_those_between_come_before_the_training_that_follows(self, go_on):
        _, calls, _ = go_on(wanted=4, evaluate={"every": 2})
        assert calls == [
            *("evaluate 0", "train 1", "train 2", "evaluate 2", "train 3", "train 4", "evaluate 4"),
        ]

    def test_a_run_goes_on_where_it_is(self, go_on):
        _, calls, events = go_on(2)
        assert calls == ["evaluate 0", "train 3", "evaluate 3"]
        assert [event.number for event in events if isinstance(event, IterationTrained)] == [3]

    @pytest.mark.parametrize("done", [3, 4])
    def test_a_run_that_is_done_trains_nothing(self, go_on, done):
        _, calls, _ = go_on(done)
        assert calls == ["evaluate 0", f"evaluate {done}"]

    def test_a_learning_rate_of_0_is_told_before_anything_is_trained(self, go_on):
        decayed = {"lr_schedule": "linear", "lr_decay_iterations": 2}
        _, _, events = go_on(3, train=decayed, wanted=5)
        (warned,) = [event for event in events if isinstance(event, Warned)]
        assert "the 2 iterations that are left change nothing" in warned.message

    def test_what_is_not_to_be_kept_is_pruned_after_each_iteration(self, go_on):
        runtime = {"keep_rollouts": 1, "keep_checkpoints": 1}
        layout, _, _ = go_on(runtime=runtime)
        assert layout.planned(0).exists()
        assert layout.checkpoints() == [0, 3]
        assert {file.parent.name for file in layout.root.glob("rollouts/*/shard-*.safetensors")} == {"000002"}

    def test_a_run_that_is_done_loses_what_it_is_not_to_keep_any_more(self, go_on):
        layout, calls, events = go_on(3, runtime={"keep_rollouts": 1, "keep_checkpoints": 2})
        assert calls == ["evaluate 0", "evaluate 3"]
        assert layout.checkpoints() == [0, 2, 3]
        assert {file.parent.name for file in layout.root.glob("rollouts/*/shard-*.safetensors")} == {"000002"}
        (pruned,) = [event for event in events if isinstance(event, FilesPruned)]
        assert (pruned.rollouts, pruned.checkpoints) == ([0, 1], [1])
        assert pruned.bytes > 0

    def test_the_best_checkpoint_on_the_fixed_images_is_kept(self, go_on, monkeypatch):
        monkeypatch.setattr(held_out, "read_held_out", lambda *_: {0: 1.0, 2: 3.0, 3: 2.0})
        layout, _, _ = go_on(wanted=5, runtime={"keep_checkpoints": 1})
        assert layout.checkpoints() == [0, 2, 5]

    def test_a_run_ends_where_the_fixed_images_have_not_become_better_for_long(self, go_on, monkeypatch):
        reached = {0: 1.0, 2: 3.0, 4: 2.0, 6: 3.0, 8: 9.0}
        monkeypatch.setattr(held_out, "read_held_out", lambda _, config, numbers: {n: reached[n] for n in numbers})
        monkeypatch.setattr(RunLayout, "evaluations", lambda own: [n for n in reached if n <= own.checkpoints()[-1]])
        settings = {"wanted": 9, "evaluate": {"every": 2}}
        layout, calls, events = go_on(runtime={"stop_when_flat": 2, "keep_checkpoints": 1}, **settings)
        assert calls[-2:] == ["train 6", "evaluate 6"]
        assert [event for event in events if isinstance(event, FlatFound)] == [FlatFound(6, 2, 2)]
        assert layout.checkpoints() == [0, 2, 6]
        assert (read_planned(layout, 6), read_ending(layout, 6)) == (9, "flat")
        layout, calls, events = go_on(6, runtime={"stop_when_flat": 2}, **settings)
        assert calls == ["evaluate 0", "evaluate 6"]
        assert [event for event in events if isinstance(event, FlatFound)] == [FlatFound(6, 2, 2)]
        layout, calls, events = go_on(6, runtime={"stop_when_flat": 3}, **settings)
        assert calls[1:] == ["evaluate 6", "train 7", "train 8", "evaluate 8", "train 9", "evaluate 9"]
        assert not [event for event in events if isinstance(event, FlatFound)]
        assert (read_ending(layout, 6), read_ending(layout, 9)) == ("", "")

    def test_a_run_whose_iterations_are_done_is_not_called_flat(self, go_on, monkeypatch):
        monkeypatch.setattr(held_out, "read_held_out", lambda _, config, numbers: dict.fromkeys(numbers, 0.0))
        _, _, events = go_on(wanted=2, runtime={"stop_when_flat": 2}, evaluate={"every": 1})
        assert not [event for event in events if isinstance(event, FlatFound)]

    def test_unless_another_process_does_that(self, go_on):
        layout, _, _ = go_on(runtime={"keep_rollouts": 1, "keep_checkpoints": 1}, prunes=False)
        assert layout.checkpoints() == [0, 1, 2, 3]
        assert len(list(layout.root.glob("rollouts/*/shard-*.safetensors"))) == 6
        assert not layout.planned(0).exists()

    @pytest.mark.parametrize("action", ["warn", "stop"])
    def test_an_alarm_is_told_once_and_the_best_checkpoint_kept_and_evaluated(self, go_on, action):
        def rows(number):
            means = {"compressibility": float(number), "sharpness": {1: 8.0, 2: 10.0, 3: 5.0}.get(number, 0.0)}
            return {"rewards": means, "monitored": means, "reward_stds": dict.fromkeys(means, 1.0)}

        monitor = {"rewards": ["sharpness"], "window": 1, "on_hacking": action}
        layout, calls, events = go_on(rows=rows, monitor=monitor, wanted=5, runtime={"keep_checkpoints": 1})
        (found,) = [event for event in events if isinstance(event, HackingFound)]
        assert (found.checkpoint, found.monitored, found.stops) == (3, "sharpness", action == "stop")
        last = 3 if action == "stop" else 5
        assert calls[-2:] == ["evaluate 1", f"evaluate {last}"]  # which drew the images of the best iteration
        assert layout.checkpoints() == [0, 1, last]
        assert read_ending(layout, last) == ("hacking" if action == "stop" else "")

    def test_what_came_before_a_changed_reward_is_no_measure(self, go_on, monkeypatch):
        seen = []
        monkeypatch.setattr(iterations, "find_hacking", lambda history, *_: seen.append(len(history)) or {})
        monkeypatch.setattr(iterations, "trained_progress", lambda *_: [])
        go_on(rows=lambda number: {"reward_revisions": {"compressibility": str(number > 2)}}, wanted=4)
        assert seen == [0, 1, 2, 1, 2]


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
