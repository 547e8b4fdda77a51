"""Values to a configuration: every fault named in one line, with what was probably meant."""

from __future__ import annotations

import pytest

from rlcm_cli.config.layers import override_config
from rlcm_cli.config.settings import Config, SampleSettings
from rlcm_cli.config.validation import SPELLINGS, differences, override_section, parse_config
from rlcm_cli.errors import ConfigError

SAVED = parse_config({"task": "mine", "rewards": {"incompressibility": 3.0}, "sample": {"samples": 30, "steps": 5}})


def test_override_section_ignores_what_is_not_given():
    sample = override_section(SampleSettings(steps=6), {"steps": None, "guidance_scale": 2.0})
    assert (sample.steps, sample.guidance_scale) == (6, 2.0)


def test_differences_name_each_key_with_both_values():
    saved = SAVED
    changed = override_config(saved, assignments=["sample.steps=6", 'lora.start="x"'])
    assert differences(saved.identity(), changed.identity()) == ['lora.start: null → "x"', "sample.steps: 5 → 6"]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("sample.stps=3", ("unknown key 'sample.stps'", "did you mean 'sample.steps'?")),
        ("learning_rate=3e-4", ("unknown key 'learning_rate'", "did you mean 'train.learning_rate'?")),
        ("sample.steps=three", ("'sample.steps'", '"three"', "integer")),
        ("sample.steps=2.5", ("'sample.steps'", "2.5", "integer")),
        ("sample.steps=true", ("'sample.steps'", "true", "integer")),
        ("sample.steps=0", ("'sample.steps'", "0")),
        ("sampler={kind='ddim', eta=-0.1}", ("'sampler.eta'", "-0.1")),
        ("sampler={kind='tcd', gamma=1.5}", ("'sampler.gamma'", "1.5")),
        ("last_step.noise_std=0", ("'last_step.noise_std'",)),
        ("train.timestep_fraction=0", ("'train.timestep_fraction'",)),
        ("objective.kind=ppo2", ("'objective.kind'", "ppo2", "rebel", "did you mean 'ppo'?")),
        ("objective.rebel_lr=2", ("'objective.rebel_lr'", "of the kind 'ppo'", "belongs to 'rebel'")),
        ("model.policy=ddim", ("unknown key 'model.policy'", "did you mean 'sampler.kind'?")),
        ("train.rwr_beta=1", ("unknown key 'train.rwr_beta'", "did you mean 'objective.beta'?")),
        ("watch.rewards=['sharpness']", ("unknown key 'watch'", "did you mean 'monitor'?")),
        ("train.clip_range=1e-3", ("unknown key 'train.clip_range'", "did you mean 'objective.clip_range'?")),
        ("sample=3", ("'sample' is 3",)),
        ("sample.steps.more=3", ("'sample.steps.more'", "'steps' is a value")),
        ("seed=-1", ("'seed'", "-1")),
        ("model.dtype=float64", ("'model.dtype'", "float64", "float32", "float16", "bfloat16")),
        ("train.learning_rate=nan", ("'train.learning_rate'", "NaN")),
        ("train.learning_rate=inf", ("'train.learning_rate'",)),
        ("prompts.held_out_fraction=1.0", ("'prompts.held_out_fraction'",)),
        ("sample.group_size=7", ("sample.samples is 30", "sample.group_size 7")),
        ("sample.shards=31", ("sample.shards is 31", "30 groups")),
        ("train.minibatch_size=31", ("train.minibatch_size is 31", "sample.samples")),
        ("train.minibatch_size=7", ("train.minibatch_size 7", "sample.samples is 30", "to 6 or 30")),
        (
            "train.lr_decay_iterations=1",
            ("train.lr_decay_iterations is 1", "train.lr_decay_every is 1,", "0 from the start"),
        ),
        (
            "train.advantages=none",
            ("train.advantages is none", "objective.kind ppo", "objective rebel or rwr or rwr-sparse"),
        ),
        ("train.max_grad_norm=-1", ("'train.max_grad_norm'", "-1")),
        ("train.min_count=17", ("train.min_count is 17", "train.buffer_size 16")),
        ("rewards={}", ("no reward given",)),
        ("rewards.compressibility=much", ("'rewards.compressibility'", '"much"')),
        ("train.learning_rate=2026-01-01", ("not a number, a text or a table",)),
        ("nonsense", ("--set nonsense", "key=value")),
        ("=3", ("--set =3", "key=value")),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line_that_names_it(assignment, words):
    with pytest.raises(ConfigError) as refusal:
        override_config(SAVED, assignments=[assignment])
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"'seed'.*; .*'sample\.stps'"):
        override_config(SAVED, assignments=["sample.stps=3", "seed=-1"])


def test_override_section_refuses_what_does_not_fit_and_leaves_the_section_as_it_was():
    sample = SampleSettings(steps=6)
    with pytest.raises(ConfigError, match=r"^'steps' is 0: input should be greater than or equal to 1$"):
        override_section(sample, {"steps": 0})
    with pytest.raises(ConfigError, match=r"^unknown key 'stps'"):
        override_section(sample, {"stps": 3})
    assert sample.steps == 6


@pytest.mark.parametrize("absent", ["task", "tasks.a.rewards"])
def test_a_setting_without_a_default_that_is_missing_is_named(absent):
    values = {"rewards": {"x": 1.0}} if absent == "task" else {"task": "t", "tasks": {"a": {"share": 2.0}}}
    with pytest.raises(ConfigError, match=rf"^'{absent}' is missing$"):
        parse_config(values)


@pytest.mark.parametrize(("name", "default"), [("sampler", "lcm"), ("objective", "ppo")])
def test_a_table_that_is_one_of_several_and_names_none_is_the_defaults(name, default):
    config = parse_config({"task": "t", "rewards": {"x": 1.0}, name: {}})
    assert getattr(config, name).kind == default
    assert getattr(config, name) == getattr(parse_config({"task": "t", "rewards": {"x": 1.0}}), name)


@pytest.mark.parametrize("kind", [3, None, ["ppo"]])
def test_a_kind_that_is_no_word_is_refused_in_one_line(kind):
    with pytest.raises(ConfigError, match=r"^'objective(\.kind)?' is ") as refusal:
        parse_config({"task": "t", "rewards": {"x": 1.0}, "objective": {"kind": kind}})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("theirs", "ours"), SPELLINGS.items())
def test_what_other_programs_call_a_type_is_answered_with_its_name_here(theirs, ours):
    with pytest.raises(ConfigError, match=rf"^'model\.dtype' is \"{theirs}\": .* \(did you mean '{ours}'\?\)$"):
        parse_config({"task": "t", "rewards": {"x": 1.0}, "model": {"dtype": theirs}})


def test_a_value_that_is_not_json_is_refused():
    with pytest.raises(ConfigError, match=r"^a value of the configuration is not a number, a text or a table: "):
        parse_config({"task": "t", "rewards": {"x": 1.0}, "seed": object()})


def test_a_long_value_is_repeated_in_part():
    with pytest.raises(ConfigError) as refusal:
        parse_config({"task": "t", "rewards": {"x": 1.0}, "seed": "9" * 5000})
    assert len(str(refusal.value)) < 200


def test_every_table_of_the_whole_is_checked_at_once_and_in_its_order():
    with pytest.raises(ConfigError) as refusal:
        parse_config({"task": "t", "rewards": {"x": 1.0}, "lora": {"rank": 0}, "runtime": {"devcie": "cpu"}})
    first, second = str(refusal.value).split("; ")
    assert first.startswith("'lora.rank' is 0")
    assert second == "unknown key 'runtime.devcie' (did you mean 'runtime.device'?)"


def test_differences_are_those_of_leaves_and_of_tables_that_only_one_has():
    saved, asked = {"a": {"b": 1, "c": 2}, "d": {"e": 1}, "same": 0}, {"a": {"b": 1, "c": "x"}, "d": 3, "same": 0}
    assert differences(saved, asked) == ['a.c: 2 → "x"', 'd: {"e": 1} → 3']
    assert differences({"a": 1}, {}) == ["a: 1 → null"]
    assert differences(SAVED.identity(), SAVED.identity()) == []


def test_what_is_parsed_is_a_configuration():
    assert isinstance(SAVED, Config)
    assert parse_config(SAVED.model_dump(mode="json")) == SAVED
