"""The `text` task: classes of texts. Splits and tokenises the data, and forms batches.

Texts are read twice and never held: first by the tokenizer as it is, to split and to see which
tokens the training texts use, then by the pruned one, which must agree on every training text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt64

from tutelage.errors import DataError, RecipeError
from tutelage.tasks import TASKS
from tutelage.tasks.augment import hash_keys
from tutelage.tasks.splits import overlap, renumbered, set_aside
from tutelage.tasks.text_files import Findings, TextSource, class_numbers, find_texts, rows
from tutelage.tasks.text_vocabulary import (
    Texts,
    Vocabulary,
    cut,
    encode,
    in_blocks,
    open_vocabulary,
    pack,
    prune,
    shorten,
    take_ids,
)
from tutelage.types import Batch, Decides

_TEST_SHARE = 0.2
_MOST_OVERLAP = 0.01
_SALT = {"test": 1, "validation": 2}
_MOST_TOKENS = 256  # where data.length is silent
_STEP, _COVERED = 16, 0.95  # lengths are multiples; share of the training texts that fit
_SHOWN = 300  # characters
_FOREIGN = ("shift", "flip", "mixup", "scale", "jitter", "stretch", "warp")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextData:
    """Three splits with the same classes and vocabulary. `notes` are findings to report."""

    train: Texts
    validation: Texts
    test: Texts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """What the first reading leaves of one source: ids, true counts of tokens, hashes, labels."""

    source: TextSource
    ids: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " n+1"]
    counts: Int[np.ndarray, " n"]
    keys: UInt64[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]


_Packed = tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " n+1"]]
_Part = tuple[_Read, Bool[np.ndarray, " n"]]  # a split: what was read, and which rows of it


def load(
    train: str | Path,
    test: str | Path | None = None,
    *,
    validation_share: float = 0.1,
    seed: int = 0,
    format: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    vocabulary: str = "pruned",
) -> TextData:
    """Read, split and tokenise texts; paths as `find_texts` takes them.

    A `test` path wins over a test part inside `train`; with neither, a fifth is taken out first.
    `length`, in tokens, bounds a text in place of 256. The splits are stratified, and a pure
    function of the seed and of the texts: rows may be reordered, and equal texts fall on the same
    side. Raises `DataError` for data that cannot be learned from, `RecipeError` for a bad option.
    """
    if tokenizer is None:
        raise DataError("texts need a tokenizer: give a model's folder (data.tokenizer: FOLDER)")
    if vocabulary not in ("pruned", "whole"):
        raise RecipeError(f"data.vocabulary is '{vocabulary}': it is either pruned or whole")
    whole = open_vocabulary(tokenizer)
    most = _MOST_TOKENS if length is None else length
    if most <= whole.added:
        raise RecipeError(f"data.length is {length}: it must be above {whole.added} special tokens")
    sources = _sources(train, test, format, text_column=text_column, label_column=label_column)
    notes: list[str] = []
    read = {k: _first_reading(s, whole, most, notes) for k, s in sources.items()}
    parts = _split(read, validation_share, seed, notes)
    length = _chosen_length(parts["train"], most, notes)
    texts = _in_few_tokens(parts, whole, length, notes) if vocabulary == "pruned" else None
    if texts is None:
        short = {k: shorten(p[0].ids, p[0].offsets, length, whole.tail) for k, p in parts.items()}
        texts = {k: _texts(short[k], part, whole, length) for k, part in parts.items()}
    return TextData(**texts, notes=tuple(notes))


def _sources(
    train: str | Path, test: str | Path | None, format: str, **columns: str | None
) -> dict[str, TextSource]:
    found = find_texts(train, format=format, **columns)
    sources = {"train": found.train, "validation": found.validation, "test": found.test}
    if test is not None:
        alike = Path(test).suffix == Path(train).suffix
        other = find_texts(test, format=format if alike else "auto", **columns)
        sources["test"] = other.test or other.train
    return {name: source for name, source in sources.items() if source is not None}


def _first_reading(
    source: TextSource, vocabulary: Vocabulary, most: int, notes: list[str]
) -> _Read:
    findings, tokenizer = Findings(), vocabulary.tokenizer()
    counts, digests, codes = array("q"), bytearray(), array("q")
    labels: dict[tuple[str, Any], int] = {}

    def tokens() -> Iterator[Int[np.ndarray, " t"]]:
        for block in in_blocks(rows(source, findings)):
            for text, label in block:
                digests.extend(blake2b(text.encode(), digest_size=16).digest())
                codes.append(labels.setdefault((type(label).__name__, label), len(labels)))
            for ids in encode(tokenizer, [text for text, _ in block]):
                counts.append(len(ids))
                yield cut(ids, most, vocabulary.tail)

    ids, offsets = pack(tokens(), vocabulary)
    notes += findings.notes(source.name)
    numbers, classes = class_numbers([label for _, label in labels], np.array(codes), source)
    return _Read(
        source=source,
        ids=ids,
        offsets=offsets,
        counts=np.array(counts),
        keys=np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64),
        labels=numbers,
        classes=classes,
    )


def _chosen_length(part: _Part, most: int, notes: list[str]) -> int:
    """Return in how many tokens most training texts fit, in steps of 16 and at most `most`."""
    counts = part[0].counts[part[1]]
    fits = int(np.quantile(counts, _COVERED, method="higher"))
    length = min(most, max(1, -(-fits // _STEP)) * _STEP)
    if long := int((counts > length).sum()):
        notes.append(f"{long} of {len(counts)} training texts have over {length} tokens: cut there")
    return length


def _split(read: dict[str, _Read], share: float, seed: int, notes: list[str]) -> dict[str, _Part]:
    if not 0 < share < 1:
        raise RecipeError(f"validation_share is {share}: it must lie between 0 and 1")
    train = read["train"]
    _check_learnable(train, least=max(2, 4 - len(read)))
    parts = {
        k: (_aligned(held, train), np.ones(len(held.labels), np.bool_)) for k, held in read.items()
    }
    for name, wanted in (("test", _TEST_SHARE), ("validation", share)):
        left = parts["train"][1]
        if name not in parts:
            taken = _set_aside(train, left, wanted, seed, name)
            parts |= {"train": (train, left & ~taken), name: (train, taken)}
        _check_overlap(parts, name, "train", notes)
    if "validation" in read:
        _check_overlap(parts, "test", "validation", notes)
    if np.bincount(train.labels[parts["train"][1]], minlength=len(train.classes)).min() == 0:
        raise DataError(f"{train.source.name}: equal texts differ in label: give each text one")
    return parts


def _check_learnable(held: _Read, *, least: int) -> None:
    counts = np.bincount(held.labels, minlength=len(held.classes))
    if np.count_nonzero(counts) < 2:
        only = held.classes[int(counts.argmax())]
        raise DataError(
            f"{held.source.name} has one class only ('{only}'): add texts of another class"
        )
    rare = int(counts.argmin())
    if counts[rare] < least:
        raise DataError(
            f"{held.source.name} has {counts[rare]} texts of class '{held.classes[rare]}' where "
            f"{least} are needed: add some, or give a test path"
        )


def _aligned(held: _Read, train: _Read) -> _Read:
    labels = renumbered(
        held.labels, held.classes, held.source.name, train.classes, train.source.name
    )
    return replace(held, labels=labels, classes=train.classes)


def _set_aside(
    held: _Read, free: Bool[np.ndarray, " n"], share: float, seed: int, split: str
) -> Bool[np.ndarray, " n"]:
    """Choose `share` of the free texts of each class by their hash, equal ones together."""
    ranks = hash_keys(held.keys[:, 0], seed, _SALT[split])
    _, group = np.unique(held.keys[:, 0], return_inverse=True)
    lowest = np.full(int(group.max()) + 1, len(held.classes))
    np.minimum.at(lowest, group, held.labels)  # equal texts with two labels count as the first
    labels = np.where(free, lowest[group], -1)
    taken = set_aside(ranks, labels, share, part_equal=False)
    if not taken.any():
        raise DataError(f"{held.source.name} has too few different texts: add some, or a {split}")
    return taken


def _check_overlap(parts: dict[str, _Part], one: str, other: str, notes: list[str]) -> None:
    (a, mine), (b, yours) = parts[one], parts[other]
    keys, known = a.keys[mine], b.keys[yours]
    shared = int((np.isin(keys[:, 0], known[:, 0]) & np.isin(keys[:, 1], known[:, 1])).sum())
    notes += overlap(
        shared, len(keys), most=_MOST_OVERLAP, name=one, source=a.source.name,
        other="training" if other == "train" else other, other_source=b.source.name, noun="texts",
    )  # fmt: skip


def _in_few_tokens(
    parts: dict[str, _Part], whole: Vocabulary, length: int, notes: list[str]
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
        read = {k: _second_reading(part, pruned, length) for k, part in sources.items()}
        new, ends = take_ids(*read[held.source.name], train)
        if np.array_equal(ends, offsets) and np.array_equal(pruned.kept[new], ids):
            notes.append(f"the vocabulary is pruned from {len(whole):,} to {len(pruned):,} tokens")
            return {k: _texts(read[p[0].source.name], p, pruned, length) for k, p in parts.items()}
    notes.append(f"the vocabulary is left whole ({len(whole):,} tokens): it cannot be pruned")
    return None


def _second_reading(held: _Read, vocabulary: Vocabulary, length: int) -> _Packed:
    tokenizer = vocabulary.tokenizer(length)
    blocks = in_blocks(rows(held.source, Findings()))
    found = (ids for block in blocks for ids in encode(tokenizer, [text for text, _ in block]))
    ids, offsets = pack(found, vocabulary)
    if len(offsets) != len(held.offsets):
        raise DataError(f"{held.source.name} changed while it was read: run again")
    return ids, offsets


def _texts(packed: _Packed, part: _Part, vocabulary: Vocabulary, length: int) -> Texts:
    held, index = part[0], np.flatnonzero(part[1])
    ids, offsets = take_ids(*packed, index)
    return Texts(
        ids=ids, offsets=offsets, labels=held.labels[index], classes=held.classes,
        source=held.source.name, vocabulary=vocabulary, length=length,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TextNormalisation:
    """Nothing: token ids are not scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAugment:
    """Which share of a text's tokens becomes `blank` in a view other than 0, never `kept` ones."""

    erase: float = 0.0
    blank: int = 0
    kept: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.erase > 0


class TextTask:
    """Classification of texts; see `tutelage.tasks.Task`."""

    name = "text"
    families: tuple[str, ...] = ("encoder", "textconv")
    keys = frozenset({"format", "text_column", "label_column", "tokenizer", "length", "vocabulary"})

    def load(self, train: str | Path, test: str | Path | None = None, **options: Any) -> TextData:
        """Read, split and tokenise the data; options as in `load`."""
        return load(train, test, **options)

    def decides(self, data: TextData) -> Decides:
        """Return `classes`: a label is one."""
        return "classes"

    def input_shape(self, examples: Texts) -> tuple[int]:
        """Return (tokens,)."""
        return examples.shape

    def knobs(self, examples: Texts) -> dict[str, Any]:
        """Return the vocabulary's size, the tokens of a text, and the pad's id."""
        size, pad = len(examples.vocabulary), examples.vocabulary.pad
        return {"vocabulary": size, "length": examples.length, "pad": pad}

    def normalisation(self, examples: Texts) -> TextNormalisation:
        """Return nothing to scale by."""
        return TextNormalisation()

    def augment(self, examples: Texts, wanted: Any) -> TextAugment:
        """Return the recipe's share of erased tokens, none where it is silent."""
        for name in _FOREIGN:
            if getattr(wanted, name, None):
                raise RecipeError(f"augment.{name} is not for texts: remove it (erase is)")
        if not wanted.erase:
            return TextAugment()
        blank, specials = examples.vocabulary.blank, examples.vocabulary.specials
        if blank is None:
            raise RecipeError("augment.erase needs a tokenizer with a mask token: remove it")
        kept = tuple(sorted({*specials, examples.vocabulary.pad}))
        return TextAugment(erase=wanted.erase, blank=blank, kept=kept)

    def show(self, examples: Texts, index: int) -> str:
        """Return the text as its tokens tell it, at most 300 characters."""
        start, end = examples.offsets[index], examples.offsets[index + 1]
        return examples.vocabulary.decode(examples.ids[start:end], _SHOWN)

    def tokens(self, examples: Texts) -> tuple[Int[np.ndarray, " v"], int]:
        """Return the tokenizer's ids that are left, by their new id, and the pad's new id."""
        return examples.vocabulary.kept, examples.vocabulary.pad

    def decisions_an_hour(self, data: TextData) -> None:
        """Return None: texts do not stream."""

    def meta(self, data: TextData, normalisation: TextNormalisation) -> dict[str, Any]:
        """Return how a text becomes inputs: by the tokenizer that ships beside the artifact."""
        vocabulary, length = data.train.vocabulary, data.train.length
        details = {"pad": vocabulary.pad, "length": length, "tokenizer": "tokenizer.json"}
        return {
            "input": "ids", "layout": "NT", "mean": (), "std": (), "scale": 1.0, "dtype": "int64",
            "details": details,
        }  # fmt: skip

    def beside(self, data: TextData) -> dict[str, bytes]:
        """Return the tokenizer, which cuts and pads texts as the network saw them."""
        return {"tokenizer.json": data.train.vocabulary.file(data.train.length)}

    def batch(
        self,
        examples: Texts,
        index: Int[np.ndarray, " batch"],
        *,
        view: int = 0,
        seed: int = 0,
        augment: TextAugment,
        normalisation: TextNormalisation,
    ) -> Batch:
        """Form one batch, inputs `[batch, t]` int64, filled up with pads."""
        index = np.asarray(index, np.int64)
        ids = examples.padded(index)
        if view != 0 and augment:
            own = hash_keys(index.astype(np.uint64), seed, view)[:, None]
            drawn = hash_keys(own + np.arange(ids.shape[1], dtype=np.uint64), seed, view)
            erased = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 < augment.erase
            ids = np.where(erased & ~np.isin(ids, augment.kept), augment.blank, ids)
        inputs, labels = torch.from_numpy(ids), torch.from_numpy(examples.labels[index])
        return Batch(inputs=inputs, labels=labels, index=torch.from_numpy(index), view=view)


TASKS.add("text", TextTask())
