"""The charts of candidates, reliability, pairing and lenses, drawn with Altair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.records import Kind
from tutelage.report.canvas import (
    HEIGHT,
    INK,
    LIMIT,
    MUTED,
    STUDENT,
    TEACHER,
    Chart,
    data,
    finish,
    line,
    metric_axis,
    quantity_axis,
)
from tutelage.report.figures import label, quantity

if TYPE_CHECKING:
    import altair as alt

_AS_THE_END = "Decides as the teacher’s end does"
_FAR = 300  # a limit this many times the largest candidate would squeeze the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate: bytes, its figure, `chosen`, `fits` or `does not fit`, and its hover text."""

    x: float
    y: float
    state: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram: mean confidence, accuracy, how many examples."""

    who: str
    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Similarity of a student tap with a teacher tap; `chosen` when they are paired."""

    student: str
    teacher: str
    value: float
    chosen: bool


def scatter_chart(
    points: tuple[Point, ...],
    *,
    storage: float | None,
    storage_text: str,
    floor: float | None,
    floor_text: str,
    bytes_kind: Kind,
    metric: str = "accuracy",
) -> Chart:
    """Draw the figure of `metric` against bytes, with the limits as lines."""
    import altair as alt

    largest = max(p.x for p in points)
    near = storage is not None and storage <= _FAR * largest
    sizes = [p.x for p in points] + ([storage] if near and storage else [])
    x = quantity_axis(min(sizes), max(sizes), "B", "Bytes")
    heights = [p.y for p in points] + ([floor] if floor else [])
    y = metric_axis(heights, metric)
    layers: list[alt.Chart] = []
    if near and storage:
        layers += line(storage, storage_text, x=x)
    elif storage:
        layers.append(line(largest, f"{storage_text}, far to the right", x=x)[1])
    if floor:
        layers += line(floor, floor_text, y=y)
    chosen = next((p.text for p in points if p.state == "chosen"), "none is chosen")
    listed = f"{len(points)} candidates; chosen: {chosen}"
    chart = finish(alt.layer(*layers, _candidate_marks(points).encode(x=x, y=y)))
    title: tuple[tuple[str, Kind], ...] = (
        (label(metric), "measured"),
        ("against bytes", bytes_kind),
    )
    return Chart(svg=chart, title=title, alt=f"{listed}. {storage_text}".strip())


def _candidate_marks(points: tuple[Point, ...]) -> alt.Chart:
    import altair as alt

    looks = {
        "chosen": ("diamond", STUDENT, 240),
        "fits": ("circle", MUTED, 90),
        "does not fit": ("cross", LIMIT, 90),
    }
    names = [name for name in looks if any(p.state == name for p in points)]
    shapes, colors, areas = zip(*(looks[name] for name in names), strict=True)
    key = alt.Legend(orient="top", title=None)
    rows = [{"x": p.x, "y": p.y, "state": p.state, "text": p.text} for p in points]

    def by_state(looks: tuple[Any, ...]) -> dict[str, Any]:
        scale = alt.Scale(domain=names, range=list(looks))
        return {"shorthand": "state:N", "scale": scale, "legend": key}

    return (
        data(rows)
        .mark_point(filled=True, opacity=1)
        .encode(
            shape=alt.Shape(**by_state(shapes)),
            color=alt.Color(**by_state(colors)),
            size=alt.Size(**by_state(areas)),
            description="text:N",
        )
    )


def reliability_chart(bins: tuple[Bin, ...]) -> Chart:
    """Draw accuracy against confidence; on the diagonal, confidence is deserved."""
    import altair as alt

    x = alt.X("x:Q", title="Confidence", scale=alt.Scale(domain=[0, 1])).axis(format=".0%")
    y = alt.Y("y:Q", title="Accuracy", scale=alt.Scale(domain=[0, 1])).axis(format=".0%")
    even = data([{"x": 0, "y": 0}, {"x": 1, "y": 1}])
    diagonal = even.mark_line(stroke=MUTED, strokeDash=[2, 3], strokeWidth=1.2, aria=False)
    rows = [
        {
            "x": b.confidence,
            "y": b.accuracy,
            "who": b.who,
            "n": b.n,
            "text": f"{b.who}: {quantity('confidence', b.confidence, '1')} sure, "
            f"{quantity('accuracy', b.accuracy, '1')} right, {b.n:,} examples",
        }
        for b in bins
    ]
    base = data(rows).encode(x=x, y=y, color=_who_color(), strokeDash=_who_dash())
    dots = base.mark_point(filled=True, opacity=1, strokeWidth=0).encode(
        size=alt.Size("n:Q", scale=alt.Scale(range=[25, 160]), legend=None),
        shape=_who_shape(),
        strokeDash=alt.value([1, 0]),
        description="text:N",
    )
    lines = base.mark_line(strokeWidth=1.6, aria=False)
    gaps = {who: _gap([b for b in bins if b.who == who]) for who in ("student", "teacher")}
    alt_text = "; ".join(f"{who}: {gap}" for who, gap in gaps.items() if gap)
    return Chart(
        svg=finish(alt.layer(diagonal.encode(x=x, y=y), lines, dots)),
        title=(("Is confidence deserved?", "measured"),),
        alt=f"Accuracy by confidence. {alt_text}",
    )


def heat_chart(cells: tuple[Cell, ...]) -> Chart:
    """Draw the similarity of every pair of taps, the chosen pairs outlined."""
    import altair as alt

    teachers = list(dict.fromkeys(c.teacher for c in cells))
    students = list(dict.fromkeys(c.student for c in cells))
    x = alt.X("t:N", title="Teacher tap", sort=teachers)
    x = x.axis(
        labelAngle=-35 if len(teachers) > 4 else 0,
        labelLimit=110,
        ticks=False,
        domain=False,
        labelPadding=7,
    )
    y = alt.Y("s:N", title="Student tap", sort=students).axis(
        labelLimit=110, labelOverlap=True, ticks=False, domain=False, labelPadding=7
    )
    base = data([_cell_row(c) for c in cells]).encode(x=x, y=y)
    shade = alt.FillOpacity("v:Q", scale=alt.Scale(domain=[0, 1], range=[0.02, 0.5])).legend(None)
    boxes = base.mark_rect(fill=STUDENT).encode(fillOpacity=shade, description="text:N")
    frame = base.transform_filter("datum.chosen").mark_rect(
        fill=None, fillOpacity=0, stroke=INK, strokeWidth=2.5, aria=False
    )
    layers: list[alt.Chart] = [boxes, frame]
    if len(teachers) <= 9:
        layers.append(base.mark_text(color=INK, aria=False).encode(text="shown:N"))
    pairs = ", ".join(f"{c.student} with {c.teacher}" for c in cells if c.chosen)
    height = max(120, min(HEIGHT + 60, 46 * len(students) + 70))
    svg = finish(alt.layer(*layers), height=height)
    return Chart(
        svg=svg,
        title=(("Which tap learns from which", "measured"),),
        alt=f"Paired: {pairs or 'none'}",
    )


def _cell_row(c: Cell) -> dict[str, Any]:
    return {
        "s": c.student,
        "t": c.teacher,
        "v": c.value,
        "shown": f"{c.value:.2f}",
        "text": f"{c.student} with {c.teacher}: {c.value:.3f}{' (paired)' if c.chosen else ''}",
        "chosen": c.chosen,
    }


def lens_chart(lenses: tuple[tuple[str, float], ...], *, values: bool = False) -> Chart:
    """Draw how often each tap's lens already decides as the teacher's end does.

    Of values, R2 with the teacher's own value as the truth; below 0 is drawn as 0.
    """
    import altair as alt

    metric = "r2" if values else "agreement"
    title = "R² with the teacher’s end as the truth" if values else _AS_THE_END
    rows = [{"tap": t, "v": max(0.0, v), "shown": quantity(metric, v, "1")} for t, v in lenses]
    x = alt.X("v:Q", title=title, scale=alt.Scale(domain=[0, 1.16]))
    x = x.axis(format=".2f" if values else ".0%", values=[0, 0.25, 0.5, 0.75, 1], domain=False)
    y = alt.Y("tap:N", title=None, sort=[tap for tap, _ in lenses]).axis(labelLimit=150)
    base = data(rows).encode(x=x, y=y)
    bars = base.mark_bar(color=TEACHER, size=16, aria=False)
    texts = base.mark_text(align="left", dx=5, color=INK, aria=False).encode(text="shown:N")
    height = max(110, min(420, 30 * len(rows) + 60))
    listed = ", ".join(f"{tap} {quantity(metric, v, '1')}" for tap, v in lenses)
    svg = finish(alt.layer(bars, texts), height=height)
    return Chart(svg=svg, title=(("When does the teacher know?", "measured"),), alt=listed)


def _who_color() -> Any:
    import altair as alt

    domain = ["student", "teacher"]
    key = alt.Legend(orient="top", title=None, symbolStrokeWidth=0, symbolSize=110)
    return alt.Color("who:N", scale=alt.Scale(domain=domain, range=[STUDENT, TEACHER])).legend(key)


def _who_dash() -> Any:
    import altair as alt

    dashes = alt.Scale(domain=["student", "teacher"], range=[[1, 0], [6, 3]])
    return alt.StrokeDash("who:N", scale=dashes)


def _who_shape() -> Any:
    import altair as alt

    shapes = alt.Scale(domain=["student", "teacher"], range=["circle", "square"])
    return alt.Shape("who:N", scale=shapes)


def _gap(bins: list[Bin]) -> str:
    if not bins:
        return ""
    worst = max(bins, key=lambda b: abs(b.confidence - b.accuracy))
    return (
        f"furthest off where it is {quantity('confidence', worst.confidence, '1')} sure and "
        f"{quantity('accuracy', worst.accuracy, '1')} right"
    )
