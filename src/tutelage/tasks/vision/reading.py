"""Read images from any known form: the one door to the readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tutelage.errors import DataError
from tutelage.registry import near_matches
from tutelage.tasks.parts import Parts
from tutelage.tasks.vision.base import Images, ReadOptions
from tutelage.tasks.vision.files import (
    idx_files,
    is_idx,
    read_digits,
    read_folder,
    read_idx,
    read_npz,
)
from tutelage.tasks.vision.tables import read_csv, read_parquet, read_saved_dataset

Format = Literal["auto", "idx", "folder", "npz", "parquet", "csv", "saved_dataset", "digits"]

_READERS: dict[str, Callable[[Path, ReadOptions], Parts[Images]]] = {
    "idx": read_idx,
    "folder": read_folder,
    "npz": read_npz,
    "parquet": read_parquet,
    "csv": read_csv,
    "saved_dataset": read_saved_dataset,
    "digits": read_digits,
}
_SUFFIXES = {".npz": "npz", ".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
_FOLDERS_ONLY, _FILES_ONLY = ("folder", "saved_dataset"), ("npz", "csv")
_KNOWN = "a folder of class folders, an IDX pair, .npz, .parquet, .csv or a saved dataset"


def read_splits(
    path: str | Path,
    *,
    labels: Path | None = None,
    format: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    size: tuple[int, int] | None = None,
    bare: bool = False,
) -> Parts[Images]:
    """Read all the splits that `path` holds, keeping the names train, validation and test.

    `path` is a file, a folder, or `digits` (scikit-learn's; a folder of that name is `./digits`).
    `labels` is the labels file of IDX images when its name does not follow. `size` is (height,
    width) in pixels, to which every image is brought. `bare`: labels are not read. Raises
    `DataError` in one line for whatever cannot be read.
    """
    if size is not None and not all(1 <= side <= 16384 for side in size):
        raise DataError(f"data.size: {list(size)} is not a size: write [height, width] in pixels")
    chosen = "digits" if format == "auto" and str(path) == "digits" else format
    where = Path(path)
    if chosen != "digits" and not where.exists():
        raise DataError(f"{path} does not exist: correct the path (looked in {Path.cwd()})")
    if chosen == "auto":
        chosen = detect_format(where)
    if chosen not in _READERS:
        raise DataError(f"unknown image format '{chosen}'. {near_matches(chosen, list(_READERS))}")
    if where.exists() and chosen in (_FOLDERS_ONLY if where.is_file() else _FILES_ONLY):
        kind = "file" if where.is_file() else "folder"
        raise DataError(f"{path} is a {kind}, which '{chosen}' cannot be: correct data.format")
    if labels is not None and chosen != "idx":
        raise DataError(
            f"{path} is no IDX file, and holds its labels itself: remove the labels file '{labels}'"
        )
    options = ReadOptions(
        labels=labels, image_column=image_column, label_column=label_column, size=size, bare=bare
    )
    try:
        return _READERS[chosen](where, options)
    except PermissionError as error:
        raise DataError(
            f"{error.filename or path} may not be read: change its permissions"
        ) from None


def read_images(
    path: str | Path,
    *,
    labels: Path | None = None,
    format: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    size: tuple[int, int] | None = None,
    split: Literal["train", "validation", "test"] = "train",
) -> Images:
    """Read one set of images: the `split` of `path`, or all of it where it has no such part."""
    found = read_splits(
        path, labels=labels, format=format, image_column=image_column,
        label_column=label_column, size=size,
    )  # fmt: skip
    return getattr(found, split) or found.train


def detect_format(path: Path) -> str:
    """Return the name of the reader that fits a file or folder; raises `DataError` for none."""
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return "saved_dataset"
        if not any(path.iterdir()):
            raise DataError(f"{path} is an empty folder: give {_KNOWN}")
        if idx_files(path):
            return "idx"
        return "parquet" if any(path.glob("*.parquet")) else "folder"
    by_suffix = _SUFFIXES.get(path.suffix.lower())
    if by_suffix is not None:
        return by_suffix
    # A damaged .gz no longer shows its first bytes, so the name counts too.
    if is_idx(path) or "ubyte" in path.name.replace(".", "-").split("-"):
        return "idx"
    raise DataError(f"{path} is of no known form ('{path.suffix}'): give {_KNOWN}")
