import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards import REWARDS, RewardSpec, load_reward


def test_the_known_rewards_describe_themselves():
    assert list(REWARDS) == ["compressibility", "incompressibility", "recognition"]
    for entry in REWARDS.values():
        assert "\n" not in entry.description
        assert entry.value_range
        assert entry.needs


@pytest.mark.parametrize("act", [load_reward, lambda spec: spec.directory])
def test_an_unknown_reward_names_the_known_and_the_nearest(act):
    with pytest.raises(ConfigError) as caught:
        act(RewardSpec("compresibility"))
    message = str(caught.value)
    assert "no reward 'compresibility'" in message
    assert "did you mean 'compressibility'?" in message
    assert "known rewards: compressibility, incompressibility, recognition" in message


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
    entry = replace(REWARDS["compressibility"], defaults={"a": 1, "b": 2})
    monkeypatch.setitem(REWARDS, "compressibility", entry)
    specs = [RewardSpec("compressibility", settings) for settings in ({}, {"b": 2, "a": 1}, {"b": 3})]
    assert specs[0].digest == specs[1].digest != specs[2].digest


@pytest.mark.parametrize(
    ("name", "slug"), [("recognition", "recognition"), ("My Reward: v2/α", "my-reward-v2"), ("../up", "up")]
)
def test_slugs_are_safe_on_every_file_system(name, slug):
    assert RewardSpec(name).slug == slug


def test_importing_rewards_and_prompts_loads_no_torch():
    code = (
        "import sys, rlcm_cli.rewards, rlcm_cli.prompts;"
        "print(sorted({'torch', 'transformers', 'datasets', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
