"""Tokens of texts: no more of a long one is given to a tokenizer than a network can read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_AT_ONCE = 1 << 20  # characters given to the tokenizer at once
_CHARACTERS = 6  # given for each token that is wanted, at first; then four times as many
_SPARE = 8  # tokens beyond those wanted: the last may differ from the whole text's
_BLANK = re.compile(r"\s")


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Int[np.ndarray, " t"]]:
    """Yield the ids of each text, special tokens included; memory is bounded by characters."""
    start, held = 0, 0
    for i, text in enumerate(texts):
        held += len(text)
        if held > _MOST_AT_ONCE or i == len(texts) - 1:
            for found in tokenizer.encode_batch_fast(list(texts[start : i + 1])):
                yield np.array(found.ids, np.int64)
            start, held = i + 1, 0


def encode_starts(
    tokenizer: Tokenizer, texts: Sequence[str], most: int
) -> Iterator[tuple[Int[np.ndarray, " t"], int]]:
    """Yield the ids of each text's start, and how many characters that start has.

    It is the whole text, or has more than `most` tokens and ends before white space: tokenizers
    that part words tell its first `most` tokens as they would in the whole.
    """
    found: list[tuple[Int[np.ndarray, " t"], int]] = [(np.zeros(0, np.int64), 0)] * len(texts)
    todo, size = list(range(len(texts))), _CHARACTERS * most
    while todo:
        starts = [_start(texts[i], size) for i in todo]
        for i, start, ids in zip(todo, starts, encode(tokenizer, starts), strict=True):
            found[i] = ids, len(start)
        todo = [
            i for i in todo if len(found[i][0]) <= most + _SPARE and found[i][1] < len(texts[i])
        ]
        size *= 4
    yield from found


def _start(text: str, size: int) -> str:
    blank = _BLANK.search(text, size) if len(text) > size else None
    return text if blank is None else text[: blank.start()]
