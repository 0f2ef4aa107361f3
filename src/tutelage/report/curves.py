"""The learning curves: loss and validation figure by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.report.canvas import (
    DASHES,
    SERIES,
    STUDENT,
    TEACHER,
    Chart,
    data,
    finish,
    line,
    log_ticks,
    percent_format,
)
from tutelage.report.figures import headline, quantity

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line of (epoch, value), or (tokens learned, value)."""

    name: str
    values: tuple[tuple[int, float], ...]


def loss_chart(series: tuple[Series, ...], *, tokens: bool = False) -> Chart:
    """Draw the loss and its parts by epoch or `tokens`, logarithmic where that is possible."""
    import altair as alt

    rows = [{"x": e, "y": v, "name": s.name} for s in series for e, v in s.values]
    names = [s.name for s in series]
    y = alt.Y("y:Q", title="Loss", scale=alt.Scale(zero=False)).axis(format="~g", tickCount=5)
    lowest, highest = min(row["y"] for row in rows), max(row["y"] for row in rows)
    if lowest > 0 and highest > 4 * lowest:
        y = y.scale(type="log", domain=[lowest * 0.8, highest * 1.25], nice=False)
        y = y.axis(format="~g", values=log_ticks(lowest * 0.8, highest * 1.25))
    colors = [SERIES[i % len(SERIES)] for i in range(len(names))]
    dashes = [DASHES[i % len(DASHES)] for i in range(len(names))]
    key = alt.Legend(orient="top", title=None, columns=4, symbolType="stroke", symbolSize=260)
    chart = (
        data(rows)
        .mark_line(strokeWidth=1.8, aria=False)
        .encode(
            x=_token_axis(rows) if tokens else _epoch_axis(rows),
            y=y,
            color=alt.Color("name:N", scale=alt.Scale(domain=names, range=colors)).legend(key),
            strokeDash=alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=dashes)),
        )
    )
    first, last = series[0].values[0][1], series[0].values[-1][1]
    spent = f"{series[0].values[-1][0]:,} tokens" if tokens else f"{len(series[0].values)} epochs"
    text = f"The loss goes from {first:.3g} to {last:.3g} in {spent}"
    title = "Loss by tokens learned" if tokens else "Loss by epoch"
    return Chart(svg=finish(chart), title=((title, "measured"),), alt=text)


def figure_chart(
    student: Series, *, teacher: float | None, best: int, metric: str = "accuracy"
) -> Chart:
    """Draw the student's validation figure by epoch, with the teacher's as a line.

    R2 may start far below 0: what is lower is drawn at the lower edge.
    """
    import altair as alt

    lowest = -0.2 if metric == "r2" else 0.0
    name = f"Validation {headline(metric)}"
    rows = [
        {"x": e, "y": max(v, lowest), "text": f"epoch {e}: {quantity(metric, v, '1')}"}
        for e, v in student.values
    ]
    values = [row["y"] for row in rows] + ([teacher] if teacher is not None else [])
    low = max(lowest, min(values) - 0.02)
    y = alt.Y("y:Q", title=name, scale=alt.Scale(domain=[low, 1.0]))
    y = y.axis(format=".2f" if metric == "r2" else percent_format(1.0 - low), tickCount=6)
    base = data(rows).encode(x=_epoch_axis(rows), y=y)
    layers: list[alt.Chart] = []
    if teacher is not None:
        layers += line(teacher, f"teacher {quantity(metric, teacher, '1')}", y=y, color=TEACHER)
    layers.append(base.mark_line(stroke=STUDENT, strokeWidth=2, aria=False))
    dots = base.mark_circle(color=STUDENT, opacity=1, size=22).encode(description="text:N")
    layers.append(dots)
    top = max(rows, key=lambda row: row["y"])
    marked = next((row for row in rows if row["x"] == best + 1), top)
    ring = data([marked]).mark_point(stroke=STUDENT, size=150, strokeWidth=2, opacity=1)
    layers.append(ring.encode(x=_epoch_axis(rows), y=y, description="text:N"))
    text = f"Best at epoch {marked['x']}: {quantity(metric, marked['y'], '1')}"
    if teacher is not None:
        text += f"; the teacher has {quantity(metric, teacher, '1')}"
    title = f"{name} by epoch"
    return Chart(svg=finish(alt.layer(*layers)), title=((title, "measured"),), alt=text)


def perplexity_chart(points: Sequence[tuple[int, float]], *, teacher: float | None) -> Chart:
    """Draw the student's validation perplexity by tokens learned, with the teacher's as a line."""
    import altair as alt

    said = [
        f"{quantity('tokens', x, '1')} tokens: {quantity('perplexity', y, '1')}" for x, y in points
    ]
    rows = [{"x": x, "y": y, "text": t} for (x, y), t in zip(points, said, strict=True)]
    values = [y for _, y in points] + ([] if teacher is None else [teacher])
    low, high = min(values) / 1.1, max(values) * 1.1
    y = alt.Y("y:Q", title="Validation perplexity")
    y = y.scale(type="log", domain=[low, high], nice=False)
    ticks = log_ticks(low, high)
    y = y.axis(format="~g", values=ticks) if len(ticks) > 1 else y.axis(format="~g", tickCount=5)
    base = data(rows).encode(x=_token_axis(rows), y=y)
    layers: list[alt.Chart] = [
        base.mark_line(stroke=STUDENT, strokeWidth=2, aria=False),
        base.mark_circle(color=STUDENT, opacity=1, size=22).encode(description="text:N"),
    ]
    text = f"After {said[-1]}"
    if teacher is not None:
        words = quantity("perplexity", teacher, "1")
        layers += line(teacher, f"teacher {words}", y=y, color=TEACHER)
        text += f"; the teacher has {words}"
    title = "Validation perplexity by tokens learned"
    return Chart(svg=finish(alt.layer(*layers)), title=((title, "measured"),), alt=text)


def _epoch_axis(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    last = max(row["x"] for row in rows)
    step = max(1, math.ceil(last / 8))
    x = alt.X("x:Q", title="Epoch", scale=alt.Scale(domain=[0, last], nice=False))
    return x.axis(values=list(range(0, last + 1, step)), format="d")


def _token_axis(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    last = max(row["x"] for row in rows)
    x = alt.X("x:Q", title="Tokens learned", scale=alt.Scale(domain=[0, last], nice=False))
    return x.axis(format="~s", tickCount=5)
