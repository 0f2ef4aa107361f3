"""The `text` task: classes of texts. Splits and tokenises the data, and forms batches.

Texts are read twice and never held: first by the tokenizer as it is, to split and to see which
tokens the training texts use, then by the pruned one, which must agree on every training text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from tutelage.errors import DataError, RecipeError
from tutelage.progress import Progress, Silent
from tutelage.recipe import LossPart
from tutelage.tasks import TASKS
from tutelage.tasks.draws import hash_keys
from tutelage.tasks.parts import Parts
from tutelage.tasks.text.encoding import encode_starts
from tutelage.tasks.text.files import ABSENT, Findings, TextSource, find_texts
from tutelage.tasks.text.given import given_texts
from tutelage.tasks.text.labels import class_numbers
from tutelage.tasks.text.reading import as_texts, in_few_tokens, read_rows, taught_parts
from tutelage.tasks.text.split import ReadTexts, TextPart, split_texts
from tutelage.tasks.text.vocabulary import (
    Texts,
    Vocabulary,
    cut,
    in_blocks,
    open_vocabulary,
    pack,
    shorten,
)
from tutelage.tasks.unlabelled import NO_LABELS, with_unlabelled
from tutelage.types import Batch, Decides

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


def load(
    train: str | Path | tuple[Any, Any],
    test: str | Path | None = None,
    *,
    unlabelled: str | Path | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
    format: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    vocabulary: str = "pruned",
    progress: Progress | None = None,
) -> TextData:
    """Read, split and tokenise texts; paths as `find_texts` takes them, or (texts, labels).

    A `test` path wins over a test part inside `train`; with neither, a fifth is taken out first.
    `length`, in tokens, bounds a text in place of 256. The splits are stratified, and a pure
    function of the seed and of the texts: rows may be reordered, and equal texts fall on the same
    side. What `unlabelled` holds (its train part, if it has parts) is read without labels and joins
    the training split, but for copies of validation or test texts. Raises `DataError` for data that
    cannot be learned from, `RecipeError` for a bad option.
    """
    progress = progress or Silent()
    if tokenizer is None:
        raise DataError("texts need a tokenizer: give a model's folder (data.tokenizer: FOLDER)")
    if vocabulary not in ("pruned", "whole"):
        raise RecipeError(f"data.vocabulary is '{vocabulary}': it is either pruned or whole")
    whole = open_vocabulary(tokenizer)
    most = _MOST_TOKENS if length is None else length
    if most <= whole.added:
        raise RecipeError(f"data.length is {length}: it must be above {whole.added} special tokens")
    columns: dict[str, Any] = {"text_column": text_column, "label_column": label_column}
    columns["bare"] = label_column == NO_LABELS
    sources = _sources(train, test, format, **columns)
    if unlabelled is not None:
        sources["unlabelled"] = find_texts(unlabelled, **{**columns, "bare": True}).train
    notes: list[str] = []
    read = {k: _first_reading(s, whole, most, notes, progress) for k, s in sources.items()}
    parts = split_texts(read, validation_share, seed, notes)
    length = _chosen_length(parts, most, notes)
    texts = None
    if vocabulary == "pruned":
        texts = in_few_tokens(parts, whole, length, notes, progress)
    if texts is None:
        short = {k: shorten(p[0].ids, p[0].offsets, length, whole.tail) for k, p in parts.items()}
        texts = {k: as_texts(short[k], part, whole, length) for k, part in parts.items()}
    if "unlabelled" in texts:
        texts["train"] = _joined(texts["train"], texts.pop("unlabelled"))
    return TextData(**texts, notes=tuple(notes))


def _sources(
    train: str | Path | tuple[Any, Any], test: str | Path | None, format: str, **columns: Any
) -> dict[str, TextSource]:
    given = isinstance(train, tuple)
    if given:
        found: Parts[TextSource] = Parts(train=given_texts(*train))
    else:
        found = find_texts(train, format=format, **columns)
    if test is not None:
        alike = given or Path(test).suffix == Path(train).suffix
        found = found.with_test(find_texts(test, format=format if alike else "auto", **columns))
    sources = {"train": found.train, "validation": found.validation, "test": found.test}
    return {name: source for name, source in sources.items() if source is not None}


def _first_reading(
    source: TextSource, vocabulary: Vocabulary, most: int, notes: list[str],
    progress: Progress,
) -> ReadTexts:  # fmt: skip
    findings, tokenizer = Findings(), vocabulary.tokenizer()
    counts, characters, digests, codes = array("q"), array("q"), bytearray(), array("q")
    labels: dict[tuple[str, Any], int] = {}

    def tokens() -> Iterator[Int[np.ndarray, " t"]]:
        for block in in_blocks(read_rows(source, findings, progress)):
            for text, label in block:
                digests.extend(blake2b(text.encode(), digest_size=16).digest())
                codes.append(labels.setdefault((type(label).__name__, label), len(labels)))
            for ids, size in encode_starts(tokenizer, [text for text, _ in block], most):
                counts.append(len(ids))
                characters.append(size)
                yield cut(ids, most, vocabulary.tail)

    ids, offsets = pack(tokens(), vocabulary)
    notes += findings.notes(source.name)
    known = [label for _, label in labels]
    numbers, classes = np.zeros(len(codes), np.int64), ()
    if any(label is not ABSENT for label in known):
        if ABSENT in known:
            raise DataError(f"{source.name}: labels are missing in one place and there in another")
        numbers, classes = class_numbers(known, np.array(codes), source)
    return ReadTexts(
        source=source,
        ids=ids,
        offsets=offsets,
        counts=np.array(counts),
        characters=np.array(characters),
        keys=np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64),
        labels=numbers,
        classes=classes,
    )


def _chosen_length(parts: dict[str, TextPart], most: int, notes: list[str]) -> int:
    """Return in how many tokens most training texts fit, in steps of 16 and at most `most`."""
    counts = np.concatenate([held.counts[rows] for held, rows in taught_parts(parts)])
    fits = int(np.quantile(counts, _COVERED, method="higher"))
    length = min(most, max(1, -(-fits // _STEP)) * _STEP)
    if long := int((counts > length).sum()):
        notes.append(f"{long} of {len(counts)} training texts have over {length} tokens: cut there")
    return length


def _joined(train: Texts, more: Texts) -> Texts:
    return replace(
        train,
        ids=np.concatenate([train.ids, more.ids]),
        offsets=np.concatenate([train.offsets, train.offsets[-1] + more.offsets[1:]]),
        labels=with_unlabelled(train.labels, len(more)),
    )


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
    teachers: tuple[str, ...] = ()
    # A teacher fitted to these texts errs on some of them (benchmarks/student_lessons.py).
    losses: Mapping[str, float | LossPart] = MappingProxyType({"kl": 1.0, "cross_entropy": 0.5})
    batch_size: int = 32  # few epochs want many steps
    keys = frozenset(
        {"format", "text_column", "label_column", "tokenizer", "length", "vocabulary",
         "unlabelled"}
    )  # fmt: skip

    def load(self, train: Any, test: str | Path | None = None, **options: Any) -> TextData:
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
        return examples.vocabulary.decode(examples.tokens(index), _SHOWN)

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
        inputs = torch.from_numpy(ids)
        labels = None if examples.labels is None else torch.from_numpy(examples.labels[index])
        keep = inputs.ne(examples.vocabulary.pad)
        return Batch(
            inputs=inputs, labels=labels, index=torch.from_numpy(index), view=view, keep=keep
        )


TASKS.add("text", TextTask())
