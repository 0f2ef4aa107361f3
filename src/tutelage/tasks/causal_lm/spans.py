"""Tokens of two tokenizers over one text, grouped into the shortest spans that both write whole.

Tokens are compared by their bytes, so a letter may lie in several of them. Covers tokenizers whose
tokens are bytes (`ByteLevel`: GPT-2, Llama 3, Qwen) or pieces with bytes for what is not known
(`ByteFallback`: Llama 2, Gemma). Does not cover those that lose something of a text (WordPiece).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tutelage.errors import DataError

_SPACE = "\u2581"  # what stands for a space in pieces
_MOST_CUT = 4  # tokens at an edge that may hold parts of a letter


def bytes_of_tokens(tokenizer: Any) -> list[bytes | None]:
    """Return what each token writes, by its id; None for special tokens and unused ids.

    `tokenizer` is a fast one of transformers. Raises `DataError` for one that is not covered.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = set(_kinds(data.get("decoder")))
    if not kinds & {"ByteLevel", "ByteFallback"}:
        raise DataError(
            "what each token of this tokenizer writes cannot be told as bytes; take a model whose "
            "tokenizer knows bytes, or falls back to them (Llama, Qwen, Gemma, SmolLM)"
        )
    by_byte, letters = "ByteLevel" in kinds, _byte_letters()
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    found: list[bytes | None] = [None] * (1 + max(vocabulary.values(), default=-1))
    for token, number in vocabulary.items():
        if number in added:
            found[number] = None if added[number].special else token.encode()
        elif by_byte:
            found[number] = bytes(letters[letter] for letter in token)
        else:
            found[number] = _of_piece(token)
    return found


def _kinds(part: Any) -> list[str]:
    """Return the types of a tokenizer's decoder and of those inside it."""
    if not isinstance(part, dict):
        return []
    return [part["type"], *(kind for one in part.get("decoders", ()) for kind in _kinds(one))]


def _of_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode()


def _byte_letters() -> dict[str, int]:
    """Return which byte a letter of byte-level tokens stands for (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


def readable(pieces: Sequence[bytes]) -> tuple[int, int, str] | None:
    """Return from and up to which token whole letters are written, and the text; None: no text.

    A window may begin or end within a letter.
    """
    first = 0
    while first < len(pieces) and pieces[first][:1] and pieces[first][0] & 0xC0 == 0x80:
        first += 1
    for last in range(len(pieces), max(first, len(pieces) - _MOST_CUT), -1):
        try:
            return first, last, b"".join(pieces[first:last]).decode()
        except UnicodeDecodeError:
            continue
    return None


def aligned(student: Sequence[bytes], teacher: Sequence[bytes]) -> Int[np.ndarray, "spans 4"]:
    """Return the shortest spans of equal text: from and up to which token of each, in order.

    A space that a tokenizer puts before a text is left out. No spans where the texts differ, as
    they do where a tokenizer changes letters.
    """
    one, other = b"".join(student), b"".join(teacher)
    if other == b" " + one:
        teacher, other = [teacher[0][1:], *teacher[1:]], one
    elif one == b" " + other:
        student, one = [student[0][1:], *student[1:]], other
    if one != other or not one:
        return np.zeros((0, 4), np.int64)
    ends = [np.cumsum([len(piece) for piece in pieces]) for pieces in (student, teacher)]
    shared = np.intersect1d(ends[0], ends[1])
    shared = shared[shared > 0]
    stops = [np.searchsorted(end, shared, side="right") for end in ends]
    starts = [np.concatenate([[0], stop[:-1]]) for stop in stops]
    return np.stack([starts[0], stops[0], starts[1], stops[1]], axis=1)
