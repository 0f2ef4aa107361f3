"""The critical-difference diagram (Demsar 2006): mean ranks on a line, bars over what is equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.grid.statistics import Ranking, groups
from tutelage.files import write_atomically

_WIDTH, _ROW, _TOP = 460, 17, 16
_SIDE = 175  # pixels left and right for the names
_INK, _BAR, _MUTED = "#1c2733", "#0b66a8", "#8a94a0"


def draw(ranking: Ranking, path: Path) -> None:
    """Write the diagram as SVG."""
    import vl_convert

    write_atomically(path, vl_convert.vegalite_to_svg(chart(ranking)))


def chart(ranking: Ranking) -> dict[str, Any]:
    """Return the diagram as a Vega-Lite spec, best ranks to the left."""
    import altair as alt

    count = len(ranking.ranks)
    found = groups(ranking.ranks, ranking.critical)
    more = 0.005 * count  # a bar is seen to reach its ends
    bars = [
        {"x": ranking.ranks[a] - more, "x2": ranking.ranks[b] + more, "y": 10 + 7 * row}
        for row, (a, b) in enumerate(found)
    ]
    below = 10 + 7 * len(bars) + 8
    legs, names = _names(ranking, below)
    height = below + _ROW * ((count + 1) // 2) + 4
    pixels = alt.Scale(domain=[0, height], range=[0, height])
    ranks = alt.Scale(domain=[1, count], range=[_SIDE, _SIDE + _WIDTH])
    y: Any = alt.Y("y:Q", scale=pixels, axis=None)
    axis = alt.Axis(
        orient="top", tickCount=min(count, 12), title="mean rank (1 is best)", grid=False,
        titleColor=_INK, labelColor=_INK, domainColor=_INK, tickColor=_INK, format="d",
    )  # fmt: skip
    x: Any = alt.X("x:Q", scale=ranks, axis=axis)
    data = [alt.Data(values=rows) for rows in (legs, names, bars, _scale(ranking, height))]
    layers: list[Any] = [
        alt.Chart(data[0]).mark_line(color=_MUTED, strokeWidth=1).encode(
            x=x, y=y, detail="line:N", order="step:Q"
        ),
        alt.Chart(data[1]).mark_text(align="right", dx=-5, fontSize=12, color=_INK)
        .transform_filter("datum.left").encode(x=x, y=y, text="name:N"),
        alt.Chart(data[1]).mark_text(align="left", dx=5, fontSize=12, color=_INK)
        .transform_filter("!datum.left").encode(x=x, y=y, text="name:N"),
    ]  # fmt: skip
    if bars:
        layers.append(
            alt.Chart(data[2]).mark_rule(strokeWidth=4, color=_BAR, opacity=0.75)
            .encode(x=x, x2="x2:Q", y=y)
        )  # fmt: skip
    layers += [
        alt.Chart(data[3]).mark_rule(strokeWidth=2, color=_INK).encode(x=x, x2="x2:Q", y=y),
        alt.Chart(data[3])
        .mark_text(align="right", dx=-5, fontSize=11, color=_INK)
        .encode(x=x, y=y, text="said:N"),
    ]
    return (
        alt.layer(*layers)
        .properties(
            width=_WIDTH + 2 * _SIDE, height=height + _TOP, title=_title(ranking),
            background="white",
        )
        .configure_view(stroke=None)
        .to_dict()
    )  # fmt: skip


def _names(ranking: Ranking, below: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the legs from each rank down to its name, and the names: half to each side."""
    count = len(ranking.ranks)
    half = (count + 1) // 2
    legs, names = [], []
    for i, (method, rank) in enumerate(zip(ranking.methods, ranking.ranks, strict=True)):
        left = i < half
        y = below + _ROW * (i if left else count - 1 - i) + _ROW / 2
        edge = 1 if left else count
        points = ((rank, 0), (rank, y), (edge, y))
        legs += [{"line": method, "step": s, "x": x, "y": v} for s, (x, v) in enumerate(points)]
        names.append({"name": f"{method}  {rank:.1f}" if left else f"{rank:.1f}  {method}",
                      "left": left, "x": edge, "y": y})  # fmt: skip
    return legs, names


def _scale(ranking: Ranking, height: float) -> list[dict[str, Any]]:
    """Return the rule that shows how long the critical difference is."""
    long = min(ranking.critical, len(ranking.ranks) - 1)
    return [{"x": 1, "x2": 1 + long, "y": height + _TOP / 2, "said": "critical difference"}]


def _title(ranking: Ranking) -> dict[str, Any]:
    equal = "differ" if ranking.p < 0.05 else "do not differ significantly"
    return {
        "text": f"Mean ranks over {ranking.blocks} domains and sizes",
        "subtitle": f"Friedman: methods {equal} (p = {ranking.p:.2g}). Bars join what Nemenyi's "
        f"test cannot tell apart (critical difference {ranking.critical:.2f})",
        "anchor": "start", "fontSize": 14, "subtitleFontSize": 11, "subtitleColor": _INK,
    }  # fmt: skip
