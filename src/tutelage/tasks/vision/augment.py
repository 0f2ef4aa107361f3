"""Augmentation as a pure function of (seed, view, index), and normalisation.

Every random number is a hash of (seed, view, index, stream), and all arithmetic on pixels is on
whole numbers: any batch, order or process count gives the same bytes. View 0 is the untouched
image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tutelage.errors import DataError, RecipeError
from tutelage.tasks.draws import Draws

_DY, _DX, _FLIP, _ERASE, _TALL, _WIDE, _TOP, _LEFT, _PARTNER, _SHARE, _ZOOM = range(11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What may happen to an image in a view other than 0, in this order.

    `mixup`: largest share of another image mixed in, 0 to 0.5 (the share is uniform below it).
    `scale`: largest zoom in or out, as a share of the side, 0 to 0.5. `shift`: largest move along
    each axis, in pixels; what comes in is black. `flip`: mirror half of the images left to right.
    `erase`: share of the images with a rectangle, a fifth to a half of each side, made black.
    """

    shift: int = 0
    flip: bool = False
    erase: float = 0.0
    mixup: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"shift": math.inf, "erase": 1.0, "mixup": 0.5, "scale": 0.5}
        for name, high in bounds.items():
            value = getattr(self, name)
            if not (0 <= value <= high and math.isfinite(value)):
                raise RecipeError(
                    f"augment.{name} is {value}: it must lie between 0 and "
                    f"{'the side of the image' if high == math.inf else high}"
                )
        if self.shift != int(self.shift):
            raise RecipeError(f"augment.shift is {self.shift}: it must be a whole number of pixels")

    def __bool__(self) -> bool:
        return self.active

    @property
    def active(self) -> bool:
        """Whether any view but 0 differs from the untouched image."""
        return bool(self.shift or self.flip or self.erase or self.mixup or self.scale)


NO_AUGMENT = Augment()


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, pixels: UInt8[np.ndarray, "n h w c"]) -> Normalisation:
        """Fit on training pixels; a channel that never changes gets std 1."""
        levels = np.arange(256) / 255
        mean, std = [], []
        for channel in range(pixels.shape[3]):
            # Counts are whole numbers, so neither order nor blocking can change the result.
            counts = np.zeros(256, np.int64)
            for start in range(0, len(pixels), 1024):
                part = pixels[start : start + 1024, :, :, channel].ravel()
                counts += np.bincount(part, minlength=256)
            centre = float(counts @ levels / counts.sum())
            spread = math.sqrt(float(counts @ (levels - centre) ** 2 / counts.sum()))
            mean.append(centre)
            std.append(spread if np.count_nonzero(counts) > 1 else 1.0)
        return cls(mean=tuple(mean), std=tuple(std))

    def apply(self, pixels: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
        """Return (pixels / 255 - mean) / std as float32, in channels-last memory."""
        b, height, width, channels = pixels.shape
        if channels != len(self.mean):
            raise DataError(
                f"images have {channels} channels but the normalisation was fitted on "
                f"{len(self.mean)}: use images of one kind"
            )
        std = np.asarray(self.std)
        gain = np.tile(1 / (255 * std), width).astype(np.float32)
        offset = np.tile(-np.asarray(self.mean) / std, width).astype(np.float32)
        rows = torch.from_numpy(np.ascontiguousarray(pixels)).view(b, height, width * channels)
        out = rows.to(torch.float32).mul_(torch.from_numpy(gain)).add_(torch.from_numpy(offset))
        return out.view(b, height, width, channels).permute(0, 3, 1, 2)


def default_augment(height: int, width: int) -> Augment:
    """Return the augmentation that suits most images: a move by 7 % of the shorter side.

    Nothing is mirrored: digits and letters must not be, and only the user knows.
    """
    side = min(height, width)
    return Augment(shift=max(1, round(0.07 * side)) if side >= 2 else 0)


def augment(
    pixels: UInt8[np.ndarray, "b h w c"],
    index: Int[np.ndarray, " b"],
    *,
    all_pixels: UInt8[np.ndarray, "n h w c"] | None = None,
    seed: int,
    view: int,
    config: Augment,
    normalisation: Normalisation,
) -> Float[Tensor, "b c h w"]:
    """Return the batch as the network sees it in `view`, normalised float32.

    `index` names the images in the data set and alone decides what happens to each. `all_pixels`
    is the data set that mixup draws partners from. Raises `RecipeError` for a shift beyond the
    image, and for mixup without `all_pixels`.
    """
    if view != 0 and config.active:
        pixels = augment_pixels(
            pixels, index, all_pixels=all_pixels, seed=seed, view=view, config=config
        )
    return normalisation.apply(pixels)


def augment_pixels(
    pixels: UInt8[np.ndarray, "b h w c"],
    index: Int[np.ndarray, " b"],
    *,
    all_pixels: UInt8[np.ndarray, "n h w c"] | None = None,
    seed: int,
    view: int,
    config: Augment,
) -> UInt8[np.ndarray, "b h w c"]:
    """Return the augmented bytes of `view`, before normalisation; see `augment`."""
    if config.shift and config.shift >= min(pixels.shape[1:3]):
        raise RecipeError(
            f"augment.shift is {config.shift} pixels, but the images are {pixels.shape[1]} x "
            f"{pixels.shape[2]}: make it smaller"
        )
    draw = Draws(seed, view, index)
    if config.mixup:
        if all_pixels is None:
            raise RecipeError("augment.mixup needs the whole data set: pass all_pixels")
        pixels = _mixed(pixels, all_pixels, draw, config.mixup)
    if config.scale:
        pixels = _zoomed(pixels, 1 + config.scale * (2 * draw.uniform(_ZOOM) - 1))
    if config.shift:
        pixels = _shifted(pixels, draw, config.shift)
    if config.flip:
        mirror = draw.uniform(_FLIP) < 0.5
        pixels = np.where(mirror[:, None, None, None], pixels[:, :, ::-1], pixels)
    if config.erase:
        _, height, width, _ = pixels.shape
        pixels = pixels * ~_rectangles(draw, height, width, config.erase)[..., None]
    return pixels


def partners(
    index: Int[np.ndarray, " b"], count: int, *, seed: int, view: int
) -> Int[np.ndarray, " b"]:
    """Return which of `count` images mixup adds to each image of `index` in `view`."""
    return Draws(seed, view, index).below(_PARTNER, count)


def _mixed(pixels: np.ndarray, all_pixels: np.ndarray, draw: Draws, most: float) -> np.ndarray:
    partner = all_pixels[draw.below(_PARTNER, len(all_pixels))]
    share = np.floor(draw.uniform(_SHARE) * (most * 256 + 1)).astype(np.uint16)  # of 256
    share = share[:, None, None, None]
    total = pixels * (np.uint16(256) - share) + partner * share + np.uint16(128)
    return (total >> np.uint16(8)).astype(np.uint8)


def _shifted(pixels: np.ndarray, draw: Draws, most: int) -> np.ndarray:
    b, height, width, channels = pixels.shape
    padded = np.zeros((b, height + 2 * most, width + 2 * most, channels), np.uint8)
    padded[:, most : most + height, most : most + width] = pixels
    sb, sh, sw, sc = padded.strides
    side = 2 * most + 1
    windows = np.lib.stride_tricks.as_strided(
        padded, (b, side, side, height, width, channels), (sb, sh, sw, sh, sw, sc), writeable=False
    )
    return windows[np.arange(b), draw.below(_DY, side), draw.below(_DX, side)]


def _rectangles(
    draw: Draws, height: int, width: int, share: float
) -> Bool[np.ndarray, "b height width"]:
    on = draw.uniform(_ERASE) < share
    rows = _span(draw, _TALL, _TOP, height)
    columns = _span(draw, _WIDE, _LEFT, width)
    return rows[:, :, None] & columns[:, None, :] & on[:, None, None]


def _span(draw: Draws, length: int, start: int, side: int) -> Bool[np.ndarray, "b side"]:
    least, most = max(1, side // 5), max(1, side // 2)
    long = least + draw.below(length, most - least + 1)
    first = draw.below(start, side - long + 1)
    at = np.arange(side)
    return (at >= first[:, None]) & (at < (first + long)[:, None])


def _zoomed(pixels: np.ndarray, zoom: Float[np.ndarray, " b"]) -> np.ndarray:
    """Bilinear zoom about the centre, one axis after the other; black outside."""
    for axis in (1, 2):
        b, side = len(pixels), pixels.shape[axis]
        centre = (side - 1) / 2
        # Weights in 256ths, so that the arithmetic is exact.
        at = np.rint(((np.arange(side) - centre) / zoom[:, None] + centre) * 256).astype(np.int64)
        low, part = at >> 8, (at & 255).astype(np.uint16)
        pad = [(0, 0), (1, 1), (0, 0), (0, 0)] if axis == 1 else [(0, 0), (0, 0), (1, 1), (0, 0)]
        padded = np.pad(pixels, pad)
        near = _along(padded, np.clip(low + 1, 0, side + 1), axis)
        far = _along(padded, np.clip(low + 2, 0, side + 1), axis)
        weight = part.reshape((b, side, 1, 1) if axis == 1 else (b, 1, side, 1))
        total = near * (np.uint16(256) - weight) + far * weight + np.uint16(128)
        pixels = (total >> np.uint16(8)).astype(np.uint8)
    return pixels


def _along(padded: np.ndarray, at: Int[np.ndarray, "b side"], axis: int) -> np.ndarray:
    images = np.arange(len(padded))[:, None]
    if axis == 1:
        return padded[images, at]
    rows = np.arange(padded.shape[1])[None, :, None]
    return padded[images[:, :, None], rows, at[:, None, :]]
