"""Loaders of the user's own: torch data sets read by index, or what can only be gone through once.

Items are (inputs, label), inputs alone, or dicts with a label key. Inputs are a tensor, or a dict
or tuple of tensors; they are never changed. A DataLoader over a data set with indices is read by
index: its collate function is used, its order, batch size and workers are not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from numbers import Number
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt64
from torch import Tensor
from torch.utils import data as torch_data

from tutelage.errors import DataError, TutelageError
from tutelage.passes import Inputs, count_of, mapped, reason, tensors
from tutelage.progress import Progress, track

MOST_HELD_BYTES = 1 << 30
_LABELS = ("labels", "label", "label_ids", "targets", "target", "y")
_LOOKED_AT = 64  # examples that are read twice to see whether they are the same
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """A data set that is read by index; `varies` when two readings of an index differ.

    One that varies is read with Python's, numpy's and torch's global random states set from (seed,
    view, index) and put back after, so that what it draws from these is drawn alike again.
    """

    items: Any
    rows: Int[np.ndarray, " n"]
    collate: Callable[[list[Any]], Any]
    seed: int
    name: str
    varies: bool = False

    def read(self, index: Int[np.ndarray, " b"], view: int) -> tuple[Inputs, Tensor | None]:
        """Return inputs and labels of the examples that stand at `index` of all."""
        items = [self._drawn(lambda row=int(self.rows[i]): self._item(row), i, view) for i in index]
        return self._drawn(lambda: self._batch(items, index), index[0], view)

    def _drawn(self, read: Callable[[], Any], i: int, view: int) -> Any:
        if not self.varies:
            return read()
        with random_states(self.seed, view, int(i)):
            return read()

    def _item(self, row: int) -> Any:
        with _one_line(f"{self.name} fails at item {row}"):
            return self.items[row]

    def _batch(self, items: list[Any], index: Int[np.ndarray, " b"]) -> tuple[Inputs, Any]:
        what = f"{self.name}: examples {index[0]} to {index[-1]} make no batch"
        with _one_line(what, "Give a DataLoader whose collate_fn pads them, or items of one shape"):
            batch = self.collate(items)
        inputs, labels = parted(batch, self.name)
        if count_of(inputs) != len(items):
            raise DataError(
                f"{self.name}: {len(items)} items become a batch of {count_of(inputs)} examples: "
                "give a collate_fn that keeps each (a list is read item by item, not batch by "
                "batch)"
            )
        return inputs, labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What could only be gone through once, in memory."""

    inputs: Inputs
    labels: Int[Tensor, " n"] | None
    name: str

    def read(self, index: Int[np.ndarray, " b"], view: int) -> tuple[Inputs, Tensor | None]:
        """Return inputs and labels of the examples at `index`; they look the same in any view."""
        at = torch.from_numpy(index)
        labels = None if self.labels is None else self.labels[at]
        return mapped(self.inputs, lambda x: x[at]), labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a loader holds: where examples are read, their inputs' 128-bit hashes, their labels."""

    source: Indexed | Held
    keys: UInt64[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"] | None
    notes: tuple[str, ...]

    @property
    def varies(self) -> bool:
        """Whether two readings of an example differ."""
        return isinstance(self.source, Indexed) and self.source.varies


def read_loader(given: Any, *, name: str, seed: int, progress: Progress) -> Found:
    """Go through a loader once: find its examples, hash and check them.

    Raises `DataError` for what holds no examples, or none that can be used.
    """
    if isinstance(given, torch_data.DataLoader):
        if given.batch_sampler is None or isinstance(given.dataset, torch_data.IterableDataset):
            return _held(given, name, progress)
        return _indexed(given.dataset, _rows(given, name), given.collate_fn, name, seed, progress)
    if isinstance(given, torch_data.IterableDataset):
        return _held(torch_data.DataLoader(given, batch_size=_AT_ONCE), name, progress)
    plain = isinstance(given, (Mapping, Tensor, np.ndarray, str, bytes))
    if not plain and hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        rows = np.arange(len(given))
        return _indexed(given, rows, _collated, name, seed, progress)
    if plain or not hasattr(given, "__iter__"):
        raise DataError(
            f"{name} is a {type(given).__name__}: give a path, (inputs, labels), a DataLoader, or "
            "a data set with a length whose items are (inputs, label)"
        )
    return _held(given, name, progress)


# --- by index --------------------------------------------------------------------------------


def _rows(loader: torch_data.DataLoader[Any], name: str) -> Int[np.ndarray, " n"]:
    """Return the rows of the data set that the loader's sampler ever draws, in ascending order."""
    batches: Any = loader.batch_sampler
    drawn = batches.sampler if type(batches) is torch_data.BatchSampler else None
    count = len(loader.dataset)  # pyright: ignore[reportArgumentType]
    every = isinstance(drawn, (torch_data.SequentialSampler, torch_data.RandomSampler))
    if every and len(drawn.data_source) == count:
        return np.arange(count)

    def once() -> set[int]:
        return set(drawn) if drawn is not None else {row for batch in batches for row in batch}

    with random_states():
        first, second = once(), once()
    if first != second:
        raise DataError(
            f"{name} draws other examples each time ({type(drawn or batches).__name__}): give the "
            "data set itself"
        )
    return np.array(sorted(first), np.int64)


def _indexed(
    items: Any, rows: Int[np.ndarray, " n"], collate: Callable[[list[Any]], Any], name: str,
    seed: int, progress: Progress,
) -> Found:  # fmt: skip
    if len(rows) == 0:
        raise DataError(f"{name} holds no examples: check what it is made of")
    source = Indexed(items=items, rows=rows, collate=collate, seed=seed, name=name)
    notes: tuple[str, ...] = ()
    if _varies(source, len(rows)):
        source = replace(source, varies=True)
        notes = (
            f"two readings of the same examples of {name} differ, so the teacher is asked anew "
            "for every batch",
        )
    digests, labels = [], []
    for i in track(range(len(rows)), len(rows), f"Reading {name}", progress):
        inputs, label = source.read(np.array([i]), 0)
        _check_numbers(inputs, name, i)
        digests.append(_digests(inputs))
        labels.append(label)
    return _found(source, digests, labels, notes)


def _varies(source: Indexed, count: int) -> bool:
    index = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))
    with random_states():
        (first, one), (second, two) = source.read(index, 0), source.read(index, 0)
    return _digests(first) != _digests(second) or str(one) != str(two)


def _collated(items: list[Any]) -> Any:
    found = [_plain(item) for item in items]
    if all(isinstance(item, tuple) and len(item) == 2 and item[1] is None for item in found):
        found = [item[:1] for item in found]  # (inputs, None) is inputs without a label
    return torch_data.default_collate(found)


def _plain(item: Any) -> Any:
    """Return an item with its lists of numbers as tensors: no axis of theirs is the batch's."""
    if isinstance(item, Mapping):
        return {key: _plain(part) for key, part in item.items()}
    if isinstance(item, list) and item and all(isinstance(part, Number) for part in item):
        return torch.tensor(item)
    if isinstance(item, (list, tuple)):
        return tuple(map(_plain, item))
    return item


@contextmanager
def random_states(*numbers: int) -> Iterator[None]:
    """Put Python's, numpy's and torch's global random states back in the end.

    They are first set from `numbers`, where there are some.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    if numbers:
        seed = int.from_bytes(blake2b(repr(numbers).encode(), digest_size=4).digest(), "little")
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


# --- once ------------------------------------------------------------------------------------


def _held(batches: Iterable[Any], name: str, progress: Progress) -> Found:
    parts: list[tuple[Inputs, Tensor | None]] = []
    size = 0
    with _one_line(f"{name} fails while it is read"):
        for batch in batches:
            inputs, labels = parted(batch, name)
            # A copy: some loaders fill the same memory again.
            parts.append((mapped(inputs, lambda x: x.detach().cpu().clone()), labels))
            size += sum(x.numel() * x.element_size() for x in tensors(inputs))
            if size > MOST_HELD_BYTES:
                raise DataError(
                    f"{name} can only be gone through and holds over "
                    f"{MOST_HELD_BYTES / 2**30:.0f} GiB, which is not kept in memory: give a data "
                    "set with __getitem__ and __len__, which is read as it is needed"
                )
    if not parts:
        raise DataError(
            f"{name} yields nothing: check what it is made of (a generator that was read before "
            "is empty: make it anew)"
        )
    labelled = [labels for _, labels in parts if labels is not None]
    if labelled and len(labelled) < len(parts):
        raise DataError(f"{name} has labels for some examples only: give all or none")
    source = Held(
        inputs=_joined([inputs for inputs, _ in parts], name),
        labels=torch.cat(labelled) if labelled else None,
        name=name,
    )
    count = count_of(source.inputs)
    progress.say(f"data: {name} is read once: {count} examples, {size / 1e6:.1f} MB in memory")
    digests = []
    for start in range(0, count, _AT_ONCE):
        inputs, _ = source.read(np.arange(start, min(start + _AT_ONCE, count)), 0)
        _check_numbers(inputs, name, start)
        digests.append(_digests(inputs))
    return _found(source, digests, [source.labels], ())


def _joined(parts: Sequence[Inputs], name: str) -> Inputs:
    forms = [_form(part) for part in parts]
    odd = next((form for form in forms if form != forms[0]), None)
    if odd is not None:
        raise DataError(
            f"{name} yields examples of different forms ({forms[0]} and {odd}), which cannot be "
            "mixed anew: pad them to one length, or give a data set with __getitem__ and __len__ "
            "in a DataLoader with a collate_fn"
        )
    flat = [iter(list(tensors(part))) for part in parts]
    return mapped(parts[0], lambda _: torch.cat([next(leaves) for leaves in flat]))


# --- items -----------------------------------------------------------------------------------


def parted(batch: Any, name: str) -> tuple[Inputs, Int[Tensor, " batch"] | None]:
    """Part a batch into inputs and labels (None where it has none); raises `DataError`."""
    labels = None
    if isinstance(batch, Mapping):
        batch = dict(batch)
        keys = [key for key in _LABELS if key in batch]
        if len(keys) > 1:
            raise DataError(f"{name}: items have both '{keys[0]}' and '{keys[1]}': keep the label")
        labels = batch.pop(keys[0]) if keys else None
    elif isinstance(batch, (tuple, list)) and not isinstance(next(iter(batch), None), str):
        if len(batch) not in (1, 2):
            raise DataError(
                f"{name}: items are tuples of {len(batch)}: give (inputs, label), where inputs may "
                "themselves be a tuple or dict, or a dict with a label key"
            )
        batch, labels = batch[0], batch[1] if len(batch) == 2 else None
    inputs = _as_inputs(batch, name)
    sizes = sorted({len(x) for x in tensors(inputs)})
    if len(sizes) > 1:
        raise DataError(
            f"{name}: the tensors of one batch hold {sizes[0]} and {sizes[1]} examples: give each "
            "the batch as its first axis"
        )
    return inputs, None if labels is None else _as_labels(labels, sizes[0], name)


def _as_inputs(part: Any, name: str) -> Inputs:
    if isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
        part = torch.from_numpy(part)
    if isinstance(part, Tensor) and part.ndim > 0:
        return part
    if isinstance(part, Mapping) and part:
        return {str(key): _as_inputs(value, name) for key, value in part.items()}
    # A batch of strings is a list too: its parts are refused below.
    if isinstance(part, (tuple, list)) and part:
        return tuple(_as_inputs(value, name) for value in part)
    raise DataError(
        f"{name}: an item's inputs hold a {type(part).__name__}: give tensors, or dicts or tuples "
        "of tensors (texts as token ids)"
    )


def _as_labels(labels: Any, count: int, name: str) -> Int[Tensor, " batch"]:
    with _one_line(f"{name}: labels cannot be read", "Give one class number an example"):
        found = torch.as_tensor(labels).detach().cpu()
    if found.is_floating_point() or found.is_complex():
        raise DataError(
            f"{name}: labels of type {str(found.dtype).removeprefix('torch.')} are no classes: "
            "give class numbers (int64) from 0 on"
        )
    if found.numel() != count or found.ndim > 2:
        raise DataError(
            f"{name}: {count} examples have labels of shape {list(found.shape)}: give one class "
            "number an example"
        )
    return found.reshape(-1).long()


def _form(inputs: Inputs) -> str:
    """Say which tensors make up an example, and their types."""
    if isinstance(inputs, Tensor):
        kind = str(inputs.dtype).removeprefix("torch.")
        return f"{kind} {'x'.join(map(str, inputs.shape[1:]))}".strip()
    if isinstance(inputs, dict):
        return "{" + ", ".join(f"{key}: {_form(part)}" for key, part in inputs.items()) + "}"
    return "(" + ", ".join(map(_form, inputs)) + ")"


def _digests(inputs: Inputs) -> list[bytes]:
    """Return a 128-bit hash of each example's form and bytes."""
    count = count_of(inputs)
    hashes = [blake2b(_form(inputs).encode(), digest_size=16) for _ in range(count)]
    for leaf in tensors(inputs):
        rows = leaf.detach().cpu().contiguous().reshape(count, math.prod(leaf.shape[1:]))
        flat = rows.view(torch.uint8).numpy()
        for held, row in zip(hashes, flat, strict=True):
            held.update(row.data)
    return [held.digest() for held in hashes]


def _check_numbers(inputs: Inputs, name: str, first: int) -> None:
    for leaf in tensors(inputs):
        if leaf.is_floating_point() and bool((bad := leaf.isnan().reshape(len(leaf), -1)).any()):
            at = first + int(bad.any(1).nonzero()[0, 0])
            raise DataError(f"{name}: example {at} holds NaN: correct it, or leave it out")


def _found(
    source: Indexed | Held, digests: list[list[bytes]], labels: list[Tensor | None],
    notes: tuple[str, ...],
) -> Found:  # fmt: skip
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise DataError(f"{source.name} has labels for some examples only: give all or none")
    joined = b"".join(digest for part in digests for digest in part)
    keys = np.frombuffer(joined, "<u8").reshape(-1, 2).astype(np.uint64)
    numbers = torch.cat(known).numpy() if known else None
    return Found(source=source, keys=keys, labels=numbers, notes=notes)


@contextmanager
def _one_line(what: str, next_step: str = "Mend it, then call again") -> Iterator[None]:
    """Turn whatever foreign code raises into one line."""
    try:
        yield
    except TutelageError:
        raise
    except Exception as cause:
        raise DataError(f"{what}: {reason(cause)}. {next_step}") from cause
