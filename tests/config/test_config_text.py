"""A configuration as a file: printed as TOML and read back, and files that cannot be read."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from rlcm_cli.config import Config, parse_config, resolve_config, task_names, task_text
from rlcm_cli.config.text import write_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.run import publish_config
from rlcm_cli.toml_files import has_byte_order_mark, parse_value, read_settings, write_key, write_value

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ODD = 'a "b" \\ \t\n\x01\x7f é λ 🙂'


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Writing


@pytest.mark.parametrize("model", [None, "SimianLuo/LCM_Dreamshaper_v7"])
@pytest.mark.parametrize("task", task_names())
def test_what_a_preset_prints_is_a_configuration_of_its_own(tmp_path, task, model):
    printed = write(tmp_path, task_text(task))
    flags = {"model.name": model}
    assert resolve_config([], config_file=printed, flags=flags) == resolve_config([task], flags=flags)


@pytest.mark.parametrize("tasks", [*([name] for name in task_names()), ["compression", "aesthetic"]])
def test_a_printed_configuration_is_read_back_as_it_was(tmp_path, tasks):
    resolved = resolve_config(tasks, flags={"seed": 7, "runtime.log_with": ["tensorboard"]})
    assert resolve_config([], config_file=write(tmp_path, write_config(resolved))) == resolved


def test_names_and_texts_that_toml_has_to_quote_are_read_back(tmp_path):
    names = ("http://127.0.0.1:8765/colourfulness", "/a b/é.py:fn", ODD)
    resolved = parse_config(
        {
            "task": "t",
            "rewards": dict.fromkeys(names, 1e-05),
            "prompts": {"source": ODD},
            "reward_settings": {names[0]: {"patience": 3600, "deep": {"list": [1, 2.5, True, "x"]}}},
        }
    )
    assert resolve_config([], config_file=write(tmp_path, write_config(resolved))) == resolved


def test_every_setting_is_printed_with_what_it_means():
    text = write_config(resolve_config(["compression"]))
    values = tomllib.loads(text)
    for section, field in Config.model_fields.items():
        settings = getattr(field.annotation, "model_fields", {})
        for name, setting in settings.items():
            assert name in values[section] or f"# {name} = (not set)" in text
            if setting.description:
                assert setting.description.split()[0] in text


def test_values_and_keys_as_toml():
    table = {"a": 1, "b c": [1e-05, True, "x"], "d": {}}
    assert tomllib.loads(f"v = {write_value(table)}")["v"] == table
    assert write_key("a", "b.c", "") == 'a."b.c".""'


# Reading


def test_the_settings_of_a_run_start_another(tmp_path):
    resolved = resolve_config(["compression", "aesthetic"], flags={"train.learning_rate": 0.5})
    publish_config(RunLayout(tmp_path / "run"), resolved.to_json(), {})
    for named in (tmp_path / "run", tmp_path / "run" / "config.json"):
        assert resolve_config([], config_file=named) == resolved
        assert resolve_config([], config_file=named, assignments=["seed=3"]).seed == 3
        with pytest.raises(ConfigError, match=r"is a whole configuration, of task compression\+aesthetic"):
            resolve_config(["incompression"], config_file=named)


def test_an_embedded_table_of_a_file_holds_for_the_embedded_model_only(tmp_path):
    over = write(tmp_path, 'task = "compression"\n[sample]\nsteps = 7\n[embedded.sample]\nsteps = 3\n')
    assert resolve_config([], config_file=over).sample.steps == 3
    assert resolve_config([], config_file=over, flags={"model.name": "a/b"}).sample.steps == 7
    with pytest.raises(ConfigError, match=r"'embedded' is 3, but it must be a table"):
        resolve_config(["compression"], config_file=write(tmp_path, "embedded = 3\n"))


@pytest.mark.parametrize("text", ["seed = 4\nevaluate.every = 2\n", "seed = 4\r\nevaluate.every = 2\r\n"])
@pytest.mark.parametrize("mark", [b"", BYTE_ORDER_MARK])
def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read(tmp_path, text, mark):
    path = write(tmp_path, mark + text.encode())
    assert read_settings(path) == {"seed": 4, "evaluate": {"every": 2}}
    assert has_byte_order_mark(path) == bool(mark)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed = 1".encode("utf-16"), r"not readable as TOML \(it is UTF-16 text; save it as UTF-8\)"),
        (b"\xff\xfe\x00\x00" + "seed = 1".encode("utf-32-le"), "it is UTF-32 text"),
        ("seed = 1".encode("utf-16-le"), "NUL bytes"),
        ("seed = 1".encode("utf-16-be"), "NUL bytes"),
        (b"seed = 1\n\x00", "NUL bytes"),
        (b"# fine\n# caf\xe9\n", "line 2 is not UTF-8"),
        (b"x" * (1 << 21), "larger than 1 MiB"),
        (f"x = {'[' * 5000}{']' * 5000}", "nested too deep"),
        (f"x = {'[' * 100}{']' * 100}", "nested too deep"),
        (f"{'.'.join('a' * 200)} = 1", "nested too deep"),
        (f"[{'.'.join('a' * 5000)}]", "nested too deep"),
        (f"seed = {'9' * 5000}", "not readable as TOML"),
        ('{"config": ' + '{"a":' * 5000 + "1" + "}" * 5001, "nested too deep"),
        ('{"config": {"seed": ' + "9" * 5000 + "}}", "not readable as JSON"),
        ('{"seed": 1}', "not the config.json of a run"),
        ("seed = ", "not readable as TOML"),
        ("seed = 1\nseed = 2", "not readable as TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=words) as refusal:
        resolve_config(["compression"], config_file=path)
    message = str(refusal.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_what_is_no_file_is_told_in_one_line(tmp_path):
    for path, words in (
        (tmp_path / "gone.toml", "no such file"),
        (tmp_path, "a directory without config.json"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_settings(path)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        (f"sample.steps={'[' * 5000}{']' * 5000}", "nested too deep"),
        (f"reward_settings.compressibility={'{a=' * 100}1{'}' * 100}", "nested too deep"),
        (f"seed={'9' * 5000}", "too many digits"),
        (f"seed={'9' * 4000}", "'seed' is 9999"),
        (f"{'a.' * 5000}b=1", "unknown key"),
        (f"{'a' * 5000}=1", "unknown key"),
        ("x" * 5000, "write key=value"),
        (f"sampler.spacing={'x' * 5000}", "'sampler.spacing' is"),
    ],
)
def test_a_setting_that_is_too_much_is_told_in_one_short_line(assignment, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        resolve_config(["compression"], assignments=[assignment])
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("a word", "a word"), ("[1, 2]", [1, 2]), ("1 # one", 1), ("", ""), ("x\n", "x")]
)
def test_a_value_is_toml_or_a_word(text, value):
    assert parse_value(text) == value


# Home folders


def test_a_tilde_is_the_home_folder_in_every_setting_that_can_be_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    over = write(tmp_path, '[prompts]\nsource = "~/prompts.txt"\n[rewards]\n"~/mine.py:fn" = 2.0\n')
    resolved = resolve_config(
        ["compression"],
        config_file=over,
        assignments=[
            "lora.start=~/a",
            "reward_settings={'~/mine.py:fn'={path='~/w'}}",
            "monitor.rewards=['~/b.py:g']",
        ],
        flags={"model.name": "~/models/lcm"},
    )
    assert resolved.model.name == "/homes/me/models/lcm"
    assert resolved.prompts.source == "/homes/me/prompts.txt"
    assert resolved.lora.start == "/homes/me/a"
    assert resolved.rewards == {"/homes/me/mine.py:fn": 2.0}
    assert resolved.reward_settings == {"/homes/me/mine.py:fn": {"path": "/homes/me/w"}}
    assert resolved.monitor.rewards == ("/homes/me/b.py:g",)
    assert "~" not in json.dumps(resolved.model_dump(mode="json"))
