"""Images from tables: Parquet, CSV, and Hugging Face datasets saved on disk."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.errors import DataError, MissingExtra
from tutelage.registry import near_matches
from tutelage.tasks.parts import Parts, gather
from tutelage.tasks.splits import split_name
from tutelage.tasks.vision.base import (
    Images,
    ReadOptions,
    make_images,
)
from tutelage.tasks.vision.decode import decode_images

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("image", "img", "images", "pixels", "image_path", "path", "file", "file_name",
                  "filename", "filepath")  # fmt: skip
_LABEL_COLUMNS = ("label", "labels", "class", "target", "y", "category")
_PIXEL = re.compile(r"pixel_?(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table whatever its file: column names, and how to get a column or the pixel columns.

    `images` names the columns declared as images, `classes` gives the names behind declared class
    columns, `folder` is what relative paths start from.
    """

    columns: tuple[str, ...]
    column: Callable[[str], list[Any]]
    matrix: Callable[[list[str]], np.ndarray]
    folder: Path
    source: str
    images: tuple[str, ...] = ()
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_parquet(path: Path, options: ReadOptions) -> Parts[Images]:
    """Read a Parquet file, or a folder of them named `train...`, `test...` (shards are joined)."""
    _pyarrow("Reading Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        split = split_name(re.split(r"[-_.]", file.name)[0]) if path.is_dir() else None
        shards.setdefault(split or "train", []).append(file)
    found: dict[str, Images] = {}
    for split, files in shards.items():
        try:
            table = pa.concat_tables([pq.read_table(file) for file in files])
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{files[0]} is not readable Parquet ({_line(error)})") from None
        source = str(path if len(files) > 1 else files[0])
        found[split] = _images(_arrow_table(table, files[0].parent, source), options)
    return gather(found, str(path), "images")


def read_saved_dataset(path: Path, options: ReadOptions) -> Parts[Images]:
    """Read what `datasets.save_to_disk` wrote, one dataset or several splits.

    The Arrow files are read as they are, so the result is the same with and without the library.
    """
    _pyarrow("Reading a saved dataset")
    if not (path / "dataset_dict.json").is_file():
        return Parts(train=_images(_saved_table(path), options))
    found: dict[str, Images] = {}
    for name in _json(path / "dataset_dict.json").get("splits", []):
        split = split_name(name)
        if split is not None:
            found[split] = _images(_saved_table(path / name), options)
    if not found:
        raise DataError(f"{path} has no split named train or test: give the path of one split")
    return gather(found, str(path), "images")


def read_csv(path: Path, options: ReadOptions) -> Parts[Images]:
    """Read a CSV with a column of image paths, or with the columns pixel0, pixel1, ..."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            by_path = not any(_PIXEL.match(name) for name in header)
            rows = [row for row in reader if row] if by_path else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV ({_line(error)})") from None
    uneven = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if uneven is not None:
        raise DataError(
            f"{path}: row {uneven} has {len(rows[uneven])} cells where the header has "
            f"{len(header)}: mend the row"
        )

    def column(name: str) -> list[Any]:
        at = header.index(name)
        cells = [row[at] for row in rows] if by_path else _cells(path, [at], str)[:, 0].tolist()
        return cells if name in images else _typed(cells)

    images = [options.image_column or "", *_IMAGE_COLUMNS]
    table = _Table(
        columns=tuple(header), column=column, folder=path.parent, source=str(path),
        matrix=lambda names: _cells(path, [header.index(n) for n in names], np.float32),
    )  # fmt: skip
    return Parts(train=_images(table, options))


def _cells(path: Path, columns: list[int], kind: type) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty table is refused later
            return np.loadtxt(
                path, dtype=kind, delimiter=",", skiprows=1, usecols=columns, comments=None,
                quotechar='"', ndmin=2, encoding="utf-8-sig",
            )  # fmt: skip
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {_line(error)}: mend the row") from None


def _typed(cells: list[str]) -> list[Any]:
    if all(re.fullmatch(r"\s*-?\d+\s*", cell) for cell in cells):
        return [int(cell) for cell in cells]
    if all(re.fullmatch(r"\s*-?\d+\.\d*\s*", cell) for cell in cells):
        return [float(cell) for cell in cells]  # refused later, as any fractional label
    return [cell.strip() for cell in cells]


def _images(table: _Table, options: ReadOptions) -> Images:
    label = None if options.bare else _label_column(table, options.label_column)
    labels = None if label is None else table.column(label)
    classes = None if label is None else table.classes.get(label)
    pixel_columns = [name for name in table.columns if _PIXEL.match(name)]
    if options.image_column is None and pixel_columns:
        pixel_columns.sort(key=lambda name: int(_PIXEL.match(name)[1]))  # type: ignore[index]
        pixels = table.matrix(pixel_columns)
    else:
        pixels = _pixels(table, _image_column(table, options.image_column), options)
    return make_images(
        pixels, labels, classes=classes, source=table.source, size=options.size
    )  # fmt: skip


def _pixels(table: _Table, column: str, options: ReadOptions) -> np.ndarray:
    cells = table.column(column)
    if cells and all(isinstance(cell, list) for cell in cells):
        try:
            return np.asarray(cells)
        except ValueError:
            raise DataError(
                f"{table.source}: lists in column '{column}' differ in length: make all images "
                "one size"
            ) from None
    items = [_item(cell, i, column, table) for i, cell in enumerate(cells)]
    return decode_images(items, len(items), size=options.size, source=table.source)


def _item(cell: Any, row: int, column: str, table: _Table) -> tuple[str, bytes | Path]:
    path = cell.get("path") if isinstance(cell, dict) else cell
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes) and data:
        return (f"row {row}" + (f" ({path})" if isinstance(path, str) else ""), data)
    if isinstance(path, str) and path:
        return path, table.folder / path
    raise DataError(
        f"{table.source}: row {row} of column '{column}' holds neither an encoded image nor a "
        "path: fill it in, or name another column with data.image_column"
    )


def _image_column(table: _Table, wanted: str | None) -> str:
    found = _column(table, wanted, "image", table.images, _IMAGE_COLUMNS)
    if found is None:
        raise DataError(
            f"{table.source} has no image column among {', '.join(table.columns[:12]) or '(none)'}:"
            " name it with data.image_column"
        )
    return found


def _label_column(table: _Table, wanted: str | None) -> str | None:
    return _column(table, wanted, "label", tuple(table.classes), _LABEL_COLUMNS)


def _column(
    table: _Table, wanted: str | None, kind: str, declared: tuple[str, ...], usual: tuple[str, ...]
) -> str | None:
    if wanted is not None:
        if wanted not in table.columns:
            hint = near_matches(wanted, list(table.columns))
            raise DataError(f"{table.source} has no {kind} column '{wanted}'. {hint}")
        return wanted
    if len(declared) > 1:
        raise DataError(
            f"{table.source} has several {kind} columns ({', '.join(declared)}): "
            f"choose one with data.{kind}_column"
        )
    if declared:
        return declared[0]
    by_name = {name.lower(): name for name in reversed(table.columns)}
    return next((by_name[name] for name in usual if name in by_name), None)


def _arrow_table(
    table: pa.Table, folder: Path, source: str, features: dict[str, Any] | None = None
) -> _Table:
    import pyarrow as pa

    if features is None:
        raw = (table.schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(raw).get("info", {}).get("features", {})
    declared = {k: v for k, v in (features or {}).items() if isinstance(v, dict)}

    def column(name: str) -> list[Any]:
        try:
            return table.column(name).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{source}: column '{name}' is damaged ({_line(error)})") from None

    return _Table(
        columns=tuple(table.column_names),
        column=column,
        matrix=lambda names: np.column_stack([table.column(name).to_numpy() for name in names]),
        folder=folder,
        source=source,
        images=tuple(k for k, v in declared.items() if v.get("_type") == "Image"),
        classes={
            k: tuple(v["names"])
            for k, v in declared.items()
            if v.get("_type") == "ClassLabel" and v.get("names")
        },
    )


def _saved_table(path: Path) -> _Table:
    import pyarrow as pa

    state = _json(path / "state.json")
    info = path / "dataset_info.json"
    features = _json(info).get("features") if info.is_file() else None
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{path} was saved by an old 'datasets' with indices: load and save it")
    parts = []
    for entry in state.get("_data_files") or []:
        file = path / Path(str(entry.get("filename", ""))).name
        try:
            with pa.OSFile(str(file), "rb") as handle:
                parts.append(pa.ipc.open_stream(handle).read_all())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged ({_line(error)}): save the dataset again") from None
    if not parts:
        raise DataError(f"{path} names no data files in state.json: save the dataset again")
    try:
        table = pa.concat_tables(parts)
        table.validate(full=True)  # offsets in a damaged file may point anywhere
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged ({_line(error)}): save the dataset again") from None
    return _arrow_table(table, path, str(path), features or {})


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({_line(error)}): save the dataset again") from None
    return data if isinstance(data, dict) else {}


def _pyarrow(what: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra(what, "parquet") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
