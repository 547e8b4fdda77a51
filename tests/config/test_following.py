"""Settings that follow others: only where the user said nothing of them, and never without a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlcm_cli.cli.asked import Asked, resolve_run
from rlcm_cli.config.following import find_following
from rlcm_cli.config.layers import resolve_settings
from rlcm_cli.config.presets import task_names
from rlcm_cli.config.settings import Config, ModelSettings
from rlcm_cli.config.text import write_config
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers.ddim import DdimSettings
from rlcm_cli.samplers.tcd import TcdSettings

LORA = "model.distilled_lora=owner/lcm-lora"
PRESET = {"sample": {"samples": 60, "guidance_scale": 8.0}, "train": {"minibatch_size": 20}}


class TestTables:
    """Tables as they are written, before anything of them is validated."""

    @staticmethod
    def follow(file=None, line=None, preset=PRESET, model=None, recommend=None):
        return find_following(preset, file or {}, line or {}, model or {}, recommend)

    def test_nothing_follows_from_nothing(self):
        assert self.follow() == []
        assert find_following({}, {}, {}, {}, None) == []

    @pytest.mark.parametrize(
        ("samples", "group", "size"),
        [(30, 1, 10), (120, 1, 40), (3, 1, 1), (2, 1, 1), (1, 1, 1), (32, 1, 16), (32, 4, 16), (20, 4, 20)],
    )
    def test_minibatches_are_equal_hold_whole_groups_and_are_no_more_than_before(self, samples, group, size):
        (followed,) = self.follow(line={"sample": {"samples": samples, "group_size": group}}) or [(None, 20, None)]
        assert followed[1] == size
        assert samples % size == 0
        assert samples // size <= 3

    @pytest.mark.parametrize("value", ["many", 2.5, True, 0, -3, [1]])
    def test_what_is_no_number_of_samples_is_left_to_the_validation(self, value):
        assert self.follow(line={"sample": {"samples": value}}) == []
        assert self.follow(line={"sample": {"samples": 30, "group_size": value or -1}}) == []

    @pytest.mark.parametrize("table", [3, "x", [], None])
    def test_what_is_no_table_is_left_to_the_validation(self, table):
        for name in ("sample", "train", "model", "objective", "sampler"):
            assert self.follow(file={name: table}, line={name: table}, recommend=lambda model: None) == []

    def test_guidance_is_left_out_with_a_distilled_lora_only_where_there_was_some(self):
        lora = {"model": {"distilled_lora": "a/b"}}
        ((key, value, told),) = self.follow(line=lora)
        assert (key, value) == ("sample.guidance_scale", 1.0)
        assert "is 1, not the preset's 8.0: " in told
        ((_, _, told),) = self.follow(line=lora, preset={})
        assert "is 1: guidance was distilled" in told
        assert self.follow(line=lora, preset={"sample": {"guidance_scale": 1}}) == []

    @pytest.mark.parametrize("name", ["objective", "sampler"])
    def test_settings_of_the_kind_that_is_replaced_are_named(self, name):
        preset = {name: {"kind": "a", "x": 1, "y": 2}}
        (one,) = self.follow(line={name: {"kind": "b"}}, preset=preset)
        assert one == (f"{name}.kind", "b", f"{name}.kind is b, not a, so {name}.x 1, {name}.y 2 are left out")
        assert self.follow(line={name: {"kind": "a"}}, preset=preset) == []
        assert self.follow(line={name: {"kind": "b"}}, preset={name: {"kind": "a"}}) == []

    @pytest.mark.parametrize(
        ("samples", "group"),
        [(4, 4), (12, 6), (9, 3), (10, 5), (16, None), (1, None), (11, None), (True, None), ("4", None)],
    )
    def test_groups_fit_into_the_samples(self, samples, group):
        preset = {"sample": {"samples": 64, "group_size": 8}}
        note = f"sample.group_size is {group}, not 8: it follows sample.samples {samples}"
        found = [] if group is None else [("sample.group_size", group, note)]
        assert self.follow(line={"sample": {"samples": samples}}, preset=preset) == found
        assert self.follow(line={"sample": {"samples": samples, "group_size": 8}}, preset=preset) == []

    def test_a_minibatch_splits_none_of_the_groups_that_follow(self):
        preset = {"sample": {"samples": 64, "group_size": 8}, "train": {"minibatch_size": 32}}
        followed = self.follow(line={"sample": {"samples": 12}}, preset=preset)
        assert [(key, value) for key, value, _ in followed] == [("sample.group_size", 6), ("train.minibatch_size", 6)]

    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            ("rebel", "compares whole trajectories"),
            ("pso", "compares whole trajectories"),
            ("nft", "learns from no actions"),
        ],
    )
    def test_a_choice_of_actions_goes_where_the_objective_has_none(self, kind, why):
        preset, line = {"train": {"actions": [0], "timestep_fraction": 0.5}}, {"objective": {"kind": kind}}
        assert self.follow(line=line, preset=preset) == [
            ("train.actions", None, f"train.actions [0] is left out: objective.kind {kind} {why}"),
            ("train.timestep_fraction", 1.0, f"train.timestep_fraction 0.5 is left out: objective.kind {kind} {why}"),
        ]
        own = {**line, "train": {"actions": [1], "timestep_fraction": 0.7}}
        assert self.follow(line=own, preset=preset) == [], "the user's own is refused where it makes no sense"
        assert self.follow(line={"objective": {"kind": "grpo"}}, preset=preset) == []
        assert self.follow(line=line, preset={"train": {"timestep_fraction": 1.0}}) == []

    def test_a_model_is_asked_only_where_it_is_another(self):
        asked: list[str] = []

        def recommend(model: ModelSettings) -> Recommendation:
            asked.append(model.name)
            return Recommendation("ddim", 4, 1.0)

        own = {"name": "a/b"}
        assert self.follow(line={"model": {"name": "a/b"}}, model=own, recommend=recommend) == []
        assert asked == []
        ((key, table, _),) = self.follow(line={"model": {"revision": "v2"}}, model=own, recommend=recommend)
        assert (key, table, asked) == ("sampler", {"kind": "ddim"}, ["a/b"])
        assert self.follow(line={"model": {"name": "c/d"}}, model=own, recommend=lambda model: None) == []


def resolve(task: str, *assignments: str, file: Path | None = None, **flags: object) -> tuple[Config, list[str]]:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return resolve_settings([task], config_file=file, assignments=assignments, flags=given)


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("samples", [16, 32, 48, 400])
@pytest.mark.parametrize("model", [None, "papers/model"])
def test_any_number_of_samples_works_with_every_preset(task, samples, model):
    before, _ = resolve(task, model__name=model)
    group = before.sample.group_size
    samples = max(1, samples // group) * group  # whole groups: any other number is refused
    config, told = resolve(task, sample__samples=samples, model__name=model)
    size = config.train.minibatch_size
    assert config.sample.samples % size == 0
    assert size % config.sample.group_size == 0
    if size != before.train.minibatch_size:
        assert [line.partition(",")[0] for line in told] == [f"train.minibatch_size is {size}"]
    else:
        assert told == []


def test_an_iteration_keeps_its_optimizer_steps_where_it_can():
    # Two on the embedded model.
    assert resolve("ddpo-compression", "sample.samples=32")[0].train.minibatch_size == 16
    assert resolve("ddpo-compression", "sample.samples=33")[0].train.minibatch_size == 33
    _, told = resolve("ddpo-compression", sample__samples=32)
    assert told == ["train.minibatch_size is 16, not 32: it follows sample.samples 32"]


def test_pairs_are_not_torn(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nminibatch_size = 16\n")
    # Four steps of 16 become three: the next number that gives each a multiple of the 2 images of a prompt.
    config, _ = resolve("rebel-compression", file=file, sample__samples=12)
    assert config.train.minibatch_size == 4


def test_what_the_user_says_of_both_is_what_counts(tmp_path):
    assert resolve("compression", "train.minibatch_size=8", sample__samples=16)[1] == []
    with pytest.raises(ConfigError, match=r"train\.minibatch_size is 64, more than the 32 samples"):
        resolve("compression", "train.minibatch_size=64", sample__samples=32)
    file = tmp_path / "mine.toml"
    file.write_text("[sample]\nsamples = 32\n[train]\nminibatch_size = 8\n")
    assert resolve("compression", file=file)[0].train.minibatch_size == 8
    # A number on the command line stands over both of a file.
    config, told = resolve("compression", file=file, sample__samples=16)
    assert (config.train.minibatch_size, len(told)) == (4, 1)
    file.write_text("[sample]\nsamples = 32\n")
    assert resolve("compression", file=file)[0].train.minibatch_size == 32
    assert resolve("compression")[1] == []


def test_a_distilled_lora_is_drawn_without_the_guidance_of_a_preset():
    config, told = resolve("compression", LORA, model__name="owner/sd")
    assert config.sample.guidance_scale == 1.0
    assert len(told) == 1
    assert told[0].startswith("sample.guidance_scale is 1, not the preset's 8.0: ")
    assert resolve("compression", model__name="owner/sd")[0].sample.guidance_scale == 8.0


def test_guidance_that_the_user_chose_is_kept(tmp_path):
    asked = resolve("compression", LORA, "sample.guidance_scale=2.0", model__name="owner/sd")
    file = tmp_path / "mine.toml"
    file.write_text("[sample]\nguidance_scale = 2.0\n")
    written = resolve("compression", LORA, file=file, model__name="owner/sd")
    for config, told in (asked, written):
        assert (config.sample.guidance_scale, told) == (2.0, [])


def test_tasks_that_are_trained_together_follow_as_one_does():
    config, told = resolve_settings(["compression", "aesthetic"], flags={"sample.samples": 16})
    assert (config.train.minibatch_size, len(told)) == (16, 1)


def test_a_command_tells_what_followed(capsys):
    flags = {"sample.samples": 16}
    resolve_run(None, Asked(["compression"], flags=flags))
    assert capsys.readouterr().err == "note: train.minibatch_size is 16, not 64: it follows sample.samples 16\n"


PAIRS = "sample.group_size=2"


def test_another_objective_leaves_the_settings_of_the_preset_s_behind_and_says_so():
    config, told = resolve("compression", PAIRS, objective__kind="rebel")
    assert config.objective.model_dump() == {"kind": "rebel", "rebel_lr": 1.0}
    assert told == ["objective.kind is rebel, not ppo, so objective.clip_range 0.0001 is left out"]
    config, told = resolve("rwr-compression", "train.advantages=batch", objective__kind="rwr-sparse")
    assert config.objective.model_dump() == {"kind": "rwr-sparse", "share": 0.1}
    assert told == ["objective.kind is rwr-sparse, not rwr, so objective.beta 2.0 is left out"]


@pytest.mark.parametrize("assignments", [["objective.kind=rebel", "objective.rebel_lr=2"], ["objective.rebel_lr=2"]])
def test_the_settings_of_the_objective_that_is_chosen_stay(assignments):
    kind = {} if len(assignments) == 2 else {"objective__kind": "rebel"}
    config, _ = resolve("compression", PAIRS, *assignments, **kind)
    assert config.objective.model_dump() == {"kind": "rebel", "rebel_lr": 2.0}


def test_an_objective_of_the_command_line_replaces_that_of_a_file(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('[objective]\nkind = "rebel"\nrebel_lr = 3.0\n\n[sample]\ngroup_size = 2\n')
    config, told = resolve("compression", file=file)
    assert (config.objective.kind, config.objective.rebel_lr) == ("rebel", 3.0)
    assert told == ["objective.kind is rebel, not ppo, so objective.clip_range 0.0001 is left out"]
    config, told = resolve("compression", file=file, objective__kind="rwr")
    assert config.objective.model_dump() == {"kind": "rwr", "beta": 2.0}
    assert told == ["objective.kind is rwr, not rebel, so objective.rebel_lr 3.0 is left out"]


def test_the_same_objective_again_keeps_the_preset_s_settings(tmp_path):
    config, told = resolve("rwr-compression", "train.learning_rate=1e-4", objective__kind="rwr")
    assert (config.objective.beta, told) == (2.0, [])


def test_a_whole_configuration_takes_another_objective_too(tmp_path):
    file = tmp_path / "whole.toml"
    file.write_text(write_config(resolve("compression", PAIRS)[0]))
    config, told = resolve_settings([], config_file=file, flags={"objective.kind": "rebel"})
    assert config.objective.model_dump() == {"kind": "rebel", "rebel_lr": 1.0}
    assert told == ["objective.kind is rebel, not ppo, so objective.clip_range 0.0001 is left out"]


@pytest.mark.parametrize("kind", ["grpo", "ppo", "rebel", "reinforce", "rwr", "rwr-sparse"])
def test_every_objective_can_be_put_in_the_place_of_a_preset_s(kind):
    options = [PAIRS, "train.minibatch_size=64"]
    assert resolve("compression", *options, objective__kind=kind)[0].objective.kind == kind


class TestRewards:
    """A preset's back-propagation, and rewards without a gradient."""

    def test_back_propagation_is_left_out_where_no_reward_has_a_gradient(self):
        config, told = resolve("prompt_image_alignment", "rewards={ compressibility = 1.0 }")
        assert config.last_step.mode == "deterministic"
        assert told == ["last_step.mode is deterministic, not backprop: compressibility cannot be differentiated"]

    @pytest.mark.parametrize("reward", ["mine.py:f", "http://127.0.0.1:8000/mine"])
    def test_of_a_user_s_own_code_nothing_is_known(self, reward):
        config, told = resolve("prompt_image_alignment", rewards={reward: 1.0})
        assert (config.last_step.mode, len(told)) == ("deterministic", 1)

    @pytest.mark.parametrize(
        "given", ["rewards.compressibility=1", "rewards={ compressibility = 1.0, recognition = 1.0 }", "seed=1"]
    )
    def test_it_stays_where_one_has(self, given):
        config, told = resolve("prompt_image_alignment", given)
        assert (config.last_step.mode, told) == ("backprop", [])

    def test_of_a_reward_that_does_not_exist_nothing_is_said_before_it_is_refused(self):
        assert resolve("prompt_image_alignment", rewards={"beuty": 1.0})[1] == []

    def test_what_the_user_asks_for_stays(self):
        rewards = "rewards={ compressibility = 1.0 }"
        assert resolve("prompt_image_alignment", rewards, last_step__mode="backprop")[0].last_step.mode == "backprop"
        assert resolve("prompt_image_alignment", rewards, last_step__mode="noise")[1] == []


def test_a_setting_of_another_objective_is_refused():
    with pytest.raises(
        ConfigError, match=r"'objective.clip_range' of the kind 'rebel': it belongs to 'awm', 'grpo', .* or 'pso'"
    ):
        resolve("compression", PAIRS, "objective.clip_range=1e-3", objective__kind="rebel")
    with pytest.raises(ConfigError, match=r"^unknown key 'train.objective' \(did you mean 'objective'\?\)$"):
        resolve("compression", "train.objective=rebel")


class TestSampler:
    """What a model that the preset does not name is drawn with."""

    @pytest.fixture
    def ask(self):
        """Ask models whose names say how they are drawn, and write down which were asked."""
        asked: list[str] = []

        def recommend(model: ModelSettings) -> Recommendation:
            asked.append(model.name)
            return Recommendation("lcm" if model.distilled_lora else model.name.rpartition("-")[2], 4, 1.0)

        def resolve(*tasks: str, given: Sequence[str] = (), file: Path | None = None, model: str | None = None):
            flags = {"model.name": model}
            config, told = resolve_settings(
                tasks, config_file=file, assignments=given, flags=flags, recommend=recommend
            )
            return config, told, asked

        return resolve

    def test_a_preset_s_own_model_is_not_asked(self, ask):
        config, told, asked = ask("compression")
        assert (config.sampler.kind, told, asked) == ("lcm", [], [])

    def test_another_model_that_is_drawn_alike_keeps_the_preset_s_table(self, ask):
        config, told, asked = ask("compression", model="my-lcm")
        assert (config.sampler.kind, config.sampler.spacing) == ("lcm", "strided")
        assert (told, asked) == ([], ["my-lcm"])

    def test_another_model_that_is_drawn_otherwise_has_the_defaults_and_a_line_tells(self, ask):
        config, told, _ = ask("compression", model="my-ddim")
        assert config.sampler == DdimSettings()
        assert told == [
            "sampler.kind is ddim, not the preset's lcm: it follows model.name my-ddim (--sampler lcm overrides)"
        ]

    @pytest.mark.parametrize(("name", "kind"), [("my-scm", "scm"), ("my-flow", "flow")])
    def test_a_sampler_of_other_noise_levels_is_no_way_out(self, ask, name, kind):
        _, told, _ = ask("compression", model=name)
        assert told == [f"sampler.kind is {kind}, not the preset's lcm: it follows model.name {name}"]

    def test_settings_of_the_other_sampler_stay_the_user_s(self, ask, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('[model]\nname = "my-tcd"\n[sampler]\ngamma = 0.5\n')
        config, _, _ = ask("compression", file=file, given=["sampler.original_steps=20"])
        assert config.sampler == TcdSettings(original_steps=20, gamma=0.5)

    @pytest.mark.parametrize("where", ["file", "line"])
    def test_a_sampler_that_is_named_is_taken(self, ask, tmp_path, where):
        file = tmp_path / "mine.toml"
        file.write_text('[model]\nname = "my-ddim"\n' + '[sampler]\nkind = "tcd"\n' * (where == "file"))
        config, told, asked = ask("compression", file=file, given=["sampler.kind=tcd"] if where == "line" else [])
        assert (config.sampler.kind, asked) == ("tcd", ["my-ddim"])
        assert told == [
            "sampler.kind is tcd, not lcm, so sampler.spacing strided, sampler.original_steps 50 are left out"
        ]

    def test_what_its_makers_recommend_stands_in_the_preset_s_place(self, tmp_path):
        found = Recommendation(
            "flow", 4, 1.0, training={"sampler.eta": 0.9}, image_size=(768, 512), source="example.org/card"
        )

        def resolve(*given: str) -> tuple[Config, list[str]]:
            flags = {"model.name": "a/turbo"}
            return resolve_settings(["compression"], assignments=given, flags=flags, recommend=lambda model: found)

        config, told = resolve()
        assert (config.sampler.kind, config.sampler.eta) == ("flow", 0.9)
        assert (config.sample.steps, config.sample.guidance_scale, config.model.image_size) == (4, 1.0, "512x768")
        assert told[1:] == [
            "sample.steps is 4, sample.guidance_scale is 1.0, model.image_size is 512x768, sampler.eta is 0.9: "
            "recommended for a/turbo (example.org/card); --set overrides"
        ]
        # What the user says stands.
        config, told = resolve("sample.steps=2", "sampler.eta=0.5", "model.image_size=256")
        assert (config.sampler.eta, config.sample.steps, config.model.image_size) == (0.5, 2, 256)
        assert "sample.steps" not in told[1]
        # Another sampler than theirs is not what they speak of.
        config, told = resolve("sampler.kind=euler")
        assert (config.sample.steps, config.sample.guidance_scale) == (8, 8.0)
        config, told = resolve("sampler.kind=flow")
        assert (config.sampler.eta, config.sample.steps) == (0.9, 4)

    def test_a_distilled_lora_makes_another_model(self, ask):
        config, told, _ = ask("ddpo-compression", given=[LORA])
        assert config.sampler.kind == "lcm"
        assert any(line.startswith("sampler.kind is lcm, not the preset's ddim") for line in told)

    def test_a_whole_configuration_follows_as_a_preset_does(self, ask, tmp_path):
        file = tmp_path / "whole.toml"
        file.write_text(write_config(ask("compression")[0]))
        assert ask(file=file)[0].sampler.kind == "lcm"
        assert ask(file=file, model="my-ddim")[0].sampler == DdimSettings()

    def test_joint_tasks_follow_as_one_does(self, ask):
        config, told, asked = ask("compression", "aesthetic", model="my-ddim")
        assert (config.sampler.kind, len(told), asked) == ("ddim", 1, ["my-ddim"])

    def test_a_model_that_cannot_be_is_left_to_the_validation(self, ask):
        with pytest.raises(ConfigError, match=r"'model.dtype'"):
            ask("compression", given=["model.dtype=float8"], model="my-ddim")

    def test_a_model_of_this_machine_is_asked_by_the_commands(self, capsys):
        _, config = resolve_run(None, Asked(["compression"], flags={"model.name": "emoji-diffusion"}))
        assert (config.sampler.kind, config.sample.steps) == ("ddim", 20)
        told = capsys.readouterr().err
        assert "note: sampler.kind is ddim" in told
        assert "sample.steps is 20: recommended for emoji-diffusion (its card)" in " ".join(told.split())
        with pytest.raises(ModelError, match="is not a folder here"):
            resolve_run(None, Asked(["compression"], flags={"model.name": "nobody/nothing"}))
        _, config = resolve_run(
            None, Asked(["compression"], flags={"model.name": "nobody/nothing"}), loads_model=False
        )
        assert config.sampler.kind == "lcm"
        assert "because the model cannot be read: model 'nobody/nothing'" in capsys.readouterr().err
