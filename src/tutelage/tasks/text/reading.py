"""What is read of texts, and their second reading by a tokenizer with a pruned vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from tutelage.errors import DataError
from tutelage.progress import Progress, track
from tutelage.tasks.text.encoding import encode
from tutelage.tasks.text.files import Findings, TextSource, rows
from tutelage.tasks.text.split import ReadTexts, TextPart
from tutelage.tasks.text.vocabulary import (
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


Packed = tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " n+1"]]


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


def taught_parts(parts: dict[str, TextPart]) -> list[TextPart]:
    """Return the parts that the student is taught on."""
    return [parts[name] for name in ("train", "unlabelled") if name in parts]


def in_few_tokens(
    parts: dict[str, TextPart], whole: Vocabulary, length: int, notes: list[str], progress: Progress
) -> dict[str, Texts] | None:
    """Prune the vocabulary to the training texts and read all texts anew; None where it fails."""
    taught = [
        (
            held.source.name,
            np.flatnonzero(mask),
            shorten(held.ids, held.offsets, length, whole.tail),
        )
        for held, mask in taught_parts(parts)
    ]
    used = np.zeros(len(whole), np.bool_)
    for _, index, packed in taught:
        used[take_ids(*packed, index)[0]] = True
    pruned = prune(whole, used)
    if pruned is not None:
        sources = {part.source.name: part for part, _ in parts.values()}
        read = {k: _second_reading(p, pruned, length, progress) for k, p in sources.items()}

        def same(name: str, index: Int[np.ndarray, " n"], packed: Packed) -> bool:
            (new, ends), (ids, offsets) = take_ids(*read[name], index), take_ids(*packed, index)
            return np.array_equal(ends, offsets) and np.array_equal(pruned.kept[new], ids)

        if all(same(*one) for one in taught):
            notes.append(f"the vocabulary is pruned from {len(whole):,} to {len(pruned):,} tokens")
            texts = {
                k: as_texts(read[p[0].source.name], p, pruned, length) for k, p in parts.items()
            }
            texts["validation"] = _compared(texts["validation"], parts["validation"], whole)
            return texts
    notes.append(f"the vocabulary is left whole ({len(whole):,} tokens): it cannot be pruned")
    return None


def _second_reading(
    held: ReadTexts, vocabulary: Vocabulary, length: int, progress: Progress
) -> Packed:
    tokenizer, sizes = vocabulary.tokenizer(length), iter(held.characters.tolist())

    def tokens() -> Iterator[Int[np.ndarray, " t"]]:
        count = len(held.characters)
        for block in in_blocks(read_rows(held.source, Findings(), progress, count)):
            yield from encode(tokenizer, [text[: next(sizes, None)] for text, _ in block])

    ids, offsets = pack(tokens(), vocabulary)
    if len(offsets) != len(held.offsets):
        raise DataError(f"{held.source.name} changed while it was read: run again")
    return ids, offsets


def as_texts(packed: Packed, part: TextPart, vocabulary: Vocabulary, length: int) -> Texts:
    """Return one split of what was read."""
    held, index = part[0], np.flatnonzero(part[1])
    ids, offsets = take_ids(*packed, index)
    return Texts(
        ids=ids, offsets=offsets, labels=held.labels[index] if held.classes else None,
        classes=held.classes, source=held.source.name, vocabulary=vocabulary, length=length,
    )  # fmt: skip


def _compared(texts: Texts, part: TextPart, whole: Vocabulary) -> Texts:
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
