"""Other people's words, made fit for a message of ours."""

import pytest

from rlcm_cli.rewards.http.quoting import LONGEST, quote_foreign


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        (" two\n lines\t", "two lines"),
        ("\x1b[2J red \u202e", "\ufffd[2J red \ufffd"),
        ("\ud800", "\ufffd"),
        ("x" * 400, "x" * (LONGEST - 1) + "…"),
    ],
)
def test_it_is_one_short_line(text, shown):
    assert quote_foreign(text) == shown


def test_a_secret_is_hidden_before_anything_is_cut():
    assert quote_foreign("key s3cret s3cret", secret="s3cret", longest=8) == "key ***…"  # noqa: S106
    assert "s3c" not in quote_foreign("x" * 95 + "s3cret" * 1000, secret="s3cret", longest=100)  # noqa: S106
