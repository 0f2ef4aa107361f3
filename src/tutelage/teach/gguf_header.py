"""The header of a GGUF file, read with distrust: no size is believed before it is checked.

Source: the GGUF specification (ggml's docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import CorruptFileError, TeacherError

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 100_000, 1_000_000, 4
_MOST_ALIGNMENT = 1 << 16
_BIG_ENDIAN = (2 << 24, 3 << 24)
# Numbers and bytes of a block, by ggml's number of a type; what is not here cannot be read.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    20: (32, 18), 23: (256, 136), 30: (1, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """A tensor in the file: `shape` in torch's order, ggml's `kind`, where its bytes are."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Keys and tensors of a file; all of these lie within it."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorPlace]


def read_header(path: Path) -> GgufHeader:
    """Read keys and the table of tensors, no weights.

    Raises `TeacherError` where there is no GGUF file of a known version, and `CorruptFileError`
    where it is truncated or says what cannot be.
    """
    path = Path(path)
    with mapped(path) as blob:
        reader = _Reader(path, blob)
        metadata, count = reader.metadata()
        return GgufHeader(path=path, metadata=metadata, tensors=reader.tensors(metadata, count))


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Give the file's bytes, read when they are looked at."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise TeacherError(
                    f"'{path}' is no GGUF file. Name one, or the folder that holds config.json"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                yield blob
    except OSError as error:
        raise TeacherError(
            f"'{path}' cannot be read ({error.strerror or error}). Check the path"
        ) from None


def shown(value: object, most: int = 60) -> str:
    """Return what a file says as one short line, for a message."""
    return " ".join(str(value).split())[:most]


class _Reader:
    """A position in the bytes, and what is read from there on."""

    def __init__(self, path: Path, blob: mmap.mmap) -> None:
        self._path, self._blob, self._size, self._at = path, blob, len(blob), 4

    def metadata(self) -> tuple[dict[str, Any], int]:
        """Return the keys, and how many tensors follow."""
        version = self._number("I")
        if version in _BIG_ENDIAN:
            raise TeacherError(f"'{self._path}' is of a big-endian machine. Convert it first")
        if version not in (2, 3):
            raise TeacherError(
                f"'{self._path}' is GGUF version {version}, and versions 2 and 3 are read. Convert "
                "it with llama.cpp's gguf tools"
            )
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise self._damaged(f"it names {tensors} tensors and {keys} keys")
        found: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            if key in found:
                raise self._damaged(f"it has the key '{shown(key)}' twice")
            found[key] = self._value(self._number("I"))
        return found, tensors

    def tensors(self, metadata: dict[str, Any], count: int) -> dict[str, TensorPlace]:
        """Return the table of tensors; each lies within the file."""
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or not 0 < align <= _MOST_ALIGNMENT or align & (align - 1):
            raise self._damaged(f"its alignment is {shown(align, 20)}")
        rows = [self._row() for _ in range(count)]
        begin = -(-self._at // align) * align
        found: dict[str, TensorPlace] = {}
        for name, shape, kind, offset in rows:
            size = self._bytes(name, shape, kind)
            start = begin + offset
            if start + size > self._size:
                raise self._damaged(
                    f"the tensor '{shown(name)}' ends at byte {start + size} of {self._size}"
                )
            if name in found or offset % align:
                raise self._damaged(
                    f"the tensor '{shown(name)}' is listed twice or begins off its place"
                )
            found[name] = TensorPlace(name=name, shape=shape, kind=kind, start=start, bytes=size)
        return found

    def _row(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"the tensor '{shown(name)}' has {dimensions} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dimensions)]))
        return name, shape, self._number("I"), self._number("Q")

    def _bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        if kind not in BLOCKS:
            raise TeacherError(
                f"'{self._path}' stores '{shown(name)}' in ggml's type {kind}, which cannot be "
                "read here. Use a file in f16, q8_0, q4_0 or a K quantization"
            )
        block, size = BLOCKS[kind]
        if 0 in shape or shape[-1] % block:
            raise self._damaged(f"the tensor '{shown(name)}' has the shape {list(shape)}")
        return math.prod(shape) // block * size

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._format(kind))
        element, count = self._number("I"), self._number("Q")
        if element == _STRING:
            self._room(count * 8)
            return [self._string() for _ in range(count)]
        code = self._format(element)
        self._room(count * struct.calcsize(f"<{code}"))
        values = struct.unpack_from(f"<{count}{code}", self._blob, self._at)
        self._at += struct.calcsize(f"<{count}{code}")
        return list(values)

    def _format(self, kind: int) -> str:
        if kind not in _FORMATS:
            raise self._damaged(f"it holds a value of type {kind}")
        return _FORMATS[kind]

    def _number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self._room(size)
        (value,) = struct.unpack_from(f"<{code}", self._blob, self._at)
        self._at += size
        return value

    def _string(self) -> str:
        length = self._number("Q")
        self._room(length)
        raw = self._blob[self._at : self._at + length]
        self._at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a name or token in it is no text") from None

    def _room(self, count: int) -> None:
        if count > self._size - self._at:
            raise self._damaged(f"it ends at byte {self._size}, within its header")

    def _damaged(self, why: str) -> CorruptFileError:
        return CorruptFileError(
            f"'{self._path}' is truncated or damaged: {why}. Copy it again from where it came from"
        )
