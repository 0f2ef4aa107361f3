"""A set of labelled images in memory, and the careful ways from foreign arrays to it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from tutelage.errors import DataError
from tutelage.tasks.labels import as_labels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Images as bytes, channels last, with class numbers and class names.

    `labels` is None, and `classes` empty, for images without labels; where some have none, theirs
    is -1. `source` names the place they came from, for messages.
    """

    pixels: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"] | None
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels, labels and classes: content only (read anew each time)."""
        names = "".join(f"{len(name)}:{name}" for name in self.classes)
        digest = hashlib.sha256(f"{self.pixels.shape}|{names}|".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()

    def take(self, index: Int[np.ndarray, " m"]) -> Images:
        """Return the images named by `index`, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return Images(
            pixels=self.pixels[index], labels=labels, classes=self.classes, source=self.source
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How to read: labels file (IDX, npz), columns (tables), and (height, width) to resize to.

    `bare`: labels are not read, whether there are any or not.
    """

    labels: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    size: tuple[int, int] | None = None
    bare: bool = False


def make_images(
    pixels: np.ndarray,
    labels: Sequence[Any] | np.ndarray | None,
    *,
    classes: tuple[str, ...] | None = None,
    source: str,
    size: tuple[int, int] | None = None,
) -> Images:
    """Build `Images` from arrays, converting with care.

    `pixels`: `[n, h, w, c]`, `[n, h, w]`, `[n, c, h, w]` (1, 3 or 4 channels) or flat `[n, d]` of a
    square image; uint8, whole numbers 0..255, or floats in 0..1 or 0..255. `labels`: whole numbers
    from 0 or 1 on, or names. Raises `DataError` for anything else.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 0 or len(pixels) == 0:
        raise DataError(f"{source} holds no images: check that the path is the right one")
    pixels = _resized(_shaped(_as_bytes(pixels, source), source, size), size)
    if labels is None:
        return Images(pixels=pixels, labels=None, classes=(), source=source)
    numbers, names = as_labels(labels, classes, source)
    if len(numbers) != len(pixels):
        raise DataError(
            f"{source} has {len(pixels)} images but {len(numbers)} labels: "
            "give labels that belong to these images"
        )
    return Images(pixels=pixels, labels=numbers, classes=names, source=source)


def _as_bytes(pixels: np.ndarray, source: str) -> np.ndarray:
    if pixels.dtype == np.uint8 or pixels.size == 0:
        return pixels.astype(np.uint8, copy=False)  # an empty axis is refused by the caller
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind not in "iuf":
        raise DataError(
            f"{source}: pixels of type {pixels.dtype} are not numbers: save them as uint8"
        )
    low, high = float(pixels.min()), float(pixels.max())
    whole = pixels.dtype.kind in "iu" or (
        high > 1 and math.isfinite(low) and bool((pixels == np.rint(pixels)).all())
    )
    # Fractions up to 16, say, could be on any scale: they are taken only if plainly 0..255.
    if not (low >= 0 and (high <= 1 or (high <= 255 and (whole or high > 127)))):
        raise DataError(
            f"{source}: pixels run from {low:.4g} to {high:.4g}, which is neither 0..1 nor 0..255: "
            "save the raw pixels as uint8 (normalisation is done here)"
        )
    scale = 255.0 if pixels.dtype.kind == "f" and high <= 1 else 1.0
    out = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), 4096):  # no second float copy of the whole set
        part = pixels[start : start + 4096].astype(np.float64)
        out[start : start + 4096] = np.rint(part * scale)
    return out


def _shaped(pixels: np.ndarray, source: str, size: tuple[int, int] | None) -> np.ndarray:
    if pixels.ndim == 2:
        return _unflattened(pixels, source, size)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise DataError(
            f"{source}: pixels of shape {list(pixels.shape)} are not images: "
            "save them as [n, height, width, channels]"
        )
    if pixels.shape[3] > 4 and pixels.shape[1] in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels)


def _unflattened(
    pixels: np.ndarray, source: str, size: tuple[int, int] | None
) -> np.ndarray:  # fmt: skip
    count = pixels.shape[1]
    for channels in (1, 3, 4):
        if size is not None and count == size[0] * size[1] * channels:
            return pixels.reshape(len(pixels), *size, channels)
    for channels in (1, 3, 4):
        side = math.isqrt(count // channels)
        if side > 0 and side * side * channels == count:
            return pixels.reshape(len(pixels), side, side, channels)
    raise DataError(
        f"{source}: {count} pixels an image do not make a square: write data.size: [H, W]"
    )


def _resized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or pixels.shape[1:3] == tuple(size):
        return pixels
    from PIL import Image

    n, _, _, channels = pixels.shape
    out = np.empty((n, *size, channels), np.uint8)
    for i in range(n):
        for c in range(channels):
            plane = Image.fromarray(np.ascontiguousarray(pixels[i, :, :, c]))
            plane = plane.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            out[i, :, :, c] = np.asarray(plane)
    return out
