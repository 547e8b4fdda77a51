"""The layers of a configuration: which stands over which, and what a file, an assignment or a flag may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcm_cli.config import presets
from rlcm_cli.config.layers import override_config, parse_assignment, resolve_config, split_key
from rlcm_cli.config.presets import task_names, task_text
from rlcm_cli.config.validation import parse_config
from rlcm_cli.errors import ConfigError

PAPERS_MODEL = "SimianLuo/LCM_Dreamshaper_v7"

PRESET = """# A preset of the tests.
[sample]
samples = 20
steps = 5

[rewards]
compressibility = 1.0
recognition = 0.5

[embedded.sample]
samples = 30

[embedded.rewards]
incompressibility = 3.0
"""


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset of its own, so that these tests do not change with the shipped ones."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.toml").write_text(PRESET, encoding="utf-8")
    monkeypatch.setattr(presets, "_tasks_folder", lambda: folder)
    return "mine"


def write_toml(folder: Path, text: str) -> Path:
    path = folder / "over.toml"
    path.write_text(text, encoding="utf-8")
    return path


# Layers


@pytest.mark.parametrize(
    ("present", "samples"),
    [("default", 64), ("preset", 20), ("embedded", 30), ("file", 40), ("set", 50), ("flag", 60)],
)
def test_each_layer_overrides_all_below_it(tmp_path, monkeypatch, present, samples):
    order = ["default", "preset", "embedded", "file", "set", "flag"]
    there = order[: order.index(present) + 1]
    folder = tmp_path / "tasks"
    folder.mkdir()
    text = "[rewards]\ncompressibility = 1.0\n"
    text += "[sample]\nsamples = 20\n" if "preset" in there else ""
    text += "[embedded.sample]\nsamples = 30\n" if "embedded" in there else ""
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(presets, "_tasks_folder", lambda: folder)

    resolved = resolve_config(
        ["mine"],
        config_file=write_toml(tmp_path, "[sample]\nsamples = 40\n") if "file" in there else None,
        assignments=["sample.samples=50"] if "set" in there else [],
        flags={"sample.samples": 60 if "flag" in there else None},
    )

    assert resolved.sample.samples == samples


def test_a_layer_leaves_the_keys_that_it_does_not_name(preset):
    resolved = resolve_config([preset], assignments=["sample.batch_size=7"])
    assert (resolved.sample.batch_size, resolved.sample.samples, resolved.sample.steps) == (7, 30, 5)


def test_a_later_assignment_overrides_an_earlier_one(preset):
    assert resolve_config([preset], assignments=["seed=1", "seed=2"]).seed == 2


def test_rewards_are_replaced_as_a_whole_by_a_file_and_by_the_embedded_table(preset, tmp_path):
    over = write_toml(tmp_path, "[rewards]\ncompressibility = 2.0\n")
    assert resolve_config([preset]).rewards == {"incompressibility": 3.0}
    assert resolve_config([preset], config_file=over).rewards == {"compressibility": 2.0}


def test_one_reward_is_set_beside_the_others_and_a_table_of_them_replaces_them(preset):
    beside = resolve_config([preset], assignments=["rewards.recognition=2"])
    assert beside.rewards == {"incompressibility": 3.0, "recognition": 2.0}
    assert resolve_config([preset], assignments=["rewards={compressibility=1}"]).rewards == {"compressibility": 1.0}


def test_another_model_takes_the_values_outside_of_the_embedded_table(preset):
    resolved = resolve_config([preset], flags={"model.name": "some/model"})
    assert resolved.sample.samples == 20
    assert resolved.rewards == {"compressibility": 1.0, "recognition": 0.5}


@pytest.mark.parametrize("layer", ["file", "set", "flag"])
def test_the_embedded_table_serves_the_model_that_is_chosen_in_the_end(preset, tmp_path, layer):
    over = write_toml(tmp_path, '[model]\nname = "some/model"\n') if layer == "file" else None
    assignments = ["model.name=some/model"] if layer == "set" else []
    flags = {"model.name": "some/model" if layer == "flag" else None}
    assert resolve_config([preset], config_file=over, assignments=assignments, flags=flags).sample.samples == 20
    back = {"model.name": "emoji-lcm"}
    assert resolve_config([preset], config_file=over, assignments=assignments, flags=back).sample.samples == 30


@pytest.mark.parametrize(("model", "samples", "steps"), [("emoji-sprint", 35, 6), ("emoji-lcm", 30, 5)])
def test_a_table_of_an_embedded_model_overrides_that_of_all_of_them(tmp_path, monkeypatch, model, samples, steps):
    own = "[embedded.emoji-sprint.sample]\nsamples = 35\n"
    (tmp_path / "mine.toml").write_text(f"{PRESET}\n{own}", encoding="utf-8")
    monkeypatch.setattr(presets, "_tasks_folder", lambda: tmp_path)
    over = write_toml(tmp_path, "[embedded.emoji-sprint.sample]\nsteps = 6\n")
    sample = resolve_config(["mine"], config_file=over, flags={"model.name": model}).sample
    assert (sample.samples, sample.steps) == (samples, steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[embedded]\nemoji-sprint = 3\n", r"'embedded.emoji-sprint' is 3, but it must be a table of settings"),
        ("[embedded.emoji-sprnt.sample]\nsteps = 6\n", "emoji-sprnt"),
    ],
)
def test_what_is_no_table_of_an_embedded_model_is_refused(preset, tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config([preset], config_file=write_toml(tmp_path, text), flags={"model.name": "emoji-sprint"})


def test_the_file_may_name_the_task_and_the_flag_wins(preset, tmp_path):
    over = write_toml(tmp_path, 'task = "nothing-of-that-name"\n')
    assert resolve_config([preset], config_file=over).task == preset
    with pytest.raises(ConfigError, match="nothing-of-that-name"):
        resolve_config([], config_file=over)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("runtime.device=cpu", "cpu"),
        ('runtime.device="cpu"', "cpu"),
        ("runtime.device = cpu ", "cpu"),
        ("prompts.source=a=b.txt", "a=b.txt"),
        ("train.learning_rate=3e-4", 3e-4),
        ('lora.target_modules=["to_q"]', ("to_q",)),
        ("train.learning_rate=1", 1.0),
    ],
)
def test_an_assignment_is_toml_or_else_a_bare_word(preset, assignment, value):
    section, key = assignment.partition("=")[0].strip().split(".")
    assert getattr(getattr(resolve_config([preset], assignments=[assignment]), section), key) == value


ADDRESS = "http://127.0.0.1:8765/colourfulness"


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("train.learning_rate", ["train", "learning_rate"]),
        (f'reward_settings."{ADDRESS}".patience', ["reward_settings", ADDRESS, "patience"]),
        (f"reward_settings.'{ADDRESS}'.patience", ["reward_settings", ADDRESS, "patience"]),
        (f"reward_settings.{ADDRESS}.patience", ["reward_settings", ADDRESS, "patience"]),
        ('reward_settings . "a.b" . c', ["reward_settings", "a.b", "c"]),
        ("rewards.mine.py:f", ["rewards", "mine.py:f"]),
        ('rewards."mine.py:f"', ["rewards", "mine.py:f"]),
        (f"tasks.one.rewards.{ADDRESS}", ["tasks", "one", "rewards", ADDRESS]),
        ("tasks.one.rewards", ["tasks", "one", "rewards"]),
        ("monitor.rewards", ["monitor", "rewards"]),
    ],
)
def test_a_key_is_split_at_the_dots_of_toml_and_not_within_the_name_of_a_reward(key, parts):
    assert split_key(key) == parts


@pytest.mark.parametrize("key", ['a."b', 'a."b"c', "a.''.'", 'a."b".'])
def test_a_key_whose_quotes_are_no_toml_is_refused(key):
    with pytest.raises(ConfigError, match="is not a valid dotted TOML key; write for example"):
        split_key(key)


@pytest.mark.parametrize("quotes", ['"', "'", ""])
def test_settings_of_a_served_reward_are_set_by_its_address(quotes):
    config = resolve_config(
        ["compression"],
        assignments=[f"reward_settings.{quotes}{ADDRESS}{quotes}.patience=3"],
        flags={"rewards": {ADDRESS: 1.0}},
    )
    assert config.reward_settings == {ADDRESS: {"patience": 3}}


def test_an_equals_sign_within_quotes_is_part_of_the_key():
    assert parse_assignment('rewards."a=b/mine.py:f"=0.5') == ('rewards."a=b/mine.py:f"', 0.5)


def test_a_reward_of_weight_0_is_dropped_with_its_settings():
    given = ["rewards.recognition=0", "reward_settings.recognition.floor=-5.0"]
    config = resolve_config(["compression"], assignments=given)
    assert "recognition" not in config.reward_names()
    assert config.rewards
    assert config.reward_settings == {}
    monitoring = resolve_config(["compression"], assignments=given, flags={"monitor.rewards": ["recognition"]})
    assert (list(monitoring.rewards), monitoring.reward_settings) == (
        list(config.rewards),
        {"recognition": {"floor": -5.0}},
    )


def test_of_a_task_of_several_too():
    given = ["tasks.compression.rewards.recognition=0"]
    config = resolve_config(["compression", "incompression"], assignments=given)
    assert "recognition" not in config.tasks["compression"].rewards


def test_override_config_puts_flags_over_assignments_over_a_saved_configuration(preset):
    saved = resolve_config([preset], flags={"seed": 3})
    changed = override_config(saved, assignments=["seed=4", "runtime.iterations=8"], flags={"seed": 5})
    assert (changed.seed, changed.runtime.iterations, changed.sample) == (5, 8, saved.sample)
    assert override_config(saved) == saved


# Presets


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("model", [None, PAPERS_MODEL])
def test_every_shipped_preset_is_valid_for_the_embedded_and_for_the_papers_model(task, model):
    resolved = resolve_config([task], flags={"model.name": model})
    resolved.require_actions()
    assert resolved.task == task


@pytest.mark.parametrize("task", task_names())
def test_a_preset_as_printed_is_a_file_for_config_but_for_its_embedded_table(task, tmp_path):
    text, _, _ = task_text(task).partition("[embedded")
    copied = resolve_config([task], config_file=write_toml(tmp_path, text), flags={"model.name": PAPERS_MODEL})
    assert copied == resolve_config([task], flags={"model.name": PAPERS_MODEL})


def test_the_papers_model_takes_the_papers_values():
    resolved = resolve_config(["compression"], flags={"model.name": PAPERS_MODEL})
    assert (resolved.sample.steps, resolved.sample.samples, resolved.sample.guidance_scale) == (8, 16, 8.0)
    assert (resolved.lora.rank, resolved.lora.alpha, resolved.train.learning_rate) == (16, 32, 1e-4)
    assert (resolved.prompts.source, resolved.runtime.iterations) == ("imagenet_animals", 1000)
    assert resolved.rewards == {"compressibility": 1.0}


# Which rewards there are, and how they are combined, is one choice


@pytest.fixture
def summed(preset, tmp_path):
    """A preset whose embedded rewards are summed."""
    text = PRESET.replace("[embedded.sample]", '[embedded]\ncombine = "sum"\n\n[embedded.sample]')
    (tmp_path / "tasks" / "mine.toml").write_text(text, encoding="utf-8")
    return preset


def test_rewards_are_normalised_unless_said_otherwise(preset, summed):
    assert resolve_config([summed]).combine == "sum"
    assert resolve_config([summed], flags={"model.name": "some/model"}).combine == "normalised"


def test_whoever_names_all_rewards_anew_does_not_inherit_how_they_are_combined(summed, tmp_path):
    over = write_toml(tmp_path, "[rewards]\ncompressibility = 2.0\n")
    assert resolve_config([summed], config_file=over).combine == "normalised"
    assert resolve_config([summed], assignments=["rewards={compressibility=1}"]).combine == "normalised"
    assert resolve_config([summed], flags={"rewards": {"compressibility": 1.0}}).combine == "normalised"


def test_whoever_does_not_name_all_rewards_does(summed, tmp_path):
    over = write_toml(tmp_path, "seed = 4\n")
    assert resolve_config([summed], config_file=over).combine == "sum"
    assert resolve_config([summed], assignments=["rewards.compressibility=1"]).combine == "sum"
    assert resolve_config([summed], flags={"rewards": None}).combine == "sum"


def test_what_is_said_with_the_rewards_holds(summed, tmp_path):
    over = write_toml(tmp_path, 'combine = "sum"\n[rewards]\ncompressibility = 2.0\n')
    assert resolve_config([summed], config_file=over).combine == "sum"
    for assignments in (
        ["combine=sum", "rewards={compressibility=1}"],
        ["rewards={compressibility=1}", "combine=sum"],
    ):
        assert resolve_config([summed], assignments=assignments).combine == "sum"
    flags = {"rewards": {"compressibility": 1.0}}
    assert resolve_config([summed], assignments=["combine=sum"], flags=flags).combine == "sum"


# Tasks that are trained together

OTHER = """[sample]
samples = 999

[prompts]
source = "other.txt"

[rewards]
recognition = 2.0

[reward_settings.recognition]
floor = -3.0

[embedded]
combine = "sum"

[embedded.rewards]
compressibility = 1.0
recognition = 0.25
"""


@pytest.fixture
def two(preset, tmp_path):
    (tmp_path / "tasks" / "other.toml").write_text(OTHER, encoding="utf-8")
    return [preset, "other"]


def test_each_task_keeps_its_prompts_and_rewards_and_the_first_gives_the_rest(two):
    together = resolve_config(two)
    assert together.task == "mine+other"
    assert together.sample.samples == 30
    assert (together.rewards, list(together.tasks)) == ({}, two)
    mine, other = together.tasks.values()
    assert (mine.rewards, mine.combine, mine.prompts.source) == (
        {"incompressibility": 3.0},
        "normalised",
        "simple_animals",
    )
    assert (other.rewards, other.combine, other.prompts.source) == (
        {"compressibility": 1.0, "recognition": 0.25},
        "sum",
        "other.txt",
    )
    assert (mine.share, other.share) == (1.0, 1.0)
    assert together.reward_names() == ["incompressibility", "compressibility", "recognition"]
    assert together.reward_settings == {"recognition": {"floor": -3.0}}
    assert parse_config(json.loads(together.to_json())) == together


def test_the_order_of_the_tasks_is_that_of_the_command_line_and_a_task_twice_is_one(two):
    assert list(resolve_config(two[::-1]).tasks) == two[::-1]
    assert resolve_config([*two, two[0]]) == resolve_config(two)
    assert resolve_config([two[0], two[0]]) == resolve_config([two[0]])


def test_a_task_of_several_is_set_by_its_name(two, tmp_path):
    over = write_toml(tmp_path, "[tasks.other]\nshare = 3.0\n[sample]\nsamples = 12\n")
    together = resolve_config(two, config_file=over, assignments=["tasks.mine.rewards={recognition=1}"])
    assert together.sample.samples == 12
    assert together.tasks["other"].share == 3.0
    assert together.tasks["other"].rewards == {"compressibility": 1.0, "recognition": 0.25}
    assert together.tasks["mine"].rewards == {"recognition": 1.0}
    replaced = resolve_config(two, assignments=["tasks.other.rewards={recognition=1}"])
    assert replaced.tasks["other"].combine == "normalised"


@pytest.mark.parametrize("layer", ["file", "set", "flag"])
def test_another_model_takes_all_tasks_out_of_their_embedded_tables(two, tmp_path, layer):
    over = write_toml(tmp_path, '[model]\nname = "some/model"\n') if layer == "file" else None
    assignments = ["model.name=some/model"] if layer == "set" else []
    flags = {"model.name": "some/model" if layer == "flag" else None}
    together = resolve_config(two, config_file=over, assignments=assignments, flags=flags)
    assert together.sample.samples == 20
    assert together.tasks["mine"].rewards == {"compressibility": 1.0, "recognition": 0.5}
    assert together.tasks["other"].rewards == {"recognition": 2.0}
    assert together.tasks["other"].combine == "normalised"


def test_tasks_of_a_file_stand_in_the_place_of_the_presets_rewards(preset, tmp_path):
    over = write_toml(tmp_path, "[tasks.a]\nrewards = {compressibility = 1}\n[tasks.b]\nrewards = {recognition = 1}\n")
    together = resolve_config([preset], config_file=over)
    assert (together.rewards, list(together.tasks)) == ({}, ["a", "b"])


@pytest.mark.parametrize(
    ("assignments", "flags", "words"),
    [
        ([], {"rewards": {"recognition": 1.0}}, ("--reward sets the rewards of a single task", "tasks.NAME.rewards")),
        (["rewards={recognition=1}"], {}, ("rewards and tasks are both set", "tasks.NAME.rewards")),
        (["prompts.source=more.txt"], {}, ("prompts or combine is set as well as tasks", "tasks.NAME")),
        (["combine=sum"], {}, ("prompts or combine is set as well as tasks", "tasks.NAME")),
        (["sample.samples=1"], {}, ("2 tasks share the 1 groups", "sample.samples")),
        (["sample.group_size=30"], {}, ("2 tasks share the 1 groups",)),
        (["tasks.other.rewards={}"], {}, ("tasks.other.rewards",)),
        (["tasks.other.rewards={recognition=0}"], {}, ("task 'other' have weight 0",)),
        (["tasks.other.share=0"], {}, ("tasks.other.share", "0")),
        (["tasks.other.shre=1"], {}, ("unknown key 'tasks.other.shre'",)),
    ],
)
def test_tasks_that_cannot_be_trained_together_are_refused_in_one_line(two, assignments, flags, words):
    with pytest.raises(ConfigError) as refusal:
        resolve_config(two, assignments=assignments, flags=flags)
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_with_rewards_does_not_fit_several_tasks(two, tmp_path):
    over = write_toml(tmp_path, "[rewards]\ncompressibility = 2.0\n")
    with pytest.raises(ConfigError, match="rewards and tasks are both set"):
        resolve_config(two, config_file=over)


# Refusals


@pytest.mark.parametrize(("name", "nearest"), [("compresion", "compression"), ("incompresion", "incompression")])
def test_an_unknown_task_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=rf"unknown task '{name}' \(did you mean '{nearest}'\?\); `rlcm tasks`"):
        resolve_config([name])


def test_no_task_is_told_how_to_name_one():
    with pytest.raises(ConfigError, match=r"use --task NAME \(`rlcm tasks` lists them\)"):
        resolve_config([])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"x = [", "not readable as TOML"), (b"\xff\xfe", "not readable as TOML")],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(preset, tmp_path, content, words):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refusal:
        resolve_config([preset], config_file=path)
    assert str(path) in str(refusal.value)
