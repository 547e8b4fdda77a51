"""Pieces of text: counted nouns, commands that a shell takes as they are, the home folder."""

from __future__ import annotations

import shlex

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import (
    command,
    count,
    expand_home,
    format_age,
    format_duration,
    format_gb,
    format_size,
    join_numbers,
    shorten,
    slug,
)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (12_345, "12,345 images")]
)
def test_a_noun_is_in_the_plural_unless_there_is_one(number, text):
    assert count(number, "image") == text


def test_a_plural_of_its_own():
    assert count(2, "batch", "batches") == "2 batches"


@pytest.mark.parametrize("path", ["runs/a", "my run", "it's", "$HOME", "a;b", 'two"quotes', "new\nline", "--odd", "é"])
def test_a_proposed_command_reaches_the_program_word_by_word(path):
    assert shlex.split(command("score", "--run", path)) == ["rlcm", "score", "--run", path]


def test_what_needs_no_quotes_has_none():
    assert command("sample", "--run", "s3://bucket/runs/a-1") == "rlcm sample --run s3://bucket/runs/a-1"


def test_the_home_folder_is_put_in_where_it_stands_first(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    for text, expanded in (
        ("~", "/homes/me"),
        ("~/runs/a", "/homes/me/runs/a"),
        ("~/mine.py:reward", "/homes/me/mine.py:reward"),
        ("runs/~/a", "runs/~/a"),
        ("a~", "a~"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
    ):
        assert expand_home(text) == expanded


def test_without_a_home_folder_no_folder_called_tilde_is_made(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"^~/runs: this user has no home folder"):
        expand_home("~/runs")


def test_a_long_text_loses_its_middle():
    text = shorten("[" * 5000 + "]")
    assert len(text) < 90
    assert text.startswith("[[[")
    assert text.endswith("[]")
    assert shorten("short") == "short"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (1.4, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (100_000, "27.8 h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0, 1"), ([0, 1, 2], "0 to 2"), ([1, 3, 4, 5, 9, 10], "1, 3 to 5, 9, 10")],
)
def test_numbers_in_a_row_are_named_by_their_ends(numbers, text):
    assert join_numbers(numbers) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5.0, "1 s ago"),  # by the clock of another machine
        (12.4, "12 s ago"),
        (172_799.0, "48.0 h ago"),
        (172_800.0, "2 days ago"),
        (260_000.0, "3 days ago"),
    ],
)
def test_an_age_has_days_from_two_on(seconds, text):
    assert format_age(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (13e6, "13 MB"),
        (2e9, "2 GB"),
        (3.25e12, "3.2 TB"),
    ],
)
def test_sizes(size, text):
    assert format_size(size) == text


def test_gigabytes_have_two_decimals():
    assert format_gb(1_234_000_000) == "1.23 GB"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A cat, on Green!", "a-cat-on-green"), ("…", ""), ("x" * 50, "x" * 40), ("-a-", "a")],
)
def test_slugs(text, expected):
    assert slug(text) == expected
