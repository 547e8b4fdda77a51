"""Monitored rewards: scored, never trained on; the alarm, the stop, and the checkpoint that is kept."""

import pytest
import torch
from metric_rows import make_row
from phase_runs import (
    copy_run,
    fingerprint,
    finish,
    kinds,
    make_config,
    make_loop,
    raw_bytes,
    scorers_of,
    shared_model,
)

from rlcm_cli.config import MonitorSettings, parse_config
from rlcm_cli.errors import RunMismatchError
from rlcm_cli.events import Evaluated, HackingFound, IterationTrained
from rlcm_cli.phases.loop import loop
from rlcm_cli.runs import hacking
from rlcm_cli.runs.hacking import advise_checkpoint, best_checkpoints, trained_progress
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.checkpoint import LORA_FILE, digest_safetensors, read_statistics
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.quarantine import quarantine
from rlcm_cli.store.run import prune_checkpoints

MONITORED = "sharpness"


def rows(monitored, trained=None, first=0):
    """Metrics of some iterations, as far as the alarm reads them; None: not monitored then."""
    return [
        make_row(
            number,
            reward_mean=float(number if trained is None else trained[number - first]),
            monitored={} if value is None else {MONITORED: float(value)},
            reward_stds={MONITORED: 1.0},
        )
        for number, value in enumerate(monitored, first)
    ]


def settings(**changes):
    return MonitorSettings(**{"rewards": (MONITORED,), "window": 2, "fall": 0.5, **changes})


def find_hacking(metrics, of):
    """The alarms where one reward is trained on, as it is."""
    return hacking.find_hacking(metrics, of, [row.reward_mean for row in metrics])


def test_progress_weighs_rewards_in_their_own_deviations_unless_they_are_summed():
    metrics = [
        make_row(0, rewards={"a": 1.0, "b": 100.0}, reward_stds={"a": 0.5, "b": 50.0}),
        make_row(1, rewards={"a": 2.0, "b": 90.0}, reward_stds={"a": 9.0, "b": 9.0}),
    ]
    config = {"task": "t", "rewards": {"a": 1.0, "b": 2.0}}
    assert trained_progress(metrics, parse_config(config)) == [2 + 4, 4 + 3.6]
    assert trained_progress(metrics, parse_config({**config, "combine": "sum"})) == [201, 182]
    assert trained_progress([], parse_config(config)) == []


class TestHacking:
    def test_is_told_in_one_line_with_the_figures_and_the_best_checkpoint(self):
        alarms = find_hacking(rows([1, 5, 5, 1, 0]), settings())
        assert list(alarms) == [MONITORED]
        message = alarms[MONITORED]
        for words in (f"'{MONITORED}' fell from 5 to 0.5", "4.5 standard deviations", "rose"):
            assert words in message
        assert message.endswith(" is 2")
        assert "\n" not in message

    def test_is_nothing_without_monitored_rewards_or_metrics(self):
        assert find_hacking(rows([9, 9, 0, 0]), settings(rewards=())) == {}
        assert find_hacking([], settings()) == {}
        assert best_checkpoints([], settings()) == {}

    def test_looks_at_the_iterations_since_which_it_is_monitored_without_a_gap(self):
        assert find_hacking(rows([9, 9, None, 0, 0]), settings()) == {}
        assert find_hacking(rows([None, 9, 9, 0, 0]), settings()).keys() == {MONITORED}
        assert best_checkpoints(rows([9, 9, None, 0, 1, 0]), settings(window=1)) == {MONITORED: 4}
        assert best_checkpoints(rows([9, 9, None]), settings(window=1)) == {}

    def test_names_the_best_checkpoint_of_all_which_is_the_one_that_is_kept(self):
        # The best window of all, iterations 3 and 4, shares an iteration with the newest, 4 and 5.
        metrics = rows([3, 3, 3, 9, 6, -20])
        best = best_checkpoints(metrics, settings())
        assert best == {MONITORED: 4}
        assert find_hacking(metrics, settings())[MONITORED].endswith(" is 4")

    def test_counts_iterations_by_their_numbers(self):
        metrics = rows([5, 5, 0, 0], first=7)
        assert best_checkpoints(metrics, settings()) == {MONITORED: 8}
        assert find_hacking(metrics, settings())[MONITORED].endswith(" is 8")

    def test_of_several_monitored_rewards_is_told_of_each(self):
        metrics = rows([9, 9, 0, 0])
        for row in metrics:
            row.monitored["other"] = 1.0
            row.reward_stds["other"] = 1.0
        both = settings(rewards=(MONITORED, "other"))
        assert find_hacking(metrics, both).keys() == {MONITORED}
        assert best_checkpoints(metrics, both).keys() == {MONITORED, "other"}


def time_of(known):
    return float(known["iteration"] if "iteration" in known else known["evaluation"])


def rising(images, prompts, metadata):
    return torch.tensor([time_of(known) + 0.01 * known["sample"] for known in metadata])


def peaking(images, prompts, metadata):
    """Highest for the images of checkpoint 1."""
    return torch.tensor([-abs(time_of(known) - 1) + 0.01 * known["sample"] for known in metadata])


def hacked_config(model, **sections):
    monitor = {"rewards": [MONITORED], "window": 1, **sections.pop("monitor", {})}
    runtime = {"iterations": 4, **sections.pop("runtime", {})}
    return make_config(model, monitor=monitor, runtime=runtime, **sections)


def run_loop(root, config, monitored=peaking):
    run = create_run(root, config)
    scorers = scorers_of(run, {"compressibility": rising, MONITORED: monitored})
    return run, finish(loop(run, shared_model(config.model.name), scorers))


def alarms_of(events):
    return [event for event in events if isinstance(event, HackingFound)]


class TestLoop:
    def test_warns_once_and_goes_on(self, tiny_lcm, tmp_path):
        run, events = run_loop(tmp_path / "run", hacked_config(tiny_lcm))
        (alarm,) = alarms_of(events)
        assert (alarm.checkpoint, alarm.monitored, alarm.stops) == (3, MONITORED, False)
        assert alarm.message.endswith(" is 1")
        assert run.layout.checkpoints() == [0, 1, 2, 3, 4]
        # The best checkpoint by the monitored reward is drawn with, too, to be looked at.
        assert [event.checkpoint for event in events if isinstance(event, Evaluated)] == [0, 1, 4]

    def test_warns_again_of_a_new_fall(self, tiny_lcm, tmp_path):
        def twice(images, prompts, metadata):
            heights = [9.0, 0.0, 10.0, 0.0, 0.0]
            return torch.tensor([heights[int(time_of(known))] + 0.01 * known["sample"] for known in metadata])

        _, events = run_loop(tmp_path / "run", hacked_config(tiny_lcm), twice)
        assert [alarm.checkpoint for alarm in alarms_of(events)] == [2, 4]

    def test_says_nothing_of_a_monitored_reward_that_rises_too(self, tiny_lcm, tmp_path):
        run, events = run_loop(tmp_path / "run", hacked_config(tiny_lcm), rising)
        assert alarms_of(events) == []
        assert run.layout.evaluations() == [0, 4]
        assert advise_checkpoint(read_metrics(run.layout), run.config) is None

    def test_stops_where_it_is_told_to_and_does_not_start_again(self, tiny_lcm, tmp_path):
        config = hacked_config(tiny_lcm, monitor={"on_hacking": "stop"})
        run, events = run_loop(tmp_path / "run", config)
        (alarm,) = alarms_of(events)
        assert (alarm.checkpoint, alarm.stops) == (3, True)
        assert run.layout.checkpoints() == [0, 1, 2, 3]
        assert run.layout.evaluations() == [0, 1, 3]
        assert advise_checkpoint(read_metrics(run.layout), config) == (1, MONITORED)

        before = raw_bytes(run.layout.root)
        _, again = run_loop(tmp_path / "run", config)
        assert raw_bytes(run.layout.root) == before
        assert [alarm.checkpoint for alarm in alarms_of(again)] == [3]
        assert not [event for event in again if isinstance(event, IterationTrained)]
        assert "HackingFound" in kinds(again)

    @pytest.mark.parametrize("on_hacking", ["warn", "stop"])
    def test_counts_no_iteration_whose_checkpoint_is_not_there(self, tiny_lcm, tmp_path, on_hacking):
        config = hacked_config(tiny_lcm, monitor={"on_hacking": on_hacking}, runtime={"iterations": 3})
        run, _ = run_loop(tmp_path / "run", config)
        expected = fingerprint(run.layout.root)
        quarantine(run.layout.checkpoint(3))  # as if it was killed between metrics and checkpoint
        _, events = run_loop(tmp_path / "run", config)
        assert kinds(events).index("IterationTrained") < kinds(events).index("HackingFound")
        assert fingerprint(run.layout.root) == expected

    def test_goes_on_after_a_stop_where_it_is_told_to_warn(self, tiny_lcm, tmp_path):
        run_loop(tmp_path / "run", hacked_config(tiny_lcm, monitor={"on_hacking": "stop"}))
        run, _ = run_loop(tmp_path / "run", hacked_config(tiny_lcm))
        assert run.layout.checkpoints()[-1] == 4

    @pytest.mark.parametrize("on_hacking", ["warn", "stop"])
    def test_keeps_the_best_checkpoint_where_the_others_are_pruned(self, tiny_lcm, tmp_path, on_hacking):
        config = hacked_config(tiny_lcm, monitor={"on_hacking": on_hacking}, runtime={"keep_checkpoints": 1})
        run, _ = run_loop(tmp_path / "run", config)
        assert run.layout.checkpoints() == ([0, 1, 4] if on_hacking == "warn" else [0, 1, 3])
        assert read_evaluation(run.layout, 1).checkpoint == 1

    def test_that_is_pruned_keeps_every_checkpoint_that_it_names(self, tiny_lcm, tmp_path):
        heights = [3.0, 3.0, 3.0, 9.0, 8.0, -20.0]

        def late_peak(images, prompts, metadata):
            return torch.tensor([heights[int(time_of(known))] + 0.01 * known["sample"] for known in metadata])

        config = hacked_config(tiny_lcm, monitor={"window": 2}, runtime={"iterations": 6, "keep_checkpoints": 1})
        run = create_run(tmp_path / "run", config)
        heights.append(0.0)  # of the last evaluation
        scorers = scorers_of(run, {"compressibility": rising, MONITORED: late_peak})
        (alarm,) = alarms_of(finish(loop(run, shared_model(tiny_lcm), scorers)))
        assert alarm.message.endswith(" is 4")
        assert 4 in run.layout.checkpoints()

    def test_without_a_monitor_prunes_as_ever(self, tiny_lcm, tmp_path):
        run = make_loop(tmp_path / "run", make_config(tiny_lcm, runtime={"iterations": 3, "keep_checkpoints": 1}))
        assert run.layout.checkpoints() == [0, 3]

    def test_protects_no_checkpoint_that_is_not_there(self, finished_run, tmp_path):
        run = copy_run(finished_run, tmp_path / "run")
        assert prune_checkpoints(run.layout, 1, [7]) == [run.layout.checkpoint(1)]


class TestMonitoring:
    def test_changes_no_weight_and_no_statistic(self, tiny_lcm, finished_run, tmp_path):
        run = make_loop(tmp_path / "run", make_config(tiny_lcm, monitor={"rewards": ["incompressibility", MONITORED]}))
        found, expected = fingerprint(run.layout.root), fingerprint(finished_run)
        differ = {name for name in found if found[name] != expected.get(name)}
        assert {name.split("/")[0] for name in differ} == {
            "config.json",
            "evaluations",
            "metrics",
            "metrics.jsonl",
        } | {
            "rollouts"  # the sidecars of the monitored rewards
        }
        assert not [name for name in differ & expected.keys() if name.startswith("rollouts")]
        for row, bare in zip(read_metrics(run.layout), read_metrics(RunLayout(finished_run)), strict=True):
            assert row.rewards == bare.rewards
            assert row.reward_mean == bare.reward_mean
            assert row.monitored["incompressibility"] == -row.rewards["compressibility"]
            assert set(row.monitored) == {"incompressibility", MONITORED}
            assert bare.monitored == {}
        assert set(read_evaluation(run.layout, 2).rewards) == {"compressibility", "incompressibility", MONITORED}

    def test_beside_two_trained_rewards_changes_nothing_either(self, tiny_lcm, tmp_path):
        digests, statistics = [], []
        for number, monitor in enumerate([{}, {"rewards": ["incompressibility"]}]):
            config = make_config(tiny_lcm, rewards={"compressibility": 1.0, MONITORED: 0.3}, monitor=monitor)
            run = make_loop(tmp_path / str(number), config)
            digests.append(digest_safetensors(run.layout.checkpoint(2) / LORA_FILE))
            statistics.append(read_statistics(run.layout, 2))
        assert digests[0] == digests[1]
        assert statistics[0] == statistics[1]

    def test_may_change_when_a_run_goes_on(self, tiny_lcm, finished_run, tmp_path):
        root = tmp_path / "run"
        make_loop(root, make_config(tiny_lcm, runtime={"iterations": 1}))
        make_loop(root, make_config(tiny_lcm, monitor={"rewards": [MONITORED], "window": 3}))
        run = make_loop(root, make_config(tiny_lcm, monitor={"fall": 0.1}, runtime={"iterations": 3}))
        assert [set(row.monitored) for row in read_metrics(run.layout)] == [set(), {MONITORED}, set()]
        expected = fingerprint(finished_run)
        checkpoint = f"checkpoints/000002/{LORA_FILE}"
        assert fingerprint(root)[checkpoint] == expected[checkpoint]

    def test_is_no_way_to_change_what_is_trained(self, tiny_lcm, tmp_path):
        create_run(tmp_path / "run", make_config(tiny_lcm))
        with pytest.raises(RunMismatchError, match=r"rewards\.incompressibility: null → 1\.0"):
            create_run(tmp_path / "run", make_config(tiny_lcm, rewards={"incompressibility": 1.0}))
