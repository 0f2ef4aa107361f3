"""The chart of values: what teacher and student say, against the labels."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.report.canvas import MUTED, STUDENT, TEACHER, Chart, data, finish
from tutelage.report.figures import quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One example: who says which `value` where the label is `label`."""

    who: str
    label: float
    value: float


def value_chart(points: tuple[Point, ...]) -> Chart:
    """Draw values against labels, both in one unit; on the diagonal, they are equal."""
    import altair as alt

    numbers = [p.label for p in points] + [p.value for p in points]
    low, high = min(numbers), max(numbers)
    room = 0.04 * (high - low) or 1.0
    scale = alt.Scale(domain=[low - room, high + room], nice=False, zero=False)
    form = ".6~g" if max(map(abs, numbers)) < 1e5 else "~s"
    x = alt.X("x:Q", title="Label", scale=scale).axis(format=form, tickCount=6)
    y = alt.Y("y:Q", title="Value said", scale=scale).axis(format=form, tickCount=6)
    ends = data([{"x": low, "y": low}, {"x": high, "y": high}])
    diagonal = ends.mark_line(stroke=MUTED, strokeDash=[2, 3], strokeWidth=1.2, aria=False)
    rows = [
        {
            "x": p.label,
            "y": p.value,
            "who": p.who,
            "text": f"{p.who}: {_shown(p.value)} where the label is {_shown(p.label)}",
        }
        for p in points
    ]
    who = ["teacher", "student"]
    key = alt.Legend(orient="top", title=None, symbolSize=110)
    dots = (
        data(rows)
        .mark_point(filled=True, opacity=0.65, size=28)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "who:N", scale=alt.Scale(domain=who, range=[TEACHER, STUDENT]), legend=key
            ),
            shape=alt.Shape("who:N", scale=alt.Scale(domain=who, range=["square", "circle"])),
            description="text:N",
        )
    )
    worst = max(points, key=lambda p: abs(p.value - p.label))
    return Chart(
        svg=finish(alt.layer(diagonal.encode(x=x, y=y), dots)),
        title=(("Values against labels", "measured"),),
        alt=f"{len(points) // 2} examples; furthest off: {worst.who} says {_shown(worst.value)} "
        f"where the label is {_shown(worst.label)}",
    )


def _shown(value: float) -> str:
    return quantity("value", value, "1")
