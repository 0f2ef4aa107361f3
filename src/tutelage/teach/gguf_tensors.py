"""Tensors of a GGUF file as float32, in the shape and order of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tutelage.errors import CorruptFileError, MissingExtra, TeacherError
from tutelage.teach.gguf_header import GgufHeader, TensorPlace, mapped, shown

if TYPE_CHECKING:
    from mmap import mmap

_F32, _F16 = 0, 1


def read_rows(header: GgufHeader, place: TensorPlace) -> np.ndarray:
    """Return a tensor as the file has it, in float32 [its shape].

    Raises `MissingExtra` without gguf, `TeacherError` for a quantization that gguf cannot undo.
    """
    with mapped(header.path) as blob:
        return unpacked(header, blob, place)


def unpacked(header: GgufHeader, blob: mmap, place: TensorPlace) -> np.ndarray:
    """Return a tensor of the open file in float32 [its shape]; it is finite."""
    with np.errstate(all="ignore"):  # damaged numbers are found below
        found = _values(header, blob, place)
    if not np.isfinite(found).all():
        raise CorruptFileError(
            f"'{header.path}' is damaged: '{shown(place.name)}' holds numbers that are not finite. "
            "Copy it again from where it came from"
        )
    return found


def _values(header: GgufHeader, blob: mmap, place: TensorPlace) -> np.ndarray:
    raw = blob[place.start : place.start + place.bytes]
    if place.kind in (_F32, _F16):
        kind = np.float32 if place.kind == _F32 else np.float16
        return np.frombuffer(raw, kind).astype(np.float32).reshape(place.shape)
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise MissingExtra(f"the teacher '{header.path}'", "llm") from None
    lines = np.frombuffer(raw, np.uint8).reshape(-1, place.bytes // _lines(place))
    try:
        found = quants.dequantize(lines, GGMLQuantizationType(place.kind))
    except NotImplementedError:
        name = GGMLQuantizationType(place.kind).name
        raise TeacherError(
            f"'{header.path}' stores '{shown(place.name)}' as {name}, which gguf cannot undo. Use "
            "a file in f16, q8_0, q4_0 or a K quantization"
        ) from None
    return np.ascontiguousarray(found, np.float32).reshape(place.shape)


def _lines(place: TensorPlace) -> int:
    count = 1
    for side in place.shape[:-1]:
        count *= side
    return count
