"""Quantities as people write them (`100 kB`, `2 ms`, `5 mJ`) to SI, and back."""

from __future__ import annotations

import math
import re
from typing import Any

from tutelage.errors import RecipeError

_PREFIX = {
    "n": 1e-9,
    "u": 1e-6,
    "µ": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_PATTERN = re.compile(r"^\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z\u00b5\u03bc]*)\s*$")
_EXAMPLE = {"B": "100 kB", "s": "2 ms", "J": "5 mJ", "W": "40 mW"}
_RATE = re.compile(r"\s*(?:tokens?\s*/\s*s)?\s*$")


def parse_quantity(text: str | int | float, unit: str) -> float:
    """Turn `text` into a positive, finite float in `unit` (`B`, `s`, `J` or `W`).

    A bare number is taken to be in the unit itself; `kB` is 1000 bytes, `KiB` 1024. Raises
    `RecipeError` naming the form that is wanted.
    """
    want = f"write it like '{_EXAMPLE.get(unit, '1 ' + unit)}'"
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise RecipeError(f"{text!r:.40} is not a quantity; {want}")
    try:
        value = _parse_text(text, unit, want) if isinstance(text, str) else float(text)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise RecipeError(f"'{_shown(text)}' must be a positive, finite quantity; {want}")
    return value


def parse_rate(text: str | int | float) -> float:
    """Turn `20 token/s`, `20 tokens/s` or a bare number into tokens a second.

    Raises `RecipeError` naming the form that is wanted.
    """
    bare = _RATE.sub("", text) if isinstance(text, str) else text
    try:
        value = math.nan if isinstance(bare, bool) else float(bare)
    except (ValueError, OverflowError, TypeError):
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise RecipeError(f"'{_shown(text)}' is not a rate; write it like '20 token/s'")
    return value


def _shown(text: str | int | float) -> str:
    """Return what was given as one short line."""
    if isinstance(text, int) and abs(text) >= 10**40:
        return "an integer of more than 40 digits"
    return " ".join(str(text).split())[:40]


def _parse_text(text: str, unit: str, want: str) -> float:
    match = _PATTERN.match(text)
    if match is None:
        raise RecipeError(f"'{_shown(text)}' is not a quantity; {want}")
    try:
        number = float(match[1])
    except ValueError:
        raise RecipeError(f"'{_shown(text)}' is not a quantity; {want}") from None
    suffix = match[2].replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    if suffix and not suffix.endswith(unit):
        raise RecipeError(f"'{_shown(text)}' is not in {unit}; {want}")
    prefix = suffix[: -len(unit)] if suffix else ""
    scale = _BINARY.get(prefix) if unit == "B" else None
    scale = _PREFIX.get(prefix) if scale is None else scale
    if scale is None:
        raise RecipeError(f"'{_shown(text)}' has the unknown prefix '{prefix}'; {want}")
    return number * scale


def format_quantity(value: float, unit: str) -> str:
    """Write an SI value for people: three significant digits and the fitting prefix."""
    if unit == "1":
        return f"{value:.4g}"
    if not math.isfinite(value):
        return f"{value} {unit}"
    steps = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")]
    if unit == "B":
        steps = steps[:4]
    for scale, prefix in steps:
        if abs(value) >= scale * 0.9995:
            return f"{_three(value / scale)} {prefix}{unit}"
    return f"0 {unit}" if value == 0 else f"{value:.3g} {unit}"


def _three(value: float) -> str:
    digits = max(0, 2 - int(math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_share(raw: Any) -> float:
    """Return a share written as 0.95 or 95 %; raises `RecipeError` unless it is in (0, 1]."""
    text = str(raw).strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise RecipeError(f"'{text[:40]}' must lie between 0 and 1; write it like '0.95' or '95 %'")
    return value
