"""What every chart shares: the palette, the canvas, a labelled line, the finished SVG.

Colours are the light palette of style.css; the page recolours them in the dark. What a colour says
is said by a shape, a dash or a label too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.records import Kind
from tutelage.report.figures import headline
from tutelage.report.svg import render

if TYPE_CHECKING:
    import altair as alt

INK, MUTED, LINE = "#1a2230", "#556070", "#dde2e9"
STUDENT, TEACHER, LIMIT = "#0b66a8", "#9a4a00", "#a8201a"
SERIES = (INK, STUDENT, TEACHER, "#6b3fa0", "#1a6b3c", "#9b1f6a", "#5d6b00")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 4], [1, 3])
WIDTH, HEIGHT = 400, 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A finished chart: `svg` markup, `alt`, what it shows in words, and its title.

    The title comes in parts, each with the kind of the figures that it names.
    """

    svg: str
    title: tuple[tuple[str, Kind], ...]
    alt: str


def data(rows: list[dict[str, Any]]) -> alt.Chart:
    """Start a chart from plain rows."""
    import altair as alt

    return alt.Chart(alt.Data(values=rows))


def finish(chart: Any, height: int = HEIGHT) -> str:
    """Give a chart its size and the report's look, and render it."""
    import altair as alt

    fit = alt.AutoSizeParams(type="fit", contains="padding")
    sized = chart.properties(width=WIDTH, height=height, autosize=fit, background="transparent")
    sized = sized.configure_view(stroke=None).configure_text(fontSize=12)
    sized = sized.configure_axis(
        labelColor=MUTED, titleColor=INK, gridColor=LINE, domainColor=MUTED, tickColor=MUTED,
        labelFontSize=12, titleFontSize=12, titleFontWeight="normal", titlePadding=8,
    )  # fmt: skip
    return render(sized.configure_legend(labelColor=INK, labelFontSize=12, padding=0).to_dict())


def line(
    value: float, text: str, *, x: Any = None, y: Any = None, color: str = LIMIT
) -> list[alt.Chart]:
    """Draw a labelled line across the chart at `value` of the axis that is given."""
    base = data([{"x": value, "y": value, "label": text}])
    base = base.encode(x=x) if x is not None else base.encode(y=y)
    rule = base.mark_rule(stroke=color, strokeDash=[6, 3], strokeWidth=1.6, aria=False)
    if x is not None:
        words = base.mark_text(align="right", dx=-6, dy=10, baseline="top", color=color, aria=False)
        words = words.encode(y={"value": 0})
    else:
        words = base.mark_text(
            align="left", dx=6, dy=-6, baseline="bottom", color=color, aria=False
        )
        words = words.encode(x={"value": 0})
    return [rule, words.encode(text="label:N")]


def percent_format(span: float) -> str:
    """Return the axis format of shares that span `span`."""
    return ".1%" if span < 0.06 else ".0%"


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values between `low` and `high` for a logarithmic axis, about four to eight."""
    steps = (1,) if high / low > 1000 else (1, 3) if high / low > 60 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]


def metric_axis(values: list[float], metric: str) -> Any:
    """Return the axis of a validation metric that holds `values`, with room around them."""
    import altair as alt

    room = max(0.01, 0.12 * (max(values) - min(values)))
    least = -math.inf if metric == "r2" else 0.0
    span = [max(least, min(values) - room), min(1.0, max(values) + room)]
    y = alt.Y("y:Q", title=f"Validation {headline(metric)}").scale(domain=span, nice=False)
    form = ".3~g" if metric == "r2" else percent_format(span[1] - span[0])
    return y.axis(format=form, tickCount=6)


def quantity_axis(low: float, high: float, unit: str, title: str) -> Any:
    """Return an axis of quantities in `unit`: logarithmic where they span most of a decade."""
    import altair as alt

    label = f"replace(format(datum.value, '.3~s'), /([a-zA-Zµ]?)$/, ' $1{unit}')"
    x = alt.X("x:Q", title=title)
    if low <= 0 or high / low < 8:
        pad = 0.15 * (high - low) or 0.2 * abs(high) or 1.0
        span = [max(0.0, low - pad), high + pad]
        return x.scale(domain=span, nice=False).axis(labelExpr=label, tickCount=5)
    span = [low * 0.75, high * 1.3]
    x = x.scale(type="log", domain=span, nice=False)
    return x.axis(labelExpr=label, values=log_ticks(*span))
