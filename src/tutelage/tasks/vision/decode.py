"""Encoded images (PNG, JPEG, ...) to one array of bytes, through Pillow."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from tutelage.errors import DataError
from tutelage.units import format_quantity

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error,
                  IndexError, KeyError, TypeError, OverflowError)  # fmt: skip


def decode_images(
    items: Iterable[tuple[str, bytes | Path]],
    count: int,
    *,
    size: tuple[int, int] | None,
    source: str,
) -> UInt8[np.ndarray, "n h w c"]:
    """Decode `count` images, each a name for messages and its bytes or file.

    Grey images have 1 channel, all others 3 (transparency is dropped, 16-bit grey becomes 8); if
    any is in colour, all are. Raises `DataError` for a corrupt image, and for mixed sizes unless
    `size` (height, width) is given.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd metadata beside sound pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _stacked(items, count, size, source)


def _stacked(
    items: Iterable[tuple[str, bytes | Path]],
    count: int,
    size: tuple[int, int] | None,
    source: str,
) -> np.ndarray:
    pixels: np.ndarray = np.empty((0, 0, 0, 0), np.uint8)
    first = ""
    for i, (name, item) in enumerate(items):
        image = _decode(name, item, size, source)
        if i == 0:
            first, pixels = name, _room(count, image.shape, source)
        if image.shape[:2] != pixels.shape[1:3]:
            raise DataError(_mixed_sizes(first, pixels.shape[1:3], name, image.shape[:2], source))
        if image.shape[2] > pixels.shape[3]:
            pixels = np.repeat(pixels, 3, axis=3)
        pixels[i] = image  # a grey image is repeated over the channels
    return pixels


def _room(count: int, shape: tuple[int, ...], source: str) -> np.ndarray:
    import psutil

    need, free = count * math.prod(shape), psutil.virtual_memory().available
    if need > free:
        raise DataError(
            f"{count} images of {shape[0]}x{shape[1]} from {source} need "
            f"{format_quantity(need, 'B')} of memory and {format_quantity(free, 'B')} are free: "
            "write data.size: [H, W] to shrink them"
        )
    return np.empty((count, *shape), np.uint8)


def _decode(name: str, item: bytes | Path, size: tuple[int, int] | None, source: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as opened:
            image = _eight_bits(opened)
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"image '{name}' of {source} does not exist: correct its path") from None
    except (
        *_DECODE_ERRORS,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"image '{name}' of {source} cannot be read ({reason}): replace or remove it"
        ) from None
    return array[..., None] if array.ndim == 2 else array


def _eight_bits(image: Image) -> Image:
    from PIL import Image as pillow

    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"grey values run from {wide.min()} to {wide.max()}, not 0 to 65535")
        return pillow.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("grey values are floats, whose range is unknown")
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _mixed_sizes(
    first: str, first_size: tuple[int, ...], name: str, size: tuple[int, ...], source: str
) -> str:
    a, b = "x".join(map(str, first_size)), "x".join(map(str, size))
    return (
        f"images of {source} differ in size (height x width): '{first}' is {a}, '{name}' is {b}: "
        "write data.size: [H, W] to resize them all"
    )
