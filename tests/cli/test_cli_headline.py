"""The lines that tell what a run is trained for."""

from __future__ import annotations

import pytest
from command_line import refuse, succeed, write_settings

from rlcm_cli.cli.headline import describe_dropped, describe_goal, describe_sampling, describe_sum, shorten_names
from rlcm_cli.config import parse_config, resolve_config
from rlcm_cli.errors import ConfigError

FILE = "/home/me/mine.py:redness"


@pytest.mark.parametrize(
    ("rewards", "text"),
    [
        ({"a": 1.0}, "a"),
        ({"a": 1.0, "b": 2.0, "c": -0.5, "d": -1.0}, "a + 2 × b − 0.5 × c − d"),
        ({"a": -1.0, FILE: 1e-05}, "−a + 1e-05 × redness"),
    ],
)
def test_rewards_as_a_sum(rewards, text):
    assert describe_sum(rewards) == text


def test_the_goal_of_a_run():
    values = {"rewards": {"compressibility": 1.0, "recognition": 2.0}, "monitor": {"rewards": [FILE]}}
    values |= {"sample": {"samples": 64}, "runtime": {"iterations": 1}, "objective": {"kind": "rwr"}}
    assert describe_goal(parse_config({"task": "t", **values})) == (
        "trained for compressibility + 2 × recognition; objective rwr; 64 images × 1 iteration; monitoring redness"
    )
    joint = resolve_config(["compression", "incompression"])
    assert describe_goal(joint).startswith(
        "trained for compression (compressibility + 2 × recognition), incompression ("
    )


def test_how_images_are_sampled_and_what_is_trained():
    few = {"sampler.kind": "euler", "sampler.eta": 0.5, "sample.steps": 1, "model.image_size": "512x768"}
    config = resolve_config(["compression"], flags=few)
    rank = config.lora.rank
    assert describe_sampling(config, None) == (
        f"sampler euler (eta 0.5), 1 step, guidance 4, 512×768 pixels; trained: a LoRA of rank {rank}"
    )
    config = resolve_config(["compression"], flags={"lora.target_modules": ["to_q", "to_v"]})
    assert describe_sampling(config, None).endswith(f"guidance 4; trained: a LoRA of rank {rank} on to_q, to_v")
    config = resolve_config(["compression"], flags={"train.parameters": "full"})
    assert describe_sampling(config, None).endswith("trained: all weights of the denoiser")


def test_rewards_of_the_preset_that_are_left_out_are_told():
    alone = resolve_config(["compression"], flags={"rewards": {"compressibility": 1.0}})
    assert describe_dropped(alone) == (
        "--reward replaces the rewards of the preset compression (compressibility + 2 × recognition); this run trains "
        "without recognition"
    )
    assert describe_dropped(resolve_config(["compression"])) is None
    both = {"compressibility": 3.0, "recognition": 1.0, "sharpness": 1.0}
    assert describe_dropped(resolve_config(["compression"], flags={"rewards": both})) is None
    assert describe_dropped(parse_config({"task": "mine", "rewards": {"sharpness": 1.0}})) is None


def test_short_names_stay_apart():
    names = [FILE, "/else/mine.py:redness", "https://host:1/a/ocr?x=1", "sharpness", "http://host", "x.py:"]
    assert list(shorten_names(names).values()) == [
        *names[:2],
        "ocr",
        "sharpness",
        "host",
        "x.py:",
    ]


def test_a_loop_opens_with_its_goal(capsys, tmp_path, tiny_lcm):
    settings = write_settings(tmp_path, tiny_lcm, runtime={"iterations": 1})
    asked = ["--config", settings, "--run", tmp_path / "run", "--reward", "sharpness"]
    shown = succeed(capsys, "loop", *asked).out
    assert "trained for sharpness; objective ppo; 4 images × 1 iteration\n" in shown
    assert (
        "replaces the rewards of the preset compression (compressibility); this run trains without compressibility"
        in shown
    )


@pytest.mark.parametrize(
    ("given", "saying"),
    [
        (["--on-hacking", "stop"], ("monitor.on_hacking is stop", "--monitor")),
        (["--monitor", "compressibility"], ("monitor.rewards has compressibility, which is trained on",)),
        (["--set", "monitor.rewards=['recognition', 'sharpness']"], ("monitor.rewards has recognition",)),
        (["--task", "incompression", "--monitor", "incompressibility"], ("monitor.rewards has incompressibility",)),
    ],
)
def test_options_that_contradict_each_other_are_refused(capsys, given, saying):
    refuse(capsys, ConfigError, "loop", "--task", "compression", "--dry-run", *given, saying=saying)
