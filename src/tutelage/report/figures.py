"""Measurements as people read them: text, kind, interval, origin. Nothing else prints a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from tutelage.records import Kind, Measurement
from tutelage.units import format_quantity

_KINDS: tuple[Kind, ...] = get_args(Kind)  # from the surest to the least sure
_SHARES = (
    "accuracy", "balanced_accuracy", "macro_f1", "agreement", "kept", "calibration_error",
    "confidence", "share", "ended", "repeated", "latency_noise_floor",
)  # fmt: skip
_LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "latency_s": "Latency",
    "latency_p50_s": "Latency, median",
    "latency_p95_s": "Latency, 95th percentile",
    "storage_bytes": "Storage",
    "ram_bytes": "Memory",
    "peak_activation_bytes": "Peak activations",
    "macs": "Multiply-accumulates",
    "macs_mean": "Multiply-accumulates, mean over test",
    "latency_mean_s": "Latency, mean over test",
    "energy_j": "Energy per inference",
    "energy_an_hour_j": "Energy an hour, while it decides",
    "decisions_an_hour": "Decisions an hour",
    "parameters": "Parameters",
    "difference": "Mean absolute difference from the teacher",
    "r2_to_teacher": "R² with the teacher as the truth",
    "agreement": "Same decision as the teacher",
    "kept": "Teacher’s accuracy kept",
    "kl": "KL divergence from the teacher, nats",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "perplexity_untaught": "Perplexity before it was taught",
    "bits_per_byte_untaught": "Bits per byte before it was taught",
    "tokens_per_s": "Tokens a second",
    "agreement_greedy": "Same likeliest token as the teacher",
    "kl_a_token": "KL divergence from the teacher a token, nats",
    "calibration_error_student": "Calibration error, student",
    "calibration_error_teacher": "Calibration error, teacher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One printable figure. `hint` is the whole story in words, for a tooltip."""

    text: str
    kind: Kind
    spread: str = ""
    where: str = ""
    hint: str = ""

    @property
    def tag(self) -> str:
        """The letter that stands for the kind: M, P or E."""
        return self.kind[0].upper()


def measurement(data: dict[str, Any]) -> Measurement:
    """Rebuild a measurement; raises `ValueError` or `TypeError` when it is not one."""
    found = Measurement.from_json(data)
    if found.kind not in _KINDS:
        raise ValueError(f"'{found.name}' is of the unknown kind '{found.kind}'")
    numbers = (found.value, *(found.spread or ()))
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in numbers):
        raise TypeError(f"'{found.name}' is not a number")
    return found


def show(m: Measurement) -> Figure:
    """Format a measurement."""
    text = quantity(m.name, m.value, m.unit)
    spread = "" if m.spread is None else _interval(m)
    readings = f", {m.n:,} readings" if m.n > 1 else ""
    interval = f", 95 % interval {spread}" if spread else ""
    hint = f"{m.kind}{readings}{interval}{': ' + m.where if m.where else ''}"
    return Figure(text=text, kind=m.kind, spread=spread, where=m.where, hint=hint)


def read_figure(data: dict[str, Any]) -> Figure:
    """Format a measurement given as JSON."""
    return show(measurement(data))


def made(
    name: str,
    value: float,
    unit: str = "1",
    kind: Kind = "measured",
    *,
    n: int = 1,
    where: str = "",
) -> Figure:
    """Format a value that a file gives beside its kind rather than as a whole measurement."""
    data = {"name": name, "value": value, "unit": unit, "kind": kind, "n": n, "where": where}
    return read_figure(data)


def weakest(kinds: Iterable[Kind]) -> Kind:
    """Return the least sure kind: what is derived from several is no surer than that."""
    return max(kinds, key=_KINDS.index)


def label(name: str) -> str:
    """Return a metric's name in words; `_test` and `_validation` name the split."""
    metric, _, split = name.rpartition("_")
    if metric in _LABELS and split in ("test", "validation"):
        return f"{_LABELS[metric]}, {split}"
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


def quantity(name: str, value: float, unit: str) -> str:
    """Write a value as text: shares in percent, counts in full, the rest with its SI prefix."""
    if not math.isfinite(value):
        return "unknown"
    if unit == "1" and name.startswith(_SHARES):
        return f"{_percent(value)} %"
    if unit == "1" and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return format_quantity(value, unit)


def headline(metric: str) -> str:
    """Return a metric's name as it stands inside a sentence."""
    if metric == "agreement":
        return metric
    name = label(metric)
    return name if name.startswith("R²") else name[:1].lower() + name[1:]


def ratio(larger: float, smaller: float) -> str:
    """Write how many times `larger` is `smaller`."""
    times = larger / smaller
    return f"{times:,.0f}×" if times >= 9.95 else f"{times:.2g}×"


def points(change: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    if not math.isfinite(change):
        return "unknown"
    if abs(change) < 0.0005:
        return "±0"
    return f"{'+' if change > 0 else '−'}{abs(100 * change):.1f}"


def _percent(value: float) -> str:
    value = round(value, 9)  # an interval's end may miss 1 by the last bit
    digits = 1
    # 99.97 must not read as 100.0, nor 0.03 as 0.0
    while digits < 4 and value not in (0, 1) and f"{100 * value:.{digits}f}" in _round(digits):
        digits += 1
    text = f"{100 * value:.{digits}f}"
    return "100" if value == 1 else "0" if value == 0 else text


def _round(digits: int) -> tuple[str, str]:
    return f"{100:.{digits}f}", f"{0:.{digits}f}"


def _interval(m: Measurement) -> str:
    low, high = m.spread or (m.value, m.value)
    first, last = quantity(m.name, low, m.unit), quantity(m.name, high, m.unit)
    unit = last.rpartition(" ")[2]
    if first.endswith(f" {unit}") and last.endswith(f" {unit}"):
        first = first.removesuffix(f" {unit}")
    return f"{first} to {last}"
