"""What is read of texts, and their second reading by a tokenizer with a pruned vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tutelage.errors import DataError
from tutelage.progress import Progress, track
from tutelage.tasks.text_encoding import encode
from tutelage.tasks.text_files import Findings, TextSource, rows
from tutelage.tasks.text_vocabulary import (
    Changed,
    Texts,
    Vocabulary,
    in_blocks,
    pack,
    prune,
    shorten,
    take_ids,
)

_MANY = 2_000  # texts; fewer are read at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Read:
    """What the first reading leaves of one source.

    Ids, how many tokens each text has (where they are too many, some number above what is wanted),
    in how many of its characters, hashes and labels.
    """

    source: TextSource
    ids: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " n+1"]
    counts: Int[np.ndarray, " n"]
    characters: Int[np.ndarray, " n"]
    keys: UInt64[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]


Packed = tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " n+1"]]
Part = tuple[Read, Bool[np.ndarray, " n"]]  # a split: what was read, and which rows of it


def read_rows(
    source: TextSource, findings: Findings, progress: Progress, count: int | None = None
) -> Iterator[tuple[str, Any]]:
    """`rows` of a source, under a bar where they are many; `count` of them, if that is known."""
    count = _expected(source) if count is None else count
    found = rows(source, findings)
    if count < _MANY:
        return found
    return track(found, count, f"Tokenising ({source.files[0].name})", progress)


def _expected(source: TextSource) -> int:
    """Return how many rows there are, or a few more; 0 for what `rows` will say cannot be read."""
    if source.form == "parquet":
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import read_metadata
        except ImportError:
            return 0
        try:
            return sum(read_metadata(file).num_rows for file in source.files)
        except (OSError, ArrowException):
            return 0
    count = 0
    try:
        for path in source.files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    count += block.count(b"\n")
    except OSError:
        return 0
    return count


def in_few_tokens(
    parts: dict[str, Part], whole: Vocabulary, length: int, notes: list[str], progress: Progress
) -> dict[str, Texts] | None:
    """Prune the vocabulary to the training texts and read all texts anew; None where it fails."""
    held, rows_ = parts["train"]
    train = np.flatnonzero(rows_)
    ids, offsets = take_ids(*shorten(held.ids, held.offsets, length, whole.tail), train)
    used = np.zeros(len(whole), np.bool_)
    used[ids] = True
    pruned = prune(whole, used)
    if pruned is not None:
        sources = {part.source.name: part for part, _ in parts.values()}
        read = {k: _second_reading(p, pruned, length, progress) for k, p in sources.items()}
        new, ends = take_ids(*read[held.source.name], train)
        if np.array_equal(ends, offsets) and np.array_equal(pruned.kept[new], ids):
            notes.append(f"the vocabulary is pruned from {len(whole):,} to {len(pruned):,} tokens")
            texts = {
                k: as_texts(read[p[0].source.name], p, pruned, length) for k, p in parts.items()
            }
            texts["validation"] = _compared(texts["validation"], parts["validation"], whole)
            return texts
    notes.append(f"the vocabulary is left whole ({len(whole):,} tokens): it cannot be pruned")
    return None


def _second_reading(held: Read, vocabulary: Vocabulary, length: int, progress: Progress) -> Packed:
    tokenizer, sizes = vocabulary.tokenizer(length), iter(held.characters.tolist())

    def tokens() -> Iterator[Int[np.ndarray, " t"]]:
        count = len(held.characters)
        for block in in_blocks(read_rows(held.source, Findings(), progress, count)):
            yield from encode(tokenizer, [text[: next(sizes, None)] for text, _ in block])

    ids, offsets = pack(tokens(), vocabulary)
    if len(offsets) != len(held.offsets):
        raise DataError(f"{held.source.name} changed while it was read: run again")
    return ids, offsets


def as_texts(packed: Packed, part: Part, vocabulary: Vocabulary, length: int) -> Texts:
    """Return one split of what was read."""
    held, index = part[0], np.flatnonzero(part[1])
    ids, offsets = take_ids(*packed, index)
    return Texts(
        ids=ids, offsets=offsets, labels=held.labels[index], classes=held.classes,
        source=held.source.name, vocabulary=vocabulary, length=length,
    )  # fmt: skip


def _compared(texts: Texts, part: Part, whole: Vocabulary) -> Texts:
    """Return a split of pruned tokens with what the whole vocabulary says where it differs."""
    short = shorten(part[0].ids, part[0].offsets, texts.length, whole.tail)
    before, kept = as_texts(short, part, whole, texts.length), texts.vocabulary.kept
    index = np.array(
        [
            i
            for i in range(len(texts))
            if not np.array_equal(kept[texts.tokens(i)], before.tokens(i))
        ],
        np.int64,
    )
    return replace(texts, changed=Changed(index=index, whole=before.take(index)))
