"""Slices of the same bytes by different cuts: layers, units, groups, numbers a token, and mixes.

No rule says which cut a network bears best, so each becomes a candidate that uses up the limit, and
all are compared as whole networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tutelage.errors import InfeasibleError, StudentError
from tutelage.students.decoders.network import DecoderSpec
from tutelage.students.decoders.sizes import plan_slices, widest, widths_of, with_sizes

# What is cut together, and how fast: a size is the whole one times a common share to this power.
MIXES: tuple[Mapping[str, float], ...] = (
    {"groups": 1.0, "inner": 1.0},
    {"hidden": 1.0},
    {"hidden": 1.0, "inner": 1.0},
    {"layers": 1.0, "hidden": 1.0},
    {"layers": 1.0, "groups": 1.0, "hidden": 1.0, "inner": 1.0},
)
_SHARES = 64  # shares that are tried: 1/64 to 1


def plan_mixes(
    spec: DecoderSpec, *, most_bytes: int, bytes_of: Callable[[DecoderSpec], int], count: int = 4
) -> list[DecoderSpec]:
    """Return the slices of `plan_slices`, then the largest of each mix, without repeats.

    No mix leaves less than a quarter of a size. Raises `InfeasibleError` where nothing fits.
    """
    mixed = []
    if bytes_of(spec) > most_bytes:
        mixed = [largest_of(mix, spec, most_bytes, bytes_of) for mix in MIXES]
    try:
        found = plan_slices(spec, most_bytes=most_bytes, bytes_of=bytes_of, count=count)
    except InfeasibleError:
        if not any(mixed):
            raise
        found = []
    for one in mixed:
        if one is not None and one not in found:
            found.append(one)
    return found


def largest_of(
    mix: Mapping[str, float], spec: DecoderSpec, most_bytes: int,
    bytes_of: Callable[[DecoderSpec], int],
) -> DecoderSpec | None:  # fmt: skip
    """Return the largest slice by this mix of cuts; units fill up what rounding leaves.

    None where there is none: nothing fits, or it has no part to cut (one group, say).
    """

    def at(share: int) -> DecoderSpec | None:
        made = _cut(spec, mix, share / _SHARES)
        return made if made is not None and bytes_of(made) <= most_bytes else None

    low, high = _SHARES // 4 - 1, _SHARES  # `high` is the whole network, which does not fit
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) is None else (middle, high)
    best = at(low) if low >= _SHARES // 4 else None
    if best is None:
        return None
    best = _filled_up(best, spec, most_bytes, bytes_of)
    return best if all(getattr(best, name) < getattr(spec, name) for name in mix) else None


def _cut(spec: DecoderSpec, mix: Mapping[str, float], share: float) -> DecoderSpec | None:
    """Return the sizes at a share, each the nearest that can be; None where none can."""
    sizes = {}
    for name, power in mix.items():
        whole = getattr(spec, name)
        wide = name in ("inner", "hidden")
        able = widths_of(whole) if wide else range(1, whole + 1)
        sizes[name] = min(able, key=lambda n, wanted=whole * share**power: abs(n - wanted))
    while True:
        try:
            return with_sizes(spec, **sizes)
        except StudentError:  # heads that do not divide the numbers of a token: fewer numbers
            fewer = [n for n in widths_of(spec.hidden) if n < sizes.get("hidden", spec.hidden)]
            if "hidden" not in sizes or not fewer:
                return None
            sizes["hidden"] = fewer[-1]


def _filled_up(
    small: DecoderSpec, spec: DecoderSpec, most_bytes: int, bytes_of: Callable[[DecoderSpec], int]
) -> DecoderSpec:
    """Return the slice with as many units as fit; where all do, with more numbers and fewer units.

    That is done only where seven of eight units stay.
    """
    roomy = with_sizes(small, inner=spec.inner)
    best = widest(roomy, most_bytes, bytes_of) or small
    more = [n for n in widths_of(spec.hidden) if small.hidden < n < spec.hidden]
    if best.inner < spec.inner or not more:
        return best
    try:
        wider = widest(with_sizes(roomy, hidden=more[0]), most_bytes, bytes_of)
    except StudentError:
        return best
    return wider if wider is not None and 8 * wider.inner >= 7 * spec.inner else best
