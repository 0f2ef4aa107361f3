"""Ranges of activations, from examples: what 256 levels are spread over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tutelage.errors import DataError, ExportError, RecipeError
from tutelage.export.artifact import observe
from tutelage.registry import near_matches

if TYPE_CHECKING:
    from onnx import ModelProto

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
Ranges = dict[str, tuple[float, float]]
_BINS = 2048


def calibrate(model: ModelProto, inputs: np.ndarray, method: Method) -> Ranges:
    """Return (low, high) of every float activation; zero is always inside."""
    if method not in METHODS:
        hint = near_matches(method, list(METHODS))
        raise RecipeError(f"unknown calibration method '{method}'. {hint}")
    if len(inputs) == 0 or not np.isfinite(inputs).all():
        raise DataError("calibration needs one example at least, all finite. Check the data.")
    ranges: Ranges = {}
    for name, values in observe(model, inputs):
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
        if not np.isfinite([values.min(), values.max()]).all():
            raise ExportError(f"activation '{name}' is not finite. Train the student again.")
    if method == "minmax":
        return ranges
    counts = {name: np.zeros(_BINS, np.int64) for name in ranges}
    for name, values in observe(model, inputs):
        low, high = ranges[name]
        scaled = (values.ravel() - low) * (_BINS / max(high - low, 1e-30))
        bins = np.clip(scaled.astype(np.int64), 0, _BINS - 1)
        counts[name] += np.bincount(bins, minlength=_BINS)
    clip = _percentile_clip if method == "percentile" else _entropy_clip
    return {name: clip(counts[name], *bounds) for name, bounds in ranges.items()}


def _percentile_clip(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Keep the central 99.99 % of the values."""
    share = np.cumsum(counts) / counts.sum()
    edges = np.linspace(low, high, _BINS + 1)
    first = int(np.searchsorted(share, 5e-5, side="right"))
    last = int(np.searchsorted(share, 1 - 5e-5))
    return min(0.0, float(edges[first])), max(0.0, float(edges[last + 1]))


def _entropy_clip(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Shrink the range to where 256 levels lose least: min KL(values || quantized values)."""
    counts = counts.reshape(-1, 4).sum(1)  # two bins a level: finer ones reward clipping alone
    edges = np.linspace(low, high, len(counts) + 1)
    best, chosen = float("inf"), (low, high)
    for shrinkage in np.linspace(1.0, 0.5, 26):
        inside = (edges[1:] > low * shrinkage) & (edges[:-1] < high * shrinkage)
        kept = counts[inside].astype(np.float64)
        clipped, first = kept.copy(), int(inside.argmax())
        clipped[[0, -1]] += counts[:first].sum(), counts[first + len(kept) :].sum()
        level = np.arange(len(kept)) * 256 // len(kept)
        filled = np.bincount(level, kept > 0, 256)[level]
        spread = np.where(kept > 0, np.bincount(level, kept, 256)[level] / np.maximum(filled, 1), 0)
        p, q = clipped / clipped.sum(), np.maximum(spread / max(spread.sum(), 1), 1e-9)
        loss = float(np.sum(p * np.log(np.maximum(p, 1e-30) / q)))
        if loss < best:
            best, chosen = loss, (low * float(shrinkage), high * float(shrinkage))
    return chosen
