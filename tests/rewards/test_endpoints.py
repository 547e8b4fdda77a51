"""The address of a judge, from its settings or from the environment."""

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.judges import JudgeSettings
from rlcm_cli.rewards.judges._endpoint import find_address_fault, find_endpoint, find_missing_endpoint


def test_the_setting_precedes_the_environment(monkeypatch):
    monkeypatch.setenv("RLCM_JUDGE_ENDPOINT", "http://b/v1/")
    assert find_endpoint(JudgeSettings(endpoint="http://a/v1/"), "vqa") == "http://a/v1"
    assert find_endpoint(JudgeSettings(), "vqa") == "http://b/v1"


def test_a_wrong_address_in_the_environment_is_not_repeated(monkeypatch):
    monkeypatch.setenv("RLCM_JUDGE_ENDPOINT", "http://me:hunter2@a")
    with pytest.raises(ConfigError, match="reward 'vqa': RLCM_JUDGE_ENDPOINT must be an address") as caught:
        find_endpoint(JudgeSettings(), "vqa")
    assert "hunter2" not in str(caught.value)


def test_a_missing_address_says_how_to_set_it(monkeypatch):
    monkeypatch.delenv("RLCM_JUDGE_ENDPOINT", raising=False)
    missing = find_missing_endpoint(JudgeSettings(), "vqa", example="http://h:1")
    assert missing.endswith("RLCM_JUDGE_ENDPOINT=http://h:1 or --set reward_settings.vqa.endpoint=http://h:1")
    assert find_missing_endpoint(JudgeSettings(endpoint="http://a"), "vqa", example="") is None


@pytest.mark.parametrize(
    ("address", "right"), [("https://a:1/v1", True), ("a", False), (3, False), ("http://é", False)]
)
def test_what_an_address_is(address, right):
    assert (find_address_fault(address, "endpoint") is None) is right
