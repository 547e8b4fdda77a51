"""What others read tells no folder, user, address or secret, whichever setting holds it and in whatever form."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from reported_runs import write_reported

from rlcm_cli.report.compare.runs import group_runs, open_compared
from rlcm_cli.report.html.page import render_report
from rlcm_cli.report.private import name_reward, withhold_sentence, withhold_text
from rlcm_cli.report.run.card import CardSubject, render_card
from rlcm_cli.report.run.data import read_run
from rlcm_cli.report.trackers import flatten_settings

MARK = "annmarked"
CHOICES = re.compile(
    r"^(lcm|float32|mean|sum|ppo|none|constant|adam|diffusers|trailing|leading|lora|full|prompt|auto|compression|normalised)$"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("csv:/home/ann/p.csv:caption", "csv:…/p.csv:caption"),
        ("jsonl:/home/ann/p.jsonl:text", "jsonl:…/p.jsonl:text"),
        ("parquet:~/data/p.parquet:text", "parquet:…/p.parquet:text"),
        ("hf:/home/ann/data:text", "hf:…/data:text"),
        ("csv:../ann/p.csv:caption", "csv:…/p.csv:caption"),
        ("csv:./p.csv:caption", "csv:…/p.csv:caption"),
        ("data/../../ann/p.csv", "…/p.csv"),
        ("csv:C:\\Users\\ann\\p.csv:caption", "csv:…/p.csv:caption"),
        ("csv:\\\\machine\\ann\\p.csv:caption", "csv:…/p.csv:caption"),
        ("//machine/ann/p.csv", "…/p.csv"),
        ("csv:/home/ann smith/my prompts.csv:caption", "csv:…/my prompts.csv:caption"),
        ("file=/home/ann/[a]/*.png", "file=…/*.png"),
        ("csv:s3://ann:key@bucket/p.csv:caption", "csv:server (address withheld)"),
        ("/home/ann", "…"),
        ("hf:/home/ann/", "hf:…"),
        ("~ann", "…"),
        ("C:\\Users\\ann", "…"),
        ("hf:OWNER/NAME:COLUMN", "hf:OWNER/NAME:COLUMN"),
        ("captions.csv:text", "captions.csv:text"),
        ("csv:data/captions.csv:text", "csv:data/captions.csv:text"),
        ("is this {prompt}? yes/no", "is this {prompt}? yes/no"),
    ],
)
def test_a_path_loses_its_folders_wherever_it_begins(text, shown):
    assert withhold_text(text) == shown


def test_the_home_of_this_machine_is_withheld_wherever_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/Ann Smith")
    assert withhold_text("hf:/data/people/Ann Smith:text".removesuffix(":text")) == "hf:…"
    line = "/data/people/Ann Smith/run/metrics/000002.json: is damaged"
    assert withhold_sentence(line) == "…/000002.json: is damaged"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("'/home/ann/a.json' and /home/ann/b.json: gone", "'…/a.json' and …/b.json: gone"),
        ("run/rollouts/000001/manifest.json: is damaged", "run/rollouts/000001/manifest.json: is damaged"),
        ("asked http://ann@host:80/x, no answer", "asked server (address withheld) no answer"),
        ("12 images/s, cat / dog", "12 images/s, cat / dog"),
    ],
)
def test_a_line_of_text_loses_its_folders(line, shown):
    assert withhold_sentence(line) == shown


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        ("compressibility", "compressibility"),
        ("C:\\Users\\ann\\mine.py:score", "mine.py:score"),
        ("rewards/mine.py:score", "mine.py:score"),
        ("http://ann:pw@host:8000/hps_v2?key=1", "hps_v2 (served)"),
        ("http://a:1/vqa,http://b:1/vqa", "vqa (served)"),
        ("http://host:8000", "served reward"),
    ],
)
def test_a_reward_is_named_without_where_it_is(reward, name):
    assert name_reward(reward) == name


def put_everywhere(value: Any, path: str, key: str = "") -> Any:
    """Put a path into every setting that holds a free text, or could; of a section without checking it."""
    if isinstance(value, BaseModel):
        held = {name: getattr(value, name) for name in type(value).model_fields}
        return value.model_copy(update={name: put_everywhere(item, path, name) for name, item in held.items()})
    if isinstance(value, dict):
        changed = {name: put_everywhere(item, path, name) for name, item in value.items()}
        return changed | ({f"{path}.py:neat": 1.0} if key == "rewards" else {})
    if isinstance(value, tuple) and key not in {"rewards", "log_with"}:
        return (*(put_everywhere(item, path) for item in value), path)
    if value is None:
        return path if key in {"revision", "distilled_lora", "source", "start", "memory_budget", "address"} else None
    return path if isinstance(value, str) and not CHOICES.match(value) else value


@pytest.mark.parametrize("form", ["{}", "csv:{}:caption", "hf:{}", "jsonl:{}/my texts.jsonl:text", "file={}"])
@pytest.mark.parametrize("home", [f"/home/{MARK}", f"/data/{MARK}", f"C:\\Users\\{MARK}", f"~{MARK}"])
def test_no_setting_tells_a_home_in_report_card_or_tracker(tmp_path, monkeypatch, home, form):
    monkeypatch.setenv("HOME", home)
    layout = write_reported(tmp_path / "run", iterations=2, rollouts=1, checkpoints=(0, 2))
    layout.metrics(2).with_name("000003.json").write_text("{", encoding="utf-8")  # a fault that names a path
    opened = open_compared(layout.root, "run")
    path = form.format(f"{home}/models/lcm")
    config = put_everywhere(opened.config, path)
    alarms = {f"{path}.py:neat": f"the monitored reward '{path}.py:neat' fell; see {home}/run"}
    read = replace(read_run(opened, "run"), alarms=alarms)
    data = replace(read, run=replace(opened, run=replace(opened.run, config=config)))
    assert path in config.prompts.source
    assert MARK not in render_report([data], "")
    assert MARK not in render_card(subject_of(path), data, {})
    assert MARK not in repr(flatten_settings(config.model_dump(mode="json")))
    assert str(tmp_path) not in render_report([data], "")


def subject_of(distilled_lora: str) -> CardSubject:
    return CardSubject(
        title="a LoRA",
        format="diffusers",
        weights="a.safetensors",
        repository=None,
        base="lcm",
        base_is="folder",
        revision=None,
        distilled_lora=distilled_lora,
        licence=None,
        licence_name=None,
        licence_link=None,
        pipeline="LatentConsistencyModelPipeline",
        scheduler="LCMScheduler",
        scheduler_settings={},
        arguments={},
        prompt="cat",
        checkpoint=2,
        average=False,
        verification="equal",
        guided_by_embedding=True,
        loads_in_diffusers=True,
        absent=(),
        comfyui={},
    )


def test_a_comparison_of_runs_in_a_home_does_not_name_it(tmp_path, monkeypatch):
    from compared_runs import write_run

    home = tmp_path / MARK
    monkeypatch.setenv("HOME", str(home))
    runs = [write_run(home / name, [0.0, 1.0], seed=seed) for seed, name in enumerate("12")]
    assert list(group_runs([open_compared(Path(run)) for run in runs])) == ["runs"]
