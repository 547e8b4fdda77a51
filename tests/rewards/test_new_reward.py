"""A reward is one file: put into a copy of the package, it is listed, configured, trained for and evaluated."""

from __future__ import annotations

import json

import pytest
from package_copy import extend_program

REWARD = '''
"""How much of the picture is red, by a scale that a folder of weights holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def redness(model: Path, least: float) -> RewardFn:
    """Make the reward for red pictures: the share of pixels whose red is at least `least`."""
    scale = float((model / "scale.txt").read_text())

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        return scale * (images[:, 0] >= 255 * least).float().mean((1, 2))

    return score


def _check(settings: Settings) -> None:
    if not 0 <= settings["least"] <= 1:
        raise ConfigError(f"reward 'redness': least {settings['least']!r} must be a number from 0 to 1")


ENTRIES = {
    "redness": RewardEntry(
        redness,
        description="red: the share of red pixels",
        value_range="0 to 1",
        bounds=(0.0, 1.0),
        weights={"model": Weights("ann/red-scale", ("scale.txt",), "1 kB")},
        settings={"least": 0.5},
        check=_check,
    )
}
'''
SETTINGS = """
task = "compression"
[model]
name = "emoji-diffusion"
[sample]
samples = 2
batch_size = 2
steps = 3
[train]
minibatch_size = 2
[evaluate]
prompts = 1
images_per_prompt = 1
[runtime]
iterations = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def rlcm(tmp_path_factory):
    """Run the program of a copy of the package, every room as it is but for one new file."""
    return extend_program(tmp_path_factory.mktemp("copy"), {"rewards/redness.py": REWARD})


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "scale.txt").write_text("0.25")
    return folder


def test_a_new_reward_is_trained_for_and_evaluated(rlcm, tmp_path, weights):
    settings, run = tmp_path / "settings.toml", tmp_path / "run"
    settings.write_text(SETTINGS)
    chosen = ["--reward", "redness", "--set", f"reward_settings.redness.model={weights}"]
    rlcm("loop", "--config", settings, "--run", run, *chosen, "--set", "reward_settings.redness.least=0.25", "-q")
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["rewards"] == {"redness": 1.0}
    assert config["reward_settings"] == {"redness": {"model": str(weights), "least": 0.25}}
    assert (run / "checkpoints" / "000001").is_dir()
    (folder,) = (run / "rollouts" / "000000" / "rewards").iterdir()
    assert folder.name.startswith("redness-")


def test_what_is_missing_and_what_is_wrong_follows_from_the_declaration(rlcm, weights):
    (shown,) = json.loads(rlcm("rewards", "redness", "--json"))["rewards"]
    assert shown["needs"] == "ann/red-scale (1 kB)"
    assert shown["settings"] == {"model": "ann/red-scale", "least": 0.5}
    advice = "run `hf download ann/red-scale --include 'scale.txt' --local-dir DIR` (1 kB), bring DIR here, and --set "
    assert f"{advice}reward_settings.redness.model=DIR" in shown["here now"]
    assert "redness" in rlcm("rewards")
