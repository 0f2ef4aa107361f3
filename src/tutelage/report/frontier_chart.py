"""The chart of a frontier: metric against one cost, what beats what, and where devices stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.records import Kind
from tutelage.report.canvas import (
    INK,
    MUTED,
    STUDENT,
    WIDTH,
    Chart,
    data,
    finish,
    metric_axis,
    quantity_axis,
)
from tutelage.report.figures import headline

if TYPE_CHECKING:
    import altair as alt

_HEIGHT = 230
_PLOT = (WIDTH - 60, _HEIGHT - 75)  # what axes and legend leave, about
_NEAR = 15  # letters closer than this many pixels would touch
_LOOKS = {  # state -> shape, colour, area, opacity
    "chosen": ("diamond", STUDENT, 240, 1.0),
    "on the frontier": ("circle", STUDENT, 80, 1.0),
    "beaten": ("circle", MUTED, 50, 0.45),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A student: cost, metric, how it looks, whether the line goes through it, its hover text."""

    x: float
    y: float
    state: str
    frontier: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A letter for the devices that a student fits, and its hover text."""

    letter: str
    at: Spot
    text: str


def frontier_chart(
    spots: tuple[Spot, ...], marks: tuple[Mark, ...], *, axis: str, unit: str, metric: str,
    kind: Kind,
) -> Chart:  # fmt: skip
    """Draw `metric` against the cost `axis` in `unit`, whose figures are of `kind`."""
    import altair as alt

    costs = [s.x for s in spots]
    x = quantity_axis(min(costs), max(costs), unit, axis)
    y = metric_axis([s.y for s in spots], metric)
    best = sorted((s for s in spots if s.frontier), key=lambda s: (s.x, s.y))
    ends = [*((s.x, s.y) for s in best), (max(costs), best[-1].y)]
    steps = data([{"x": cost, "y": value} for cost, value in ends]).mark_line(
        interpolate="step-after", stroke=STUDENT, strokeWidth=1.6, aria=False
    )
    layers: list[alt.Chart] = [steps, *_students(spots)]
    layers += [
        _letter(mark, place) for mark, place in zip(marks, places(marks, spots), strict=True)
    ]
    encoded = [layer.encode(x=x, y=y) for layer in layers]
    name = headline(metric)
    listed = "; ".join(s.text for s in best)
    said = "; ".join(f"{m.letter} {m.text}" for m in marks)
    return Chart(
        svg=finish(alt.layer(*encoded), height=_HEIGHT),
        title=((f"{name[:1].upper()}{name[1:]}", "measured"), (f"against {axis.lower()}", kind)),
        alt=f"From the least to the most: {listed}. {said}".strip(),
    )


def places(marks: Sequence[Mark], spots: Sequence[Spot]) -> list[tuple[int, int]]:
    """Return the offset (right, down; pixels) of each letter from its student.

    The first place around it that keeps clear of the letters before; of those, the one that is
    furthest from every student.
    """
    pixels = _pixels(spots)
    taken: list[tuple[float, float]] = []
    found = []
    for mark in marks:
        x, y = pixels(mark.at)
        ring = [(dx, dy) for r in (15, 28, 42) for dx, dy in _around(r)]
        inside = [(dx, dy) for dx, dy in ring if 4 <= x + dx <= _PLOT[0] - 4 and y + dy >= -8]
        free = [o for o in inside if _clear((x + o[0], y + o[1]), taken, _NEAR)] or ring
        others = [pixels(s) for s in spots if s is not mark.at]
        best = next((o for o in free if _clear((x + o[0], y + o[1]), others, 11)), free[0])
        taken.append((x + best[0], y + best[1]))
        found.append(best)
    return found


def _around(radius: int) -> list[tuple[int, int]]:
    slant = round(0.75 * radius)
    return [
        (0, -radius), (radius, 0), (-radius, 0), (0, radius),
        (slant, -slant), (-slant, -slant), (slant, slant), (-slant, slant),
    ]  # fmt: skip


def _clear(at: tuple[float, float], taken: Sequence[tuple[float, float]], far: float) -> bool:
    return all(math.dist(at, other) >= far for other in taken)


def _pixels(spots: Sequence[Spot]) -> Any:
    """Return what maps a student to its place in the plot, in pixels, about."""
    costs, values = [s.x for s in spots], [s.y for s in spots]
    low, high = min(costs), max(costs)
    scale = math.log if low > 0 and high / low >= 8 else float
    left, span = scale(low), (scale(high) - scale(low)) * 1.3 or 1.0
    tall = (max(values) - min(values)) * 1.24 or 1.0

    def at(s: Spot) -> tuple[float, float]:
        right = (scale(s.x) - left) / span + 0.12
        return _PLOT[0] * right, _PLOT[1] * (0.1 + (max(values) - s.y) / tall)

    return at


def _students(spots: Sequence[Spot]) -> list[alt.Chart]:
    """Return a layer for each state, the chosen one on top."""
    import altair as alt

    names = [name for name in _LOOKS if any(s.state == name for s in spots)]
    shapes, colors, _, _ = zip(*(_LOOKS[name] for name in names), strict=True)
    key = alt.Legend(
        orient="top", offset=28, title=None, columnPadding=16, symbolSize=100, symbolOpacity=1
    )
    shape = alt.Shape("state:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=key)
    color = alt.Color("state:N", scale=alt.Scale(domain=names, range=list(colors)), legend=key)
    layers = []
    for name in reversed(names):
        rows = [
            {"x": s.x, "y": s.y, "state": name, "text": s.text} for s in spots if s.state == name
        ]
        _, _, area, opacity = _LOOKS[name]
        points = data(rows).mark_point(filled=True, size=area, opacity=opacity)
        layers.append(points.encode(shape=shape, color=color, description="text:N"))
    return layers


def _letter(mark: Mark, place: tuple[int, int]) -> alt.Chart:
    base = data([{"x": mark.at.x, "y": mark.at.y, "letter": mark.letter, "text": mark.text}])
    return base.mark_text(
        dx=place[0], dy=place[1], color=INK, fontWeight="bold", baseline="middle"
    ).encode(text="letter:N", description="text:N")
