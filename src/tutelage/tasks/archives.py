"""NumPy archives, read without pickle."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from tutelage.errors import DataError

# What numpy and zipfile are known to raise on damaged files.
_BROKEN = (
    OSError, EOFError, KeyError, ValueError, AttributeError, NotImplementedError, RuntimeError,
    SyntaxError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a `.npz` by name.

    Raises `DataError` for a file that is damaged, is a single array, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path} is a single .npy array: save x and y with numpy.savez")
            return {key: archive[key] for key in archive.files}
    except _BROKEN as error:
        if "pickle" in str(error) and zipfile.is_zipfile(path):
            raise DataError(
                f"{path} holds Python objects, which are never loaded: save plain arrays (numbers "
                "or fixed-width strings)"
            ) from None
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is not a readable .npz ({said}): save it again") from None
