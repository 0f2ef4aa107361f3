"""A set of series in memory, and the careful ways from foreign arrays to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt64

from tutelage.errors import DataError
from tutelage.tasks.archives import read_arrays
from tutelage.tasks.cells import MISSING
from tutelage.tasks.parts import Parts, gather
from tutelage.tasks.several import from_one_hot, refuse_joined, refuse_lists
from tutelage.tasks.values import as_values
from tutelage.types import Decides

_MOST_VALUES = 1 << 31
_X_KEYS = ("x", "X", "series", "data", "values")
_Y_KEYS = ("y", "Y", "labels", "label", "target", "targets")
_NPZ_PARTS = {
    "train": (("x_train", "X_train"), ("y_train", "Y_train")),
    "validation": (("x_val", "X_val", "x_validation"), ("y_val", "Y_val", "y_validation")),
    "test": (("x_test", "X_test"), ("y_test", "Y_test")),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Series of equal shape, channels before steps, with class numbers and class names.

    Where a label is a value, `labels` are floats and there are no `classes`; without labels they
    are None, and `classes` empty; where some have none, theirs is -1. NaN in `values` stands for a
    missing value or for padding. `lengths` counts the steps of each up to the last that any channel
    has a value for. `source` names the place they came from.
    """

    values: Float[np.ndarray, "n c t"]
    lengths: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, " n"] | None
    classes: tuple[str, ...]
    source: str

    @property
    def decides(self) -> Decides:
        """What a label is."""
        valued = self.labels is not None and self.labels.dtype.kind == "f"
        return "values" if valued else "classes"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and steps of one series."""
        _, channels, steps = self.values.shape
        return channels, steps

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape, values, labels and classes: content only (read anew each time)."""
        names = "".join(f"{len(name)}:{name}" for name in self.classes)
        digest = hashlib.sha256(f"{self.values.shape}|{names}|".encode())
        digest.update(np.ascontiguousarray(self.values, dtype="<f4").data)
        if self.labels is not None:
            kind = "<i8" if self.decides == "classes" else "<f8"
            digest.update(np.ascontiguousarray(self.labels, dtype=kind).data)
        return digest.hexdigest()

    def take(self, index: Int[np.ndarray, " m"]) -> Series:
        """Return the series named by `index`, in that order."""
        return replace(
            self,
            values=self.values[index],
            lengths=self.lengths[index],
            labels=None if self.labels is None else self.labels[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOptions:
    """Columns of tables: the label, which rows are one series (long form), and their time.

    `bare`: labels are not read, whether there are any or not. `target`: what a label is; `auto`: as
    a .ts file's header says, else a class.
    """

    label_column: str | None = None
    series_column: str | None = None
    time_column: str | None = None
    bare: bool = False
    target: Literal["auto", "classes", "values"] = "auto"


def make_series(
    items: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[Any] | np.ndarray | None,
    *,
    classes: tuple[str, ...] | None = None,
    decides: Decides = "classes",
    source: str,
    names: Sequence[str] | None = None,
) -> Series:
    """Build `Series` from arrays, padding the shorter ones with NaN at the end.

    `items`: `[n, c, t]` or `[n, t]`, or one `[c, t]` array a series. `labels`: whole numbers or
    names, one a series; with `classes` given, names among them; numbers where `decides` is
    `values`. `names` says how each series is called in messages. Raises `DataError` for values or
    labels that cannot be used.
    """
    if len(items) == 0:
        raise DataError(f"{source} holds no series: check that the path is the right one")
    called = [f"series {i}" for i in range(len(items))] if names is None else names
    values = _stacked(items, source, called)
    numbers, known = None, ()
    if labels is not None and decides == "values":
        numbers = as_values(labels, source, called)
    elif labels is not None:
        numbers, known = as_classes(labels, classes, source, called)
    if numbers is not None and len(numbers) != len(values):
        raise DataError(
            f"{source} has {len(values)} series but {len(numbers)} labels: "
            "give labels that belong to these series"
        )
    made = Series(
        values=values, lengths=lengths_of(values), labels=numbers, classes=known, source=source
    )
    _check_present(made, called)
    return made


def _stacked(
    items: Sequence[np.ndarray] | np.ndarray, source: str, names: Sequence[str]
) -> np.ndarray:
    if isinstance(items, np.ndarray):
        values = _whole(items, source)
    else:
        values = _padded(items, source, names)
    wrong = ~(np.isfinite(values) | np.isnan(values))
    if wrong.any():
        at, channel, step = np.argwhere(wrong)[0]
        raise DataError(
            f"{source}: {names[at]} is infinite, or beyond single precision, at step {step} of "
            f"channel {channel}: correct the value, or leave it empty"
        )
    if values.shape[2] < 2:
        raise DataError(f"{source}: series of {values.shape[2]} steps: they need at least 2")
    values += np.float32(0)  # -0 becomes 0, so that equal series hash alike
    values[np.isnan(values)] = np.float32(np.nan)
    return values


def _whole(items: np.ndarray, source: str) -> np.ndarray:
    if items.dtype.kind not in "iufb":
        raise DataError(
            f"{source}: values of type {items.dtype} are not numbers: save them as float32"
        )
    if items.ndim == 2:
        items = items[:, None]
    if items.ndim != 3 or 0 in items.shape:
        raise DataError(
            f"{source}: values of shape {list(items.shape)} are not series: "
            "save them as [n, channels, steps]"
        )
    return _single(items)


def _single(items: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
        return np.array(items, np.float32, order="C")


def _padded(items: Sequence[np.ndarray], source: str, names: Sequence[str]) -> np.ndarray:
    channels = len(items[0])
    for item, name in zip(items, names, strict=True):
        if len(item) != channels:
            raise DataError(
                f"{source}: {name} has {len(item)} channels where {names[0]} has {channels}: "
                "give every series the same channels"
            )
    steps = max(item.shape[1] for item in items)
    if len(items) * channels * steps > _MOST_VALUES:
        raise DataError(
            f"{source}: {len(items)} series padded to the longest of {steps} steps do not fit in "
            "memory: cut them into windows"
        )
    values = np.full((len(items), channels, steps), np.nan, np.float32)
    for row, item in zip(values, items, strict=True):
        row[:, : item.shape[1]] = _single(item)
    return values


def lengths_of(values: Float[np.ndarray, "n c t"]) -> Int[np.ndarray, " n"]:
    """Count the steps of each up to the last that any channel has a value for."""
    present = ~np.logical_and.reduce(np.isnan(values), axis=1)
    last = values.shape[2] - present[:, ::-1].argmax(axis=1)
    return np.where(present.any(axis=1), last, 0).astype(np.int64)


def _check_present(series: Series, names: Sequence[str]) -> None:
    if not series.lengths.all():
        name = names[int(np.argmin(series.lengths))]
        raise DataError(f"{series.source}: {name} has no values at all: remove it")
    empty = np.logical_and.reduce(np.isnan(series.values), axis=(0, 2))
    if empty.any():
        raise DataError(
            f"{series.source}: channel {int(empty.argmax())} of {len(empty)} has no values in any "
            "series: remove the channel, or find out why it is empty"
        )


def content_keys(series: Series) -> UInt64[np.ndarray, "n 2"]:
    """Return a 128-bit hash of each series' values."""
    rows = np.ascontiguousarray(series.values, dtype="<f4").reshape(len(series), -1)
    digests = b"".join(blake2b(row.data, digest_size=16).digest() for row in rows)
    return np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64)


def as_classes(
    labels: Sequence[Any] | np.ndarray,
    classes: tuple[str, ...] | None,
    source: str,
    names: Sequence[str],
) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Return class numbers and class names; whole numbers are their own names, in their order.

    Raises `DataError` for missing or unknown labels, and for fractions, which may be values.
    """
    array = labels if isinstance(labels, np.ndarray) else None
    if array is not None and array.dtype.kind == "S":
        array = array.astype(str)
    hot = None if array is None else from_one_hot(array, lambda i: f"{source}: {names[i]}")
    if array is not None and hot is not None:
        return hot, classes or tuple(map(str, range(array.shape[1])))
    if array is not None and (array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1)):
        raise DataError(
            f"{source}: labels of shape {list(array.shape)} are not one class a series: "
            "save class numbers (argmax of one-hot labels)"
        )
    cells = list(labels) if array is None else array.reshape(-1).tolist()
    refuse_lists(cells, lambda i: f"{source}: {names[i]}")
    texts = [_class_name(cell) for cell in cells]
    if classes is None:
        refuse_joined(texts, lambda i: f"{source}: {names[i]}")
    for name, text in zip(names, texts, strict=False):
        if text.lower() in MISSING:
            raise DataError(f"{source}: {name} has no label: fill it in, or remove the series")
    if classes is None:
        classes = _ordered(set(texts), source)
    number = {name: i for i, name in enumerate(classes)}
    for name, text in zip(names, texts, strict=False):
        if text not in number:
            raise DataError(
                f"{source}: {name} has the label '{text}', which is not one of the "
                f"{len(classes)} classes that are declared: correct it"
            )
    return np.array([number[text] for text in texts], np.int64), classes


def _class_name(cell: Any) -> str:
    if isinstance(cell, bool | np.bool_):
        return str(int(cell))
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return "" if cell is None else str(cell).strip()


def _ordered(names: set[str], source: str) -> tuple[str, ...]:
    """Return names in the order of their numbers where all are numbers, else of code points."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    parts = sorted(name for name, value in numbers.items() if not value.is_integer())
    if parts:
        raise DataError(
            f"{source}: labels such as {parts[0]} are fractions: give one class a series, or, if "
            "they are values to predict, write data.target: values"
        )
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def read_npz(path: Path, options: SeriesOptions) -> Parts[Series]:
    """Read a NumPy archive: `x` `[n, t]` or `[n, c, t]` and `y`, or `x_train`, `y_train`, ..."""
    arrays = read_arrays(path)
    found: dict[str, Series] = {}
    for part, (x_keys, y_keys) in _NPZ_PARTS.items():
        if any(key in arrays for key in x_keys):
            keys = () if options.bare else y_keys
            found[part] = _npz_part(path, arrays, x_keys, keys, options)
    if not found:
        keys = () if options.bare else _Y_KEYS
        found["train"] = _npz_part(path, arrays, _X_KEYS, keys, options)
    return gather(found, str(path), "series")


def _npz_part(
    path: Path, arrays: dict[str, np.ndarray], x_keys: tuple[str, ...], y_keys: tuple[str, ...],
    options: SeriesOptions,
) -> Series:  # fmt: skip
    x = next((key for key in x_keys if key in arrays), None)
    y = next((key for key in y_keys if key in arrays), None)
    if x is None:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}: "
            "name the series x and the labels y"
        )
    if arrays[x].ndim == 0:
        raise DataError(f"{path}: {x} is a single number: save series as [n, channels, steps]")
    decides = "values" if options.target == "values" else "classes"
    labels = None if y is None else arrays[y]
    return make_series(arrays[x], labels, decides=decides, source=f"{path}:{x}")
