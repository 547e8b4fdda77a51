"""The sections of a configuration: what they refuse together, what of them is the identity of a run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rlcm_cli.config.layers import override_config, resolve_config
from rlcm_cli.config.settings import (
    ModelSettings,
    RuntimeSettings,
    SampleSettings,
    TaskSettings,
    TrainSettings,
    keep_commit,
    parse_size,
)
from rlcm_cli.config.validation import differences, parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import OBJECTIVES

SAVED = parse_config({"task": "mine", "rewards": {"incompressibility": 3.0}, "sample": {"samples": 30, "steps": 5}})


def test_a_run_of_one_task_is_a_task_of_that_name():
    alone = SAVED
    assert alone.tasks == {}
    assert alone.joint_tasks() == {
        "mine": TaskSettings(prompts=alone.prompts, rewards=alone.rewards, combine=alone.combine)
    }


def test_settings_belong_to_a_reward_that_is_trained_on_or_monitored():
    setting = "reward_settings.recognition.floor=-2"
    with pytest.raises(ConfigError, match="'recognition' is neither trained on nor monitored here"):
        override_config(SAVED, assignments=[setting])
    monitored = override_config(SAVED, assignments=[setting], flags={"monitor.rewards": ["recognition"]})
    assert monitored.reward_settings == {"recognition": {"floor": -2}}
    assert monitored.reward_names() == ["incompressibility", "recognition"]


def test_what_is_monitored_may_change_and_its_settings_with_it():
    setting = "reward_settings.recognition.floor=-2"
    changes = {
        "monitor.rewards": ["recognition"],
        "monitor.window": 3,
        "monitor.on_hacking": "stop",
        "monitor.fall": 0.1,
    }
    monitored = override_config(SAVED, assignments=[setting], flags=changes)
    assert monitored.identity() == SAVED.identity()


def test_the_settings_of_a_trained_reward_are_of_the_runs_identity():
    saved = override_config(SAVED, assignments=["rewards.recognition=1"])
    changed = override_config(saved, assignments=["reward_settings.recognition.floor=-2"])
    assert differences(saved.identity(), changed.identity()) == ['reward_settings.recognition: null → {"floor": -2}']


def test_a_configuration_survives_its_json():
    resolved = SAVED
    assert parse_config(json.loads(resolved.to_json())) == resolved


def test_the_identity_of_a_run_is_all_but_its_runtime():
    saved = SAVED
    longer = override_config(saved, flags={"runtime.iterations": 999, "runtime.device": "cpu"})
    reseeded = override_config(saved, flags={"seed": 1})
    assert longer.identity() == saved.identity()
    assert differences(saved.identity(), reseeded.identity()) == ["seed: 0 → 1"]


@pytest.mark.parametrize(
    ("objective", "train", "group_size", "words"),
    [
        ("grpo", {"advantages": "batch"}, 2, ("grpo", "train.advantages is batch")),
        ("grpo", {"advantages": "per-prompt"}, 2, ("grpo", "train.advantages is per-prompt")),
        ("grpo", {}, 1, ("train.advantages group", "sample.group_size to 2")),
        ("ppo", {"advantages": "leave-one-out"}, 1, ("train.advantages leave-one-out", "sample.group_size to 2")),
        ("rebel", {}, 3, ("rebel compares pairs", "sample.group_size (now 3)")),
        ("rebel", {}, 1, ("rebel compares pairs", "sample.group_size (now 1)")),
        ("rebel", {"minibatch_size": 6}, 4, ("train.minibatch_size is 6", "sample.group_size 4", "torn")),
        ("rebel", {"step_weights": "noise"}, 2, ("rebel", "leave train.step_weights out")),
        ("ppo", {"advantages": "leave-one-out", "deviation": "batch"}, 2, ("leave-one-out divides by no standard",)),
        ("rwr", {"advantages": "none", "deviation_divisor": "K"}, 1, ("none divides by no standard deviation",)),
        ("rebel", {"timestep_fraction": 0.5}, 2, ("rebel", "train.timestep_fraction at 1")),
        ("rebel", {"actions": [0]}, 2, ("rebel needs whole trajectories", "train.actions out")),
        ("pso", {"actions": [0]}, 2, ("pso needs whole trajectories", "train.actions out")),
        ("nft", {"actions": [0]}, 2, ("train.actions [0] chooses among the actions", "nft does not learn from")),
        ("ppo", {"actions": []}, 1, ("'train.actions'", "at least 1")),
        ("ppo", {"actions": [-1]}, 1, ("'train.actions.0'",)),
        ("reinforce", {"inner_epochs": 2}, 1, ("reinforce", "train.inner_epochs", "objective ppo")),
        ("reinforce", {"minibatch_size": 6}, 1, ("reinforce", "train.minibatch_size", "objective ppo")),
    ],
)
def test_an_objective_that_does_not_fit_the_rest_is_refused_in_one_line(objective, train, group_size, words):
    values = {"task": "t", "rewards": {"compressibility": 1.0}, "sample": {"samples": 12, "group_size": group_size}}
    with pytest.raises(ConfigError) as refusal:
        parse_config({**values, "objective": {"kind": objective}, "train": train})
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("iterations", [4, 10])
def test_a_decay_whose_steps_are_as_wide_as_itself_is_refused(iterations):
    # As compression's, which has steps of 10 iterations.
    with pytest.raises(ConfigError, match=r"train\.lr_decay_every is 10, so the learning rate would be 0"):
        resolve_config(
            ["compression"], assignments=["train.lr_decay_every=10", f"train.lr_decay_iterations={iterations}"]
        )
    constant = ["train.lr_decay_every=10", f"train.lr_decay_iterations={iterations}", "train.lr_schedule=constant"]
    assert resolve_config(["compression"], assignments=constant).train.lr_decay_iterations == iterations


@pytest.mark.parametrize("objective", [*OBJECTIVES])
def test_samples_of_the_policy_before_are_refused_where_nothing_corrects_for_them(objective):
    values = {"task": "t", "rewards": {"compressibility": 1.0}, "objective": {"kind": objective}}
    asked = {**values, "sample": {"group_size": 4, "staleness": 1}}
    if objective == "reinforce":
        with pytest.raises(ConfigError, match=r"^sample\.staleness is 1, .* leave it at 0, or use objective ppo$"):
            parse_config(asked)
    else:
        assert [parse_config(asked).sample.drawing_checkpoint(iteration) for iteration in range(3)] == [0, 0, 1]


def test_steps_are_weighed_only_where_actions_are_trained(monkeypatch):
    values = {"task": "t", "rewards": {"compressibility": 1.0}, "train": {"step_weights": "variance"}}
    assert parse_config(values).train.step_weights == "variance"
    free = dataclasses.replace(OBJECTIVES["ppo"], needs=frozenset())
    monkeypatch.setattr("rlcm_cli.config.settings.find_objective", lambda config: free)
    with pytest.raises(ConfigError, match=r"^train\.step_weights variance weighs .* leave it out$"):
        parse_config(values)


def test_no_iteration_is_drawn_further_ahead_than_by_one():
    values = {"task": "t", "rewards": {"compressibility": 1.0}, "sample": {"staleness": 2}}
    with pytest.raises(ConfigError, match=r"^'sample\.staleness' is 2: "):
        parse_config(values)


def test_as_many_checkpoints_are_kept_as_are_needed_to_go_on():
    values = {"task": "t", "rewards": {"compressibility": 1.0}}
    assert parse_config(values).kept_checkpoints is None
    for staleness, asked, kept in ((0, 1, 1), (1, 1, 2), (1, 5, 5)):
        sections = {"sample": {"staleness": staleness}, "runtime": {"keep_checkpoints": asked}}
        assert parse_config({**values, **sections}).kept_checkpoints == kept


@pytest.mark.parametrize("objective", [*OBJECTIVES])
@pytest.mark.parametrize("advantages", ["per-prompt", "batch", "group", "leave-one-out"])
def test_every_other_pair_of_objective_and_advantages_is_taken(objective, advantages):
    values = {"task": "t", "rewards": {"compressibility": 1.0}, "sample": {"group_size": 4}}
    asked = {**values, "objective": {"kind": objective}, "train": {"advantages": advantages}}
    if advantages not in OBJECTIVES[objective].advantages.admitted:
        with pytest.raises(ConfigError, match=objective):
            parse_config(asked)
    else:
        assert parse_config(asked).advantage_kind == advantages


def test_a_single_step_is_refused_for_training_alone():
    resolved = override_config(SAVED, flags={"sample.steps": 1})
    with pytest.raises(ConfigError, match="no action to train; use --steps 2 or more"):
        resolved.require_actions()


def test_a_configuration_cannot_be_changed_in_place():
    resolved = SAVED
    with pytest.raises(ValueError, match="frozen"):
        resolved.seed = 1  # type: ignore[misc]


def test_an_objective_without_actions_asks_for_none(monkeypatch):
    resolved = override_config(SAVED, flags={"sample.steps": 1})
    free = dataclasses.replace(OBJECTIVES["ppo"], needs=frozenset())
    monkeypatch.setattr("rlcm_cli.config.settings.find_objective", lambda config: free)
    resolved.require_actions()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"train": {"parameters": "full"}, "model": {"dtype": "float16"}},
            "train.parameters full changes",
        ),
        ({"train": {"parameters": "full"}, "lora": {"start": "x"}}, "lora.start is a LoRA .*; remove one$"),
        (
            {"monitor": {"rewards": ["recognition", "incompressibility"]}},
            "monitor.rewards .* incompressibility,",
        ),
        (
            {"monitor": {"on_hacking": "stop"}},
            "monitor.on_hacking is stop, .*; .*--monitor$",
        ),
        ({"train": {"lr_decay_iterations": 1}}, "train.lr_decay_iterations is 1 .*; raise the former to 2 or more$"),
        (
            {"train": {"lr_decay_iterations": 5, "lr_decay_every": 5}},
            ".*; lower the latter, for example to 1$",
        ),
        ({"rewards": {"incompressibility": 0.0}}, "all rewards of task 'mine' have weight 0"),
        (
            {"prompts": {"source": "x"}, "rewards": {}, "tasks": {"a": {"rewards": {"x": 1.0}}}},
            "prompts or combine is set",
        ),
    ],
)
def test_sections_that_do_not_go_together_are_refused_in_one_line(sections, words):
    values = {"task": "mine", "rewards": {"incompressibility": 3.0}}
    with pytest.raises(ConfigError, match=rf"^{words}") as refusal:
        parse_config({**values, **sections})
    assert "\n" not in str(refusal.value)


def test_of_a_model_the_commit_is_asked_for_where_it_is_known():
    assert ModelSettings().pinned_revision is None
    assert ModelSettings(revision="v2").pinned_revision == "v2"
    assert ModelSettings(revision="v2", commit="0" * 40).pinned_revision == "0" * 40


def test_a_commit_goes_with_its_model_and_revision_alone():
    own = ModelSettings(name="ann/lcm", commit="0" * 40)
    assert keep_commit(own, own).commit == "0" * 40
    assert keep_commit(own, own.model_copy(update={"name": "ann/other"})).commit is None
    assert keep_commit(own, own.model_copy(update={"revision": "v2"})).commit is None
    assert keep_commit(own, own.model_copy(update={"revision": "v2", "commit": "1" * 40})).commit == "1" * 40


@pytest.mark.parametrize(("staleness", "drawers"), [(0, [0, 1, 2, 3]), (1, [0, 0, 1, 2])])
def test_an_iteration_is_drawn_by_its_own_checkpoint_or_the_one_before(staleness, drawers):
    sample = SampleSettings(staleness=staleness)
    assert [sample.drawing_checkpoint(iteration) for iteration in range(4)] == drawers


def test_a_share_of_the_actions_is_one_at_least_and_none_of_none():
    settings = TrainSettings(timestep_fraction=0.01)
    assert [settings.trained_actions(actions) for actions in (0, 1, 3, 50, 200)] == [0, 1, 1, 1, 2]
    assert TrainSettings().trained_actions(3) == 3


def test_a_share_is_of_the_actions_that_are_chosen():
    settings = TrainSettings(actions=(0, 2), timestep_fraction=0.5)
    assert settings.chosen_actions(3) == [0, 2]
    assert [settings.trained_actions(actions) for actions in (0, 1, 3)] == [0, 1, 1]
    assert TrainSettings(actions=(0, 2)).trained_actions(3) == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("7.5GiB", 7.5 * 2**30), ("900MB", 9 * 10**8), ("1mib", 2**20), (" 12 GB ", 12 * 10**9)],
)
def test_sizes_are_read(text, count):
    assert parse_size(text) == count
    assert RuntimeSettings(memory_budget=text).memory_budget == text


@pytest.mark.parametrize("text", ["8", "GB", "8TB", "-8GB", "0GB", "8GB!", "1e3GB", ""])
def test_what_is_no_size_is_refused_in_one_line(text):
    message = r"^'.*' is not a valid memory budget; write a size such as 8GB[^\n]*$"
    with pytest.raises(ValueError, match=message):
        parse_size(text)
    with pytest.raises(ConfigError, match=message):
        parse_config({"task": "x", "rewards": {"compressibility": 1.0}, "runtime": {"memory_budget": text}})
