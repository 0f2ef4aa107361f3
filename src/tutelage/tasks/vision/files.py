"""Images from IDX files, `.npz` archives, folders of class folders, and the embedded digits."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from tutelage.errors import DataError
from tutelage.tasks.archives import read_arrays
from tutelage.tasks.parts import Parts, gather
from tutelage.tasks.splits import split_name
from tutelage.tasks.vision.base import (
    Images,
    ReadOptions,
    make_images,
)
from tutelage.tasks.vision.decode import IMAGE_SUFFIXES, decode_images

_IDX_UBYTE = 0x08
_X_KEYS = ("x", "X", "images", "data", "image")
_Y_KEYS = ("y", "Y", "labels", "target", "label", "targets")
_NPZ_SPLITS = {  # Keras and MedMNIST habits
    "train": (("x_train", "X_train", "train_images"), ("y_train", "train_labels")),
    "validation": (("x_val", "X_val", "val_images"), ("y_val", "val_labels")),
    "test": (("x_test", "X_test", "test_images"), ("y_test", "test_labels")),
}


def read_digits(path: Path, options: ReadOptions) -> Parts[Images]:
    """Return scikit-learn's 1,797 digits, 8 x 8, with their 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(i) for i in range(10))
    return Parts(
        train=make_images(
            pixels, None if options.bare else digits.target, classes=names, source="digits",
            size=options.size,
        )
    )  # fmt: skip


def read_idx(path: Path, options: ReadOptions) -> Parts[Images]:
    """Read an IDX images file, or a folder of them (`train-images...`, `t10k-images...`).

    The labels file is found by its name (`images` becomes `labels`); see
    http://yann.lecun.com/exdb/mnist for the format. `.gz` is read as it is.
    """
    if path.is_file():
        return Parts(train=_idx_pair(path, options.labels, options))
    found: dict[str, Path] = {}
    for file in idx_files(path):
        words = [word for word in map(split_name, _words(file)) if word]
        split = words[0] if words else "train"
        if split in found and _bare(found[split]) != _bare(file):
            raise DataError(
                f"{path} holds several IDX image files ('{found[split].name}', '{file.name}'): "
                "give the path of one"
            )
        found.setdefault(split, file)
    labels = {split: options.labels if split == "train" else None for split in found}
    pairs = {split: _idx_pair(file, labels[split], options) for split, file in found.items()}
    return gather(pairs, str(path), "images")


def idx_files(folder: Path) -> list[Path]:
    """List the IDX image files of a folder, unpacked ones before their `.gz` twins."""
    files = [f for f in folder.iterdir() if f.is_file() and {"images", "ubyte"} <= set(_words(f))]
    return sorted(files, key=lambda f: (_bare(f), f.suffix == ".gz"))


def is_idx(path: Path) -> bool:
    """Say whether a file begins like an IDX file."""
    try:
        with _opened(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in range(0x08, 0x0F) and head[3] < 5


def _words(file: Path) -> list[str]:
    return re.split(r"[-_.]", file.name.lower())


def _bare(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def _idx_pair(images: Path, labels: Path | None, options: ReadOptions) -> Images:
    labels = None if options.bare else labels or _labels_beside(images)
    pixels = _idx_array(images)
    if pixels.ndim not in (3, 4):
        raise DataError(
            f"{images} has {pixels.ndim} dimensions, so it holds no images: "
            "give the path of the images file"
        )
    numbers = None if labels is None else _idx_array(labels)
    return make_images(pixels, numbers, source=str(images), size=options.size)


def _labels_beside(images: Path) -> Path | None:
    stem = _bare(images).replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    for name in (stem, f"{stem}.gz"):
        beside = images.with_name(name)
        if beside.is_file() and beside != images:
            return beside
    return None


def _idx_array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path} does not exist: correct the path of the IDX file")
    try:
        with _opened(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _IDX_UBYTE or head[3] < 1:
                raise DataError(f"{path} is not an IDX file of unsigned bytes: check its format")
            raw = file.read(4 * head[3])
            shape = tuple(int(side) for side in np.frombuffer(raw[: len(raw) // 4 * 4], ">u4"))
            want = math.prod(shape)
            body = _at_most(file, want + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from None
    if len(shape) != head[3] or len(body) != want:
        raise DataError(
            f"{path} is damaged: its header promises {want} bytes and it holds "
            f"{'more' if len(body) > want else len(body)}: fetch it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _at_most(file: IO[bytes], count: int) -> bytes:
    # In pieces: a damaged header may promise more than any memory holds.
    parts: list[bytes] = []
    while count > 0:
        part = file.read(min(count, 1 << 24))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_npz(path: Path, options: ReadOptions) -> Parts[Images]:
    """Read a NumPy archive: `x` and `y` (or images/data/X, labels/target), or `x_train`, ..."""
    arrays = read_arrays(path)
    found: dict[str, Images] = {}
    for split, (x_keys, y_keys) in _NPZ_SPLITS.items():
        if any(key in arrays for key in x_keys):
            found[split] = _npz_part(path, arrays, x_keys, y_keys, options)
    if not found:
        found["train"] = _npz_part(path, arrays, _X_KEYS, _Y_KEYS, options)
    return gather(found, str(path), "images")


def _npz_part(
    path: Path,
    arrays: dict[str, np.ndarray],
    x_keys: tuple[str, ...],
    y_keys: tuple[str, ...],
    options: ReadOptions,
) -> Images:
    x = next((key for key in x_keys if key in arrays), None)
    y = next((key for key in y_keys if key in arrays), None)
    if x is None:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}: "
            "name the images x and the labels y"
        )
    labels = None if y is None or options.bare else arrays[y]
    return make_images(arrays[x], labels, source=f"{path}:{x}", size=options.size)


def read_folder(path: Path, options: ReadOptions) -> Parts[Images]:
    """Read a folder with one folder a class, or with `train` and `test` folders of those.

    The class names are the folder names, in the order of their code points. A folder of images
    alone has no labels.
    """
    folders = _folders(path)
    splits = {name: split_name(name) for name in folders}
    if "train" in splits.values() and all(splits.values()):
        found: dict[str, Images] = {}
        for name, split in splits.items():
            if split in found:
                raise DataError(f"{path} has two '{split}' folders: remove or rename '{name}'")
            found[str(split)] = _class_folders(path / name, options)
        return gather(found, str(path), "images")
    return Parts(train=_class_folders(path, options))


def _folders(path: Path) -> list[str]:
    return sorted(f.name for f in path.iterdir() if f.is_dir() and f.name[0] not in "._")


def _class_folders(path: Path, options: ReadOptions) -> Images:
    names = tuple(_folders(path))
    if options.bare or not names:
        return _without_classes(path, options)
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        inside = _image_files(path / name)
        if not inside:
            raise DataError(
                f"class folder {path / name} holds no images: remove the folder, or fill it with "
                "png, jpg, bmp, gif, webp, tiff or ppm files"
            )
        files += inside
        labels += [number] * len(inside)
    pixels = _decoded(path, files, options)
    return make_images(pixels, np.array(labels), classes=names, source=str(path))


def _without_classes(path: Path, options: ReadOptions) -> Images:
    files = _image_files(path)
    if not files:
        raise DataError(
            f"{path} holds no images: put the images of each class in a folder named after it"
        )
    return make_images(_decoded(path, files, options), None, source=str(path))


def _decoded(path: Path, files: list[Path], options: ReadOptions) -> np.ndarray:
    items = ((str(file.relative_to(path)), file) for file in files)
    return decode_images(items, len(files), size=options.size, source=str(path))


def _image_files(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    return sorted(f for f in files if not f.name.startswith("."))
