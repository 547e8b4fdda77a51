"""Tokenizers without a vocabulary, which take all words for one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import CLIPTokenizer

from rlcm_cli.foreign.faults import ForeignError
from rlcm_cli.foreign.tokenizers import KNOWN_WORDS, check_vocabulary
from rlcm_cli.models.embedded import embedded_folder


class StandIn:
    """Gives words the ids of a table."""

    def __init__(self, ids: dict[str, list[int]]) -> None:
        self._ids = ids
        self.unk_token_id, self.all_special_ids = 3, [0, 1]

    def __call__(self, word: str) -> dict[str, list[int]]:
        return {"input_ids": [0, *self._ids[word], 1]}


def test_words_with_ids_of_their_own_pass():
    check_vocabulary(StandIn({"cat": [5], "dog": [6]}))
    check_vocabulary(StandIn({"cat": [5, 3], "dog": [5, 6]}))
    check_vocabulary(CLIPTokenizer.from_pretrained(embedded_folder("emoji-lcm") / "tokenizer"))


@pytest.mark.parametrize(
    "ids",
    [
        {"cat": [5], "dog": [5]},
        {"cat": [3], "dog": [3]},
        {"cat": [], "dog": []},
        {"cat": [5], "dog": [3]},
        {"cat": [3, 0], "dog": [6]},
    ],
)
def test_words_that_are_alike_or_unknown_are_refused(ids):
    with pytest.raises(ForeignError, match=r"^without a vocabulary: it does not tell 'cat' from 'dog'$"):
        check_vocabulary(StandIn(ids))


def test_a_tokenizer_without_an_unknown_token_is_checked_too():
    tokenizer = SimpleNamespace(unk_token_id=None, all_special_ids=[])
    same = type("Same", (), {"__call__": lambda self, word: {"input_ids": [7]}, **vars(tokenizer)})()
    with pytest.raises(ForeignError, match="without a vocabulary"):
        check_vocabulary(same)
    assert len(set(KNOWN_WORDS)) == len(KNOWN_WORDS)
