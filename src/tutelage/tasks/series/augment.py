"""One length for all series, their normalisation, and their augmentation.

Augmentation is a pure function of (seed, view, index): every random number is a hash of (seed,
view, index, stream), and noise is a sum of whole numbers, so any batch, order or process count
gives the same bytes. View 0 is the untouched series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from tutelage.errors import DataError, RecipeError
from tutelage.tasks.draws import hash_keys
from tutelage.tasks.series.base import Series, lengths_of

_NOISE, _HEIGHT, _SPEED, _WINDOW, _MOVE, _PARTNER, _SHARE = range(1, 8)
_WINDOW_SHARE = 0.1
_JITTER, _STRETCH, _MIXUP = 0.03, 0.1, 0.5
_FOREIGN = ("flip", "erase", "scale")
_KEYS = ("mixup", "jitter", "stretch", "warp", "shift")


def fitted(series: Series, steps: int) -> Series:
    """Return the series with exactly `steps` steps: longer ones cut, shorter ones padded.

    Gaps between two values are then closed on a straight line; missing values before the first
    or after the last stay NaN. Raises `DataError` when nothing is left of one.
    """
    n, channels, had = series.values.shape
    values = np.full((n, channels, steps), np.nan, np.float32)
    values[:, :, : min(had, steps)] = series.values[:, :, :steps]
    lengths = lengths_of(values)
    if not lengths.all():
        at = int(np.argmin(lengths))
        raise DataError(
            f"{series.source}: series {at} has no values in its first {steps} steps: "
            "remove it, or raise data.length"
        )
    rows = values.reshape(-1, steps)
    for row in _gappy(rows):
        known = np.flatnonzero(~np.isnan(row))
        inside = np.arange(known[0], known[-1] + 1)
        row[inside] = np.interp(inside, known, row[known].astype(np.float64))
    return replace(series, values=values, lengths=lengths)


def _gappy(rows: np.ndarray) -> list[np.ndarray]:
    """Return views of the rows with NaN between two values."""
    present = ~np.isnan(rows)
    starts = (present[:, 1:] & ~present[:, :-1]).sum(axis=1) + present[:, 0]
    return [rows[i] for i in np.flatnonzero(starts > 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesAugment:
    """What may happen to a series in a view other than 0, in this order.

    `mixup`: largest share of another series mixed in, 0 to 0.5 (the share is uniform below it);
    where the other has no value, the series' own stays. `warp`: largest change of speed in a window
    of a tenth of the series, 0 to 0.5; the whole keeps its length. `shift`: largest move in time,
    in steps; what comes in is missing. `stretch`: largest change of height about the channel's
    mean, 0 to 0.5. `jitter`: standard deviation of the noise, as a share of the channel's own, 0
    to 1.
    """

    jitter: float = 0.0
    stretch: float = 0.0
    warp: float = 0.0
    shift: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"jitter": 1.0, "stretch": 0.5, "warp": 0.5, "shift": math.inf, "mixup": 0.5}
        for name, high in bounds.items():
            value = getattr(self, name)
            if not (0 <= value <= high and math.isfinite(value)):
                raise RecipeError(
                    f"augment.{name} is {value}: it must lie between 0 and "
                    f"{'the length of the series' if high == math.inf else high}"
                )
        if self.shift != int(self.shift):
            raise RecipeError(f"augment.shift is {self.shift}: it must be a whole number of steps")

    def __bool__(self) -> bool:
        return any(getattr(self, key) for key in _KEYS)

    @classmethod
    def wanted(cls, part: Any, steps: int) -> SeriesAugment:
        """Return what a recipe's augment part asks for, and where it is silent what is usual.

        That is another series mixed in, mild noise and stretch.
        Raises `RecipeError` for what makes no sense for series, and for a move beyond their end.
        """
        for name in _FOREIGN:
            if getattr(part, name, None):
                raise RecipeError(
                    f"augment.{name} is not for series: remove it ({', '.join(_KEYS)} are)"
                )
        given = {name: getattr(part, name, None) for name in _KEYS}
        mild = {"mixup": _MIXUP, "jitter": _JITTER, "stretch": _STRETCH, "warp": 0.0, "shift": 0}
        chosen = cls(**{name: mild[name] if v is None else v for name, v in given.items()})
        if chosen.shift >= steps:
            raise RecipeError(
                f"augment.shift is {chosen.shift} steps, but the series have {steps}: "
                "make it smaller"
            )
        return chosen


NO_SERIES_AUGMENT = SeriesAugment()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesNormalisation:
    """Mean and standard deviation of each channel, in the channel's own unit."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, values: Float[np.ndarray, "n c t"]) -> SeriesNormalisation:
        """Fit on training values, leaving out NaN; a channel that never changes gets std 1.

        Figures are rounded to nine digits, so that the artifact can say exactly what was used.
        """
        mean, std = [], []
        for channel in range(values.shape[1]):
            known = values[:, channel].ravel()
            known = known[~np.isnan(known)].astype(np.float64)
            flat = len(known) == 0 or known.min() == known.max()
            centre = _nine(float(known.mean())) if len(known) else 0.0
            mean.append(centre)
            std.append(1.0 if flat else _nine(math.sqrt(float(np.square(known - centre).mean()))))
        return cls(mean=tuple(mean), std=tuple(s if s > 0 else 1.0 for s in std))

    def scaled(self, values: Float[np.ndarray, "b c t"]) -> Float[np.ndarray, "b c t"]:
        """Return (values - mean) / std as float32; NaN stays. Raises `DataError`, see `apply`."""
        if values.shape[1] != len(self.mean):
            raise DataError(
                f"series have {values.shape[1]} channels but the normalisation was fitted on "
                f"{len(self.mean)}: use series of one kind"
            )
        centre, spread = np.asarray(self.mean)[:, None], np.asarray(self.std)[:, None]
        return ((values - centre) / spread).astype(np.float32)

    def apply(self, values: Float[np.ndarray, "b c t"]) -> Float[Tensor, "b c t"]:
        """Return (values - mean) / std as float32, and 0, the mean, where a value is missing.

        Raises `DataError` when there are other channels than it was fitted on.
        """
        return _filled(self.scaled(values))


def _nine(x: float) -> float:
    return float(f"{x:.9g}")


def _filled(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(np.isnan(values), np.float32(0), values))


def augment_series(
    values: Float[np.ndarray, "b c t"],
    lengths: Int[np.ndarray, " b"],
    index: Int[np.ndarray, " b"],
    *,
    all_values: Float[np.ndarray, "n c t"] | None = None,
    seed: int,
    view: int,
    config: SeriesAugment,
    normalisation: SeriesNormalisation,
) -> Float[Tensor, "b c t"]:
    """Return the batch as the network sees it in `view`, normalised float32.

    `index` names the series in the data set and alone decides what happens to each. `all_values`
    is the data set that mixup draws partners from. Missing values and padding stay 0, the mean of
    their channel. Raises `RecipeError` for mixup without `all_values`.
    """
    scaled = normalisation.scaled(values)
    if view == 0 or not config:
        return _filled(scaled)
    draw = _Draws(seed, view, index)
    if config.mixup:
        if all_values is None:
            raise RecipeError("augment.mixup needs the whole data set: pass all_values")
        partner = normalisation.scaled(all_values[draw.below(_PARTNER, len(all_values))])
        share = (config.mixup * draw.uniform(_SHARE)).astype(np.float32)[:, None, None]
        scaled += share * np.where(np.isnan(partner), np.float32(0), partner - scaled)
    if config.warp:
        scaled = _resampled(scaled, lengths, _warped(draw, lengths, values.shape[2], config.warp))
    if config.shift:
        scaled = _moved(scaled, draw.below(_MOVE, 2 * int(config.shift) + 1) - int(config.shift))
    if config.stretch:
        height = 1 + config.stretch * (2 * draw.uniform(_HEIGHT) - 1)
        scaled = scaled * height.astype(np.float32)[:, None, None]
    if config.jitter:
        scaled = scaled + np.float32(config.jitter) * draw.noise(_NOISE, scaled.shape[1:])
    return _filled(scaled)


class _Draws:
    """Random numbers for one batch: the same for an (index, stream) whatever stands beside it."""

    def __init__(self, seed: int, view: int, index: Int[np.ndarray, " b"]) -> None:
        self.seed = seed
        self.base = hash_keys(index.astype(np.uint64), seed, view)

    def bits(self, stream: int) -> UInt64[np.ndarray, " b"]:
        return hash_keys(self.base, self.seed, stream)

    def uniform(self, stream: int) -> Float[np.ndarray, " b"]:
        """Numbers in [0, 1) with 53 random bits."""
        return (self.bits(stream) >> np.uint64(11)) * 2.0**-53

    def below(self, stream: int, limit: int) -> Int[np.ndarray, " b"]:
        """Whole numbers in [0, limit)."""
        return (self.bits(stream) % np.uint64(limit)).astype(np.int64)

    def noise(self, stream: int, shape: tuple[int, ...]) -> Float[np.ndarray, "b ..."]:
        """Numbers of mean 0 and variance 1, near normal: sums of four uniform 16-bit numbers.

        The variance of one is (2^32 - 1) / 12; none lies beyond 3.47.
        """
        count = math.prod(shape)
        keys = self.bits(stream)[:, None] + np.arange(count, dtype=np.uint64)
        bits = hash_keys(keys.ravel(), self.seed, stream)
        total = bits.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
        spread = math.sqrt(4 * (2.0**32 - 1) / 12)
        noise = ((total - 2 * 65535) / spread).astype(np.float32)
        return noise.reshape(len(keys), *shape)


def _warped(
    draw: _Draws, lengths: Int[np.ndarray, " b"], steps: int, most: float
) -> Float[np.ndarray, "b t"]:
    """Return where in the series each step is read: one window of it at another speed."""
    end = np.maximum(lengths - 1, 1).astype(np.float64)[:, None]
    long = end * _WINDOW_SHARE
    first = (end - long) * draw.uniform(_WINDOW)[:, None]
    factor = 1 + most * (2 * draw.uniform(_SPEED)[:, None] - 1)
    at = np.arange(steps) * ((end + long * (factor - 1)) / end)
    inside = first + (at - first) / factor
    after = at - long * (factor - 1)
    read = np.where(at < first, at, np.where(at < first + long * factor, inside, after))
    return np.clip(read, 0, end)


def _resampled(
    values: np.ndarray, lengths: Int[np.ndarray, " b"], at: Float[np.ndarray, "b t"]
) -> np.ndarray:
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(lengths - 1, 0)[:, None])
    part = (at - low).astype(np.float32)[:, None]
    before = np.take_along_axis(values, low[:, None], axis=2)
    behind = np.take_along_axis(values, high[:, None], axis=2)
    mixed = np.where(part == 0, before, before + (behind - before) * part)
    padding = np.arange(values.shape[2]) >= lengths[:, None]
    return np.where(padding[:, None], np.float32(np.nan), mixed)


def _moved(values: np.ndarray, by: Int[np.ndarray, " b"]) -> np.ndarray:
    steps = values.shape[2]
    at = np.arange(steps) - by[:, None]
    read = np.take_along_axis(values, np.clip(at, 0, steps - 1)[:, None], axis=2)
    return np.where(((at >= 0) & (at < steps))[:, None], read, np.float32(np.nan))
