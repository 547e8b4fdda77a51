"""The samplers as the rest of the program meets them: found in their folder, and named nowhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlcm_cli
from rlcm_cli.config import resolve_config
from rlcm_cli.discovery import list_kinds
from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import SAMPLERS, find_owners, find_sampler, read_setting
from rlcm_cli.samplers.ddim import DdimSettings

PACKAGE = Path(rlcm_cli.__file__).parent


def test_the_kinds_that_a_help_text_lists_are_those_that_there_are():
    assert list_kinds([str(PACKAGE / "samplers")]) == list(SAMPLERS)


def test_neither_samplers_nor_configuration_import_torch():
    check = "import sys; import rlcm_cli.config, rlcm_cli.samplers, rlcm_cli.models.parts; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout.split()
    assert "rlcm_cli.samplers.lcm" in loaded
    assert not {"torch", "diffusers", "transformers", "numpy"} & set(loaded)


def test_an_unknown_sampler_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"no sampler 'lmc' \(did you mean 'lcm'\?\); the samplers are .*ddim"):
        find_sampler("lmc")


def test_a_setting_knows_its_samplers():
    assert find_owners("original_steps") == ["lcm", "tcd"]
    assert find_owners("eta") == ["ddim", "euler", "flow", "lcm", "scm"]
    assert find_owners("kind") == []


@pytest.mark.parametrize(
    ("text", "value"), [("4", 4), (".5", 0.5), ("1e-3", 1e-3), ("strided", "strided"), ("nan", "nan"), ("inf", "inf")]
)
def test_a_setting_is_read_as_it_is_typed(text, value):
    assert read_setting(text) == value
    assert type(read_setting(text)) is type(value)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (
            ["sampler.gamma=1"],
            "unknown key 'sampler.gamma' of the kind 'lcm': it belongs to 'tcd'; leave it out, or",
        ),
        (["sampler.kind=tcd", "sampler.gama=1"], r"unknown key 'sampler.gama' \(did you mean 'sampler.gamma'\?\)"),
        (["sampler.kind=lmc"], r"'sampler.kind' is \"lmc\": input should be .*'lcm'.* \(did you mean"),
        (["sample.eta=1"], r"unknown key 'sample.eta' \(did you mean 'sampler.eta'\?\)"),
        (["sampler=lcm"], "'sampler' is \"lcm\": input should be an object"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(assignments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        resolve_config(["compression"], assignments=assignments)
    assert "\n" not in str(caught.value)


def test_another_kind_drops_the_settings_of_the_one_below(tmp_path):
    settings = tmp_path / "mine.toml"
    settings.write_text('[sampler]\nkind = "tcd"\ngamma = 0.5\n')
    assert resolve_config(["rebel-aesthetic"], config_file=settings).sampler.model_dump() == {
        "kind": "tcd",
        "spacing": "diffusers",
        "original_steps": 50,
        "timesteps": None,
        "gamma": 0.5,
    }
    given = ["sampler.eta=0.5", "sampler.kind=ddim"]
    assert resolve_config(["compression"], assignments=given).sampler == DdimSettings(eta=0.5)
    kept = resolve_config(["compression"], assignments=["sampler.spacing=strided"], flags={"sampler.kind": "lcm"})
    assert kept.sampler.model_dump()["spacing"] == "strided"


def test_no_other_room_compares_the_name_of_a_sampler():
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.is_relative_to(PACKAGE / "samplers"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            compared = []
            if isinstance(node, ast.Compare):
                compared = list(ast.walk(node))
            elif isinstance(node, ast.Dict):
                compared = [key for key in node.keys if key is not None]
            elif isinstance(node, ast.Subscript):
                compared = [node.slice]
            elif isinstance(node, ast.MatchValue):
                compared = [node.value]
            found += [
                f"{file.relative_to(PACKAGE)}:{node.lineno}"
                for part in compared
                if isinstance(part, ast.Constant) and part.value in SAMPLERS
            ]
    assert found == []
