"""The budget table: each limit, the figure held against it, the room that is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.report.figures import Figure, label, made, quantity
from tutelage.report.overview import unit_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """One limit. `fill` and `mark` are CSS lengths: the value's bar and where the limit stands."""

    name: str
    limit: str
    hard: bool
    source: str
    figure: Figure
    room: Figure
    room_words: str
    fill: str
    mark: str
    met: bool


def budget(proof: dict[str, Any]) -> tuple[BudgetRow, ...]:
    """Return the rows of the budget table, missed limits first."""
    rows = [_row(v) for v in proof.get("verdicts") or []]
    return tuple(sorted(rows, key=lambda row: (row.met, not row.hard)))


def _row(v: dict[str, Any]) -> BudgetRow:
    metric, value, limit, kind = v["metric"], v["value"], v["limit"], v["kind"]
    unit, floor = unit_of(metric), metric == "accuracy"
    # an upper limit is drawn on a scale that ends at the larger of both, a share on 0 to 100 %
    scale = 1.0 if floor else max(limit, value, 1e-30)
    if floor:
        words = "points above" if v["met"] else "points below"
        room = Figure(text=f"{100 * abs(value - limit):.1f}", kind=kind, hint=f"{kind}: {words}")
    else:
        words = "to spare" if v["met"] else "over"
        room = made("share", abs(v["margin"]), kind=kind, where=v["where"])
    return BudgetRow(
        name=label(metric),
        limit=f"at {'least' if floor else 'most'} {quantity(metric, limit, unit)}",
        hard=bool(v["hard"]),
        source=str(v["source"]),
        figure=made(metric, value, unit, kind, where=v["where"]),
        room=room,
        room_words=words,
        fill=css_share(value / scale),
        mark=css_share(limit / scale),
        met=bool(v["met"]),
    )


def css_share(share: float) -> str:
    """Write a share of a box as a CSS length within 0 to 100 %."""
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"
