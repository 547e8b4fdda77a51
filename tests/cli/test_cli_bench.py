"""`rlcm bench`, and the memory budget of the commands that sample and train."""

import pytest
from command_line import refuse, succeed, write_settings

from rlcm_cli.cli.bench import parse_batches, rate_text
from rlcm_cli.errors import ConfigError, ModelError

QUICK = ("--seconds", "0", "--batch", "1,2", "--steps", "2", "--device", "cpu")


def test_a_model_is_measured(capsys, tiny_lcm):
    outcome = succeed(capsys, "bench", "--model", tiny_lcm, *QUICK, "--task", "compression", "--task", "aesthetic")
    for words in (
        "images sampled, 2 calls",
        "images decoded",
        "transitions trained",
        "images scored",
        "reward: compressibility",
        "of the peak",
        "of the clip range 1e-04",
        "compression: 16,000 images, 16,000 transitions: about",
        "aesthetic: 32,000 images",
        "suggested settings: --set sample.batch_size=",
        " --set runtime.micro_batch_size=",
    ):
        assert words in outcome.out, words


@pytest.mark.parametrize(("rate", "text"), [(4876.2, "4,876"), (123.4, "123"), (99.94, "99.9"), (0.0456, "0.0456")])
def test_a_rate_has_three_digits_and_no_exponent(rate, text):
    assert rate_text(rate) == text


def test_the_machine_s_line_holds_everything(capsys, tiny_lcm):
    outcome = succeed(
        capsys, "bench", "--model", tiny_lcm, *QUICK, "--size", "32", "--memory-budget", "1GB", "--json", "-q"
    )
    found = outcome.json_line()
    assert outcome.err == ""
    assert (found["image_size"], found["steps"], found["dtype"]) == ([32, 32], 2, "float32")
    assert [row["batch"] for row in found["training"]] == [1, 2]
    assert found["fit"]["micro_batch_size"] == 64
    assert found["fit"]["measured"] is False
    assert {"call", "decode", "transition"} == set(found["flops"])
    assert found["projections"][0]["work"] == {"images": 16000, "calls": 2, "transitions": 16000}
    assert set(found["suggestions"]) == {"sample.batch_size", "runtime.micro_batch_size"}


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (ModelError, ["--architecture", "sd16"], ("unknown architecture 'sd16'", "sd15-lcm")),
        (ConfigError, ["--architecture", "sd15", "--model", "x"], ("--model and --architecture",)),
        (ConfigError, ["--batch", "1,two"], ("--batch 1,two", "1,2,4,8")),
        (ConfigError, ["--batch", "0"], ("--batch 0",)),
        (ConfigError, ["--memory-budget", "lots"], ("'lots' is not a valid memory budget", "8GB")),
        (ConfigError, ["--reward", "diversity"], ("--reward diversity", "name another")),
        (ConfigError, ["--reward", "beauty"], ("no reward 'beauty'",)),
        (ConfigError, ["--task", "compresion"], ("did you mean 'compression'?",)),
        (ModelError, ["--size", "31"], ("images of 31 pixels", "multiples of")),
        (ConfigError, ["--memory-budget", "1MB"], ("memory_budget 0.00 GB", "give at least that")),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, error, arguments, words):
    refuse(capsys, error, "bench", *arguments, saying=words)


def test_batch_sizes_are_read():
    assert parse_batches(None) is None
    assert parse_batches("1, 2,8") == [1, 2, 8]


# The commands that take a budget


def test_a_run_is_fitted_to_a_budget_and_says_so(capsys, tiny_lcm, tmp_path):
    settings = write_settings(tmp_path, tiny_lcm)
    outcome = succeed(
        capsys, "loop", "--config", settings, "--run", tmp_path / "run", "--memory-budget", "1GB", "--json"
    )
    assert "memory budget 1GB: 2 images at once: 0.00 GB; micro-batch 64: 0.03 GB" in outcome.err
    summary = outcome.json_line()
    assert summary["training_fit"]["micro_batch_size"] == 64
    assert summary["sampling_fit"]["decode_slicing"] is False


def test_a_budget_may_change_between_the_phases_of_a_run(capsys, tiny_lcm, tmp_path):
    settings, run = write_settings(tmp_path, tiny_lcm), tmp_path / "run"
    succeed(capsys, "sample", "--config", settings, "--run", run)
    succeed(capsys, "score", "--run", run)
    line = refuse(capsys, ConfigError, "train", "--run", run, "--memory-budget", "0.1MB", saying=("takes 0.00 GB",))
    assert "\n" not in line
    outcome = succeed(capsys, "train", "--run", run, "--memory-budget", "500MB")
    assert "memory budget 500MB: micro-batch 64: 0.03 GB" in outcome.out
    assert "images at once" in succeed(capsys, "sample", "--run", run, "--memory-budget", "1GB").out


def test_a_refused_budget_leaves_no_run(capsys, tiny_lcm, tmp_path):
    settings, run = write_settings(tmp_path, tiny_lcm), tmp_path / "run"
    refuse(
        capsys,
        ConfigError,
        *("loop", "--config", settings, "--run", run, "--memory-budget", "0.1MB"),
        saying=("memory_budget", "one image at a time", "give at least that"),
    )
    assert not run.exists()
