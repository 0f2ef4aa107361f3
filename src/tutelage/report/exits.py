"""Where inputs stop early, what that saves, and what else the thresholds could have been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.records import Kind
from tutelage.report.canvas import (
    LIMIT,
    STUDENT,
    Chart,
    data,
    finish,
    metric_axis,
    quantity_axis,
)
from tutelage.report.figures import Figure, made, quantity, ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRow:
    """One place to stop, with the test examples that did."""

    name: str
    share: Figure
    accuracy: Figure | None
    agreement: Figure | None
    macs: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """The section: rows by place, the mean cost and the share right beside those without exits.

    `may_lose` is what the recipe allows, no figure. `ends` is the tap at which the file ends, since
    every input stopped there or before; '' where it holds the whole student.
    """

    rows: tuple[ExitRow, ...]
    mean: Figure
    whole: Figure
    times: str
    right: Figure
    right_whole: Figure
    may_lose: str
    ends: str
    chart: Chart | None


def exits(proof: dict[str, Any]) -> Exits | None:
    """Return the section, or None where the student has no exits."""
    part = proof.get("exits")
    if not part:
        return None
    unit = part["unit"]
    kind: Kind = "predicted" if unit == "s" else "measured"
    name = "latency_s" if unit == "s" else "macs"
    return Exits(
        rows=tuple(map(_row, part.get("test") or ())),
        mean=made(name, part["cost"], unit, kind, where="mean over the validation split"),
        whole=made(name, part["whole"], unit, kind, where="the student without exits"),
        times=ratio(part["whole"], part["cost"]),
        right=made("share", part["right"] - part["lost"], where="validation split"),
        right_whole=made("share", part["right"], where="validation split, without exits"),
        may_lose=quantity("share", part["may_lose"], "1"),
        ends=str(part.get("ends") or ""),
        chart=_chart(part, unit, kind, proof.get("metric", "accuracy")),
    )


def _row(row: dict[str, Any]) -> ExitRow:
    def share(name: str) -> Figure | None:
        return None if row[name] is None else made(name, row[name], n=row["count"])

    return ExitRow(
        name=str(row["name"]),
        share=made("share", row["share"], n=row["count"]),
        accuracy=share("accuracy"),
        agreement=share("agreement"),
        macs=made("macs", row["macs"], "MAC"),
    )


def _chart(part: dict[str, Any], unit: str, kind: Kind, metric: str) -> Chart | None:
    """Draw what thresholds none beats come to on validation: the cost and the share right."""
    curve = [(float(cost), float(right)) for cost, right in part.get("curve") or ()]
    if len(curve) < 2:
        return None
    import altair as alt

    without = {"x": float(part["whole"]), "y": float(part["right"])}
    rows = [{"x": cost, "y": right} for cost, right in curve]
    every = [row["x"] for row in (*rows, without)]
    x = quantity_axis(min(every), max(every), "" if unit == "MAC" else unit, _axis(unit))
    y = metric_axis(
        [row["y"] for row in (*rows, without)], "agreement" if metric == "agreement" else "accuracy"
    )
    base = data(rows).encode(x=x, y=y)
    layers = [base.mark_line(stroke=STUDENT, strokeWidth=2, aria=False)]
    chosen = {"x": float(part["cost"]), "y": without["y"] - float(part["lost"])}
    marks = [
        ({**without, "label": "without exits"}, LIMIT, "square"),
        ({**chosen, "label": "chosen"}, STUDENT, "circle"),
    ]
    for row, color, shape in marks:
        mark = data([row]).encode(x=x, y=y)
        layers.append(
            mark.mark_point(shape=shape, size=90, filled=True, color=color, opacity=1).encode(
                description="label:N"
            )
        )
        # Towards the middle, so that no word crosses an axis; below the curve, which rises.
        side = "left" if 2 * row["x"] < min(every) + max(every) else "right"
        words = {
            "align": side,
            **({"dx": 9, "dy": 10} if side == "left" else {"dx": -9, "dy": -10}),
        }
        layers.append(mark.mark_text(**words, color=color, aria=False).encode(text="label:N"))
    text = f"Thresholds from {rows[0]['y']:.1%} right at the dearest to {rows[-1]['y']:.1%} right"
    title: tuple[tuple[str, Kind], ...] = (
        ("Share right", "measured"), ("by mean cost, validation", kind),
    )  # fmt: skip
    return Chart(svg=finish(alt.layer(*layers)), title=title, alt=text)


def _axis(unit: str) -> str:
    return "Mean latency" if unit == "s" else "Mean multiply-accumulates"
