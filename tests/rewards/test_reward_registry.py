import hashlib
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards import REWARDS, Reward, RewardEntry, RewardSpec, is_code, load_reward
from rlcm_cli.rewards.base.registry import find_entry, is_address


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_known_reward_describes_itself(name):
    entry, spec = REWARDS[name], RewardSpec(name)
    for text in (entry.description, entry.value_range, entry.requirements):
        assert text
        assert text == " ".join(text.split())
        assert not text.endswith(".")
    assert spec.slug == name
    assert spec.resolved == entry.defaults
    # Settings are written into config.json and read back.
    assert json.loads(json.dumps(entry.defaults)) == entry.defaults
    inspect.signature(entry.factory).bind(**entry.defaults)


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_known_reward_can_say_what_is_in_its_way(name):
    reason = RewardSpec(name).find_obstacle()
    assert reason is None or (reason and "\n" not in reason)


def test_directories_of_the_known_rewards_differ():
    assert len({RewardSpec(name).directory for name in REWARDS}) == len(REWARDS)


@pytest.mark.parametrize("act", [load_reward, lambda spec: spec.directory])
def test_an_unknown_reward_names_the_known_and_the_nearest(act):
    with pytest.raises(ConfigError) as caught:
        act(RewardSpec("compresibility"))
    message = str(caught.value)
    assert "no reward 'compresibility'" in message
    assert "did you mean 'compressibility'?" in message
    assert f"known rewards: {', '.join(sorted(REWARDS))}" in message
    assert "a function of your own is FILE.py:FUNCTION" in message


@pytest.mark.parametrize("act", [load_reward, lambda spec: spec.directory])
def test_an_unknown_setting_names_the_known_and_the_nearest(act):
    with pytest.raises(ConfigError, match=r"no setting 'flor'; did you mean 'floor'\? known settings: model, floor"):
        act(RewardSpec("recognition", {"flor": -1.0}))
    with pytest.raises(ConfigError, match="known settings: none"):
        act(RewardSpec("compressibility", {"quality": 80}))


def test_the_digest_is_that_of_the_canonical_json():
    text = b'{"name":"compressibility","settings":{},"version":1}'
    expected = hashlib.sha256(text).hexdigest()[:12]
    spec = RewardSpec("compressibility")
    assert (spec.slug, spec.digest) == ("compressibility", expected)
    assert spec.directory == f"compressibility-{expected}"


def test_another_version_gives_another_digest(monkeypatch):
    before = RewardSpec("compressibility").digest
    monkeypatch.setitem(REWARDS, "compressibility", replace(REWARDS["compressibility"], version=2))
    assert RewardSpec("compressibility").digest != before


def test_a_default_that_is_spelled_out_changes_nothing(monkeypatch):
    entry = replace(REWARDS["compressibility"], settings={"a": 1, "b": 2})
    monkeypatch.setitem(REWARDS, "compressibility", entry)
    specs = [RewardSpec("compressibility", settings) for settings in ({}, {"b": 2, "a": 1}, {"b": 3})]
    assert specs[0].digest == specs[1].digest != specs[2].digest


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("recognition", "recognition"),
        ("My Reward v2/α", "my-reward-v2"),
        ("../up", "up"),
        ("", "reward"),
        ("rewards/colour.py:Redness_2", "redness_2"),
        ("C:\\rewards\\colour.py:redness", "redness"),
        ("package.module:redness", "redness"),
        ("my.py:größe", "gr-e"),
        ("http://host:8000/aesthetic", "aesthetic"),
        ("https://host/v1/pick_score", "pick_score"),
        ("http://host:8000/", "reward"),
    ],
)
def test_slugs_are_safe_on_every_file_system(name, slug):
    assert RewardSpec(name).slug == slug


@pytest.mark.parametrize(
    ("name", "address", "code"),
    [
        ("aesthetic", False, False),
        ("http://host:8000/aesthetic", True, False),
        ("https://host/aesthetic", True, False),
        ("rewards/colour.py:redness", False, True),
        ("package.module:redness", False, True),
        ("httpx:get", False, True),
    ],
)
def test_a_name_is_that_of_a_known_reward_an_address_or_code(name, address, code):
    assert (is_address(name), is_code(name)) == (address, code)


class TestLoading:
    @pytest.fixture
    def entry(self, monkeypatch):
        """Put an entry into the registry; returns how."""

        def put(function, **attributes):
            entry = RewardEntry(lambda **settings: function, "a test", "0 to 1", **attributes)
            monkeypatch.setitem(REWARDS, "test", entry)
            return RewardSpec("test")

        return put

    def test_the_factory_gets_all_settings(self, monkeypatch):
        def factory(a, b):
            return (a, b)

        monkeypatch.setitem(REWARDS, "test", RewardEntry(factory, "a test", "0 to 1", settings={"a": 1, "b": 2}))
        assert load_reward(RewardSpec("test", {"b": 3})).function == (1, 3)

    def test_what_is_known_of_the_entry_is_known_of_the_reward(self, entry):
        def function():
            raise AssertionError("nothing is scored")

        reward = load_reward(entry(function, neural=True, set_level=True))
        assert reward == Reward("test", function, set_level=True, neural=True, revision="")

    @pytest.mark.parametrize("said", [True, False])
    def test_a_function_that_says_whether_it_is_set_level_is_believed(self, entry, said):
        class Function:
            set_level = said

        assert load_reward(entry(Function(), set_level=not said)).set_level is said

    def test_the_revision_digests_what_the_settings_point_at(self, entry, tmp_path):
        weights = tmp_path / "weights"
        weights.write_text("old")
        spec = entry(
            None, settings={"model": str(weights)}, revise=lambda settings: Path(settings["model"]).read_text()
        )
        before = spec.digest
        assert load_reward(spec).revision == "old"
        weights.write_text("new")
        assert load_reward(spec).revision == "new"
        assert spec.digest == before

    def test_code_is_found_by_its_name(self, tmp_path):
        file = tmp_path / "colour.py"
        file.write_text("def redness(images, prompts, metadata): ...")
        reward = load_reward(RewardSpec(f"{file}:redness"))
        assert reward.name == f"{file}:redness"
        assert reward.revision == hashlib.sha256(file.read_bytes()).hexdigest()


def test_importing_rewards_and_prompts_loads_no_torch():
    code = (
        "import sys, rlcm_cli.rewards, rlcm_cli.prompts;"
        "print(sorted({'torch', 'transformers', 'datasets', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_file_of_that_name_is_hinted_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "redness.py").touch()
    for name in ("redness", "redness.py"):
        with pytest.raises(ConfigError, match=r"for the function in redness\.py write redness\.py:FUNCTION"):
            find_entry(name)
    with pytest.raises(ConfigError) as caught:
        find_entry("greenness")
    assert "write" not in str(caught.value)
