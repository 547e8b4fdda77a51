"""The prompt sets that papers report, in the layouts in which they are published; the prompts here are made up."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import FakeHub, reached

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts import load_prompts
from rlcm_cli.prompts.named_sets import NAMED_SETS, read_named, split_name

QUOTED = '"O P E N" on a door'
"""Begins with a quotation mark and ends without one, as a prompt of PartiPrompts does: it is not quoted as CSV is."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with reached(monkeypatch, tmp_path / "cache") as served:
        yield served


def write_parquet(**columns) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def write_lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PUBLISHED = {
    "drawbench": ({"benchmark/drawbench.json": b'["a red car", "a cat"]'}, ["a red car", "a cat"]),
    "parti_prompts": (
        {
            "PartiPrompts.tsv": f"Prompt\tCategory\tChallenge\tNote\na cat \tAnimals\tBasic\t\n{QUOTED}\tArts\t"
            "Complex\tseen\n".encode()
        },
        ["a cat", QUOTED],
    ),
    "geneval": (
        {
            "prompts/evaluation_metadata.jsonl": write_lines(
                {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of one cow"}
            )
        },
        ["a photo of one cow"],
    ),
    "geneval2": (
        {
            "geneval2_data.jsonl": write_lines(
                {"prompt": "two cats", "atom_count": 2, "vqa_list": [["How many cats?", "two"]], "skills": ["count"]}
            )
        },
        ["two cats"],
    ),
    "ocr": (
        {"dataset/ocr/test.txt": b'A sign that says "Open"\n#1 on a shirt'},
        ['A sign that says "Open"', "#1 on a shirt"],
    ),
    "hpd_v2": (
        {
            f"benchmark/{style}.json": json.dumps([f"{style} one", f"{style} two"]).encode()
            for style in ("anime", "concept-art", "paintings", "photo")
        },
        [f"{style} {n}" for style in ("anime", "concept-art", "paintings", "photo") for n in ("one", "two")],
    ),
    "pick_a_pic": (
        {
            "data/test_unique-00000-of-00001-c163d5839d8aed9f.parquet": write_parquet(
                caption=["a dog", "a hat"], label_0=[1.0, 0.5], image_0_uid=["x", "y"]
            )
        },
        ["a dog", "a hat"],
    ),
}


def test_every_set_is_tried_and_says_where_it_is_from():
    assert PUBLISHED.keys() == NAMED_SETS.keys()
    for found in NAMED_SETS.values():
        assert found.licence in found.describe()
        assert found.source.startswith("https://")
        assert bool(found.repository) != bool(found.address)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_copy_of_the_repository_or_of_its_files_is_read(tmp_path, name):
    files, prompts = PUBLISHED[name]
    for folder, flat in (("whole", False), ("flat", True)):
        for file, data in files.items():
            path = tmp_path / folder / (file.rpartition("/")[2] if flat else file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        assert list(load_prompts(f"{name}:{tmp_path / folder}")) == prompts
    if len(files) == 1:
        assert [prompt.strip() for prompt in read_named(name, path)] == prompts


@pytest.mark.parametrize("name", [name for name, found in NAMED_SETS.items() if found.repository])
def test_the_hub_is_asked_for_these_files_only(hub: FakeHub, name):
    files, prompts = PUBLISHED[name]
    other = {"train.tar.gz": b"x", "data/train-00000-of-00001.parquet": b"x"}
    hub.add(f"datasets/{NAMED_SETS[name].repository}", files={**files, **other})
    assert list(load_prompts(name)) == prompts
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == set(files)


def test_a_spreadsheet_of_drawbench_is_read_too(tmp_path):
    (tmp_path / "drawbench.csv").write_text('Prompts,Category\n"a cat, red",Colors\n', encoding="utf-8")
    assert load_prompts(f"drawbench:{tmp_path / 'drawbench.csv'}") == ("a cat, red",)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("geneval", r"is on no hub; download https://raw.*evaluation_metadata.jsonl and write geneval:PATH"),
        ("drawbench:nowhere", r"there is no such file or folder; name a copy of benchmark/drawbench.json"),
        ("drawbench:.", r"the folder lacks benchmark/drawbench.json"),
        ("drawbnch", r"a named set \(drawbench, parti_prompts, .*did you mean 'drawbench'\?"),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(tmp_path, monkeypatch, source, fault):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=fault):
        load_prompts(source)


def test_a_hub_that_does_not_give_a_set_is_told(hub: FakeHub):
    with pytest.raises(ConfigError, match=r"prompts 'drawbench': the hub has no repository .* write drawbench:PATH"):
        load_prompts("drawbench")


@pytest.mark.parametrize(
    ("file", "data", "fault"),
    [
        ("x.json", b'{"a": 1}', "holds no array of prompts"),
        ("x.tsv", b"Other\tB\na\tb\n", "there is no column 'Prompt'"),
        ("x.tsv", b"A\tPrompt\na\n", r"line 2: there is nothing in column 'Prompt'"),
        ("x.xlsx", b"", "is none of the set's files"),
    ],
)
def test_another_file_is_refused(tmp_path, file, data, fault):
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ConfigError, match=fault):
        load_prompts(f"parti_prompts:{tmp_path / file}")


def test_a_name_may_have_a_path_behind_it():
    assert split_name("ocr") == ("ocr", None)
    name, path = split_name(r"ocr:C:\x.txt")
    assert (name, str(path)) == ("ocr", r"C:\x.txt")
    assert split_name("csv:a.csv:b") is None
    assert split_name("ocr:") is None
