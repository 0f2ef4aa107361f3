"""Series from `.ts` text, `.npz` archives, tables, and folders of those: the one door to them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage.errors import DataError
from tutelage.registry import near_matches
from tutelage.tasks.cells import one_line, plain, stamped
from tutelage.tasks.parts import Parts, gather
from tutelage.tasks.series.base import (
    Series,
    SeriesOptions,
    make_series,
    read_npz,
)
from tutelage.tasks.series.tables import read_csv, read_parquet
from tutelage.tasks.several import parts_among, several_labels
from tutelage.tasks.splits import split_name
from tutelage.types import Decides

_OUTSIDE = re.compile(r":(?![^(]*\))")


def read_series(path: str | Path, *, format: str = "auto", options: SeriesOptions) -> Parts[Series]:
    """Read all the parts that a file or folder holds; raises `DataError` in one line.

    A folder holds one file a part, named after it (`NAME_TRAIN.ts` and `NAME_TEST.ts`, say).
    """
    where = Path(path)
    if not where.exists():
        raise DataError(f"{path} does not exist: correct the path (looked in {Path.cwd()})")
    try:
        if where.is_dir():
            return _read_folder(where, format, options)
        return _read_file(where, format, options)
    except PermissionError as error:
        raise DataError(
            f"{error.filename or path} may not be read: change its permissions"
        ) from None


def _read_file(path: Path, format: str, options: SeriesOptions) -> Parts[Series]:
    known = ", ".join(sorted(_SUFFIXES))
    chosen = _SUFFIXES.get(path.suffix.lower()) if format == "auto" else format
    if chosen is None:
        raise DataError(
            f"{path} is of no known form ('{path.suffix}'): give series as {known}, or a folder of "
            "those"
        )
    if chosen not in _READERS:
        raise DataError(f"unknown series format '{chosen}'. {near_matches(chosen, list(_READERS))}")
    return _READERS[chosen](path, options)


def _read_folder(path: Path, format: str, options: SeriesOptions) -> Parts[Series]:
    wanted = None if format in ("auto", "folder") else format
    files = [f for f in sorted(path.iterdir()) if f.is_file() and f.name[0] not in "._"]
    forms = tuple(_SUFFIXES.values()) if wanted is None else (wanted,)
    files = [f for f in files if _SUFFIXES.get(f.suffix.lower()) in forms]
    parts: dict[str, list[Path]] = {}
    for file in files:
        words = [word for word in map(split_name, re.split(r"[-_.]", file.stem)) if word]
        if words:
            parts.setdefault(words[-1], []).append(file)
    if not parts and len(files) == 1:
        return _read_file(files[0], format if format != "folder" else "auto", options)
    if not parts:
        raise DataError(
            f"{path} holds no series files named after their part: name them train.ts and test.ts, "
            "say, or give the path of one file"
        )
    found = {part: _only(path, several) for part, several in parts.items()}
    read = {part: _read_file(file, wanted or "auto", options).train for part, file in found.items()}
    return gather(read, str(path), "series")


def _only(folder: Path, files: list[Path]) -> Path:
    if len(files) > 1:  # as in the archive: the folder's own name comes first
        own = [f for f in files if re.split(r"[-_.](?=[^-_.]*$)", f.stem)[0] == folder.name]
        files = own if len(own) == 1 else files
    if len(files) > 1:
        raise DataError(
            f"{folder} holds both '{files[0].name}' and '{files[1].name}': give the path of one"
        )
    return files[0]


# --- .ts -------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Header:
    """What the lines before @data say; None where they are silent.

    `classes` is empty where there are no labels; `bare` says that they are not read.
    """

    path: Path
    bare: bool
    target: Literal["auto", "classes", "values"]
    classes: tuple[str, ...] | None = None
    decides: Decides | None = None
    univariate: bool | None = None
    equal: bool | None = None
    dimensions: int | None = None
    length: int | None = None
    items: list[np.ndarray] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether every line ends in a label."""
        return bool(self.classes) or self.decides == "values"


def read_ts(path: Path, options: SeriesOptions) -> Parts[Series]:
    """Read the text format of the UCR and UEA archives (timeseriesclassification.com)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not readable text ({one_line(error)}): check the file"
        ) from None
    held = _Header(path=path, bare=options.bare, target=options.target)
    data = False
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line[0] in "#%":
            continue
        if data:
            _ts_series(held, line, number)
        elif line[0] == "@":
            data = _ts_header(held, line, number)
        else:
            raise DataError(
                f"{path}, line {number}: series begin before a line '@data': add the header "
                "(@classLabel true NAMES, then @data)"
            )
    if not data:
        raise DataError(f"{path} has no line '@data': is it a .ts file, and whole?")
    if held.items:
        _ts_agrees(held)
    made = make_series(
        held.items, held.labels if held.labelled and not held.bare else None, classes=held.classes,
        decides=held.decides or "classes", source=str(path), names=held.names,
    )  # fmt: skip
    return Parts(train=made)


def _ts_header(held: _Header, line: str, number: int) -> bool:
    """Take in one header line; return whether it is the last."""
    word, *values = line[1:].split() or [""]
    key = word.lower()
    where = f"{held.path}, line {number}"
    if key == "data":
        _ts_decides(held)
        return True
    if key == "classlabel":
        held.classes = _class_names(values, word, where)
    elif key == "targetlabel" and _truth(values, word, where):
        held.decides = "values"
    elif key == "univariate":
        held.univariate = _truth(values, word, where)
    elif key == "equallength":
        held.equal = _truth(values, word, where)
    elif key in ("dimensions", "dimension"):
        held.dimensions = _count(values, word, where)
    elif key == "serieslength":
        held.length = _count(values, word, where)
    return False


def _ts_decides(held: _Header) -> None:
    """Settle what a label is, by the header and the recipe."""
    if held.decides is None and held.classes is None:
        raise DataError(
            f"{held.path} has no labels: add a line '@classLabel true NAMES' (false, if so), or "
            "'@targetLabel true' if they are values"
        )
    if held.target == "classes" and held.decides == "values" and not held.classes:
        raise DataError(
            f"{held.path} says @targetLabel true, so its labels are values, and data.target says "
            "classes: correct either"
        )
    if held.target != "auto" and held.labelled:
        held.decides = held.target


def _class_names(values: list[str], word: str, where: str) -> tuple[str, ...]:
    if not _truth(values, word, where):
        return ()
    if len(values) < 2:
        raise DataError(f"{where}: @classLabel names no classes: write them after 'true'")
    return tuple(dict.fromkeys(values[1:]))


def _truth(values: list[str], word: str, where: str) -> bool:
    said = values[0].lower() if values else ""
    if said not in ("true", "false"):
        raise DataError(
            f"{where}: @{word} must say true or false, not '{said}': correct the header"
        )
    return said == "true"


def _count(values: list[str], word: str, where: str) -> int:
    if not values or not values[0].isdecimal() or int(values[0]) < 1:
        raise DataError(f"{where}: @{word} needs a whole number: correct the header")
    return int(values[0])


def _ts_series(held: _Header, line: str, number: int) -> None:
    where = f"{held.path}, line {number}"
    timed = "(" in line
    dimensions = _OUTSIDE.split(line) if timed else line.split(":")
    if held.labelled:
        held.labels.append(_ts_label(held, dimensions, where))
    parse = stamped if timed else plain
    rows = [parse(part, where) for part in dimensions]
    item = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(item, rows, strict=True):
        row[: len(values)] = values
    held.items.append(item)
    held.names.append(f"the series of line {number}")


def _ts_label(held: _Header, parts: list[str], where: str) -> str:
    """Take the label from behind the dimensions of a line and return it."""
    label = parts.pop()
    if parts_among(label, held.classes or ()):
        raise several_labels(where, label.strip())
    if not parts or "," in label:
        raise DataError(f"{where} does not end in ':' and one label: add the label, or correct it")
    values = held.bare or held.decides == "values"
    if not values and label.strip() not in (held.classes or ()):
        raise DataError(
            f"{where}: label '{label.strip()[:40]}' is not one of the {len(held.classes or ())} "
            "classes of the header: correct either"
        )
    return label.strip()


def _ts_agrees(held: _Header) -> None:
    for item, name in zip(held.items, held.names, strict=True):
        channels, steps = item.shape
        want = 1 if held.univariate else held.dimensions
        if want is not None and channels != want:
            raise DataError(
                f"{held.path}: {name} has {channels} channels where the header says {want}: "
                "correct either"
            )
        length = (held.length or held.items[0].shape[1]) if held.equal else None
        if length is not None and steps != length:
            raise DataError(
                f"{held.path}: {name} has {steps} steps where the header says {length}: correct "
                "the line, or write @equalLength false"
            )


_READERS: dict[str, Callable[[Path, SeriesOptions], Parts[Series]]] = {
    "ts": read_ts,
    "npz": read_npz,
    "csv": read_csv,
    "parquet": read_parquet,
}
_SUFFIXES = {".ts": "ts", ".npz": "npz", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
