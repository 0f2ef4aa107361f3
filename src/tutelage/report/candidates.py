"""The candidates that were considered, and why one was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.records import Measurement
from tutelage.report.canvas import Chart
from tutelage.report.charts import Point, scatter_chart
from tutelage.report.figures import (
    Figure,
    headline,
    label,
    made,
    measurement,
    quantity,
    show,
    weakest,
)
from tutelage.report.overview import describe, structure, unit_of

_COLUMNS = {
    "storage_bytes": "Storage",
    "ram_bytes": "Memory",
    "latency_s": "Latency",
    "energy_j": "Energy",
    "macs": "MACs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """One candidate; `figures` follow the section's `columns`, None where it has none."""

    what: str
    detail: str
    parameters: Figure
    figures: tuple[Figure | None, ...]
    trial: Figure | None
    outcome: str
    chosen: bool
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The table, its columns in words, the chart, limits as (name, words, source), the reason.

    `trial` heads the column of what the short distillations measured.
    """

    columns: tuple[str, ...]
    rows: tuple[CandidateRow, ...]
    chart: Chart | None
    limits: tuple[tuple[str, str, str], ...]
    why: str
    space: str
    trial: str


def candidates(plan: dict[str, Any]) -> Candidates | None:
    """Return the section, or None when nothing was planned."""
    given = plan.get("candidates") or []
    if not given:
        return None
    figures = [{m["name"]: measurement(m) for m in c["figures"]} for c in given]
    columns = [name for name in _COLUMNS if any(name in f for f in figures)]
    longest = max((c.get("steps") or 0 for c in given), default=0)
    rows = [_row(c, f, columns, longest) for c, f in zip(given, figures, strict=True)]
    return Candidates(
        columns=tuple(_COLUMNS[name] for name in columns),
        rows=tuple(rows),
        chart=_chart(plan, given, figures, longest),
        limits=tuple(_limit(given) for given in plan.get("limits") or []),
        why=str(plan.get("why", "")),
        space=str(plan.get("space", "")),
        trial=_trial(_metric(given)),
    )


def _trial(metric: str) -> str:
    name = headline(metric) if metric else ""
    return f"{name[0].upper()}{name[1:]} in trial" if name else "Trial"


def _metric(given: list[dict[str, Any]]) -> str:
    """Return what the trials measured, without the split; empty where there was none."""
    names = [str(c["trial"]["name"]) for c in given if c["trial"] is not None]
    return names[0].removesuffix("_validation") if names else ""


def _joined(*words: str) -> str:
    return ", ".join(word for word in words if word)


def _row(
    candidate: dict[str, Any], figures: dict[str, Measurement], columns: list[str], longest: int
) -> CandidateRow:
    trial = candidate["trial"]
    what, detail = structure(candidate["spec"])
    if candidate["spec"].get("family") == "decoder":  # its file's form was chosen with its sizes
        detail = _joined(detail, candidate.get("precision", ""))
    if candidate.get("space") == "sliced":
        how = ", widths chosen by scores" if candidate.get("by_scores") else ""
        detail = _joined(detail, f"sliced from the teacher{how}")
    elif candidate.get("space") == "given":
        detail = _joined(detail, "as the recipe names it")
    elif candidate.get("space") == "elastic":
        detail = _joined(detail, "cut from the elastic student")
    return CandidateRow(
        what=what,
        detail=detail,
        parameters=made("parameters", candidate["parameters"]),
        figures=tuple(show(figures[n]) if n in figures else None for n in columns),
        trial=None if trial is None else show(measurement(trial)),
        outcome=_outcome(candidate, longest),
        chosen=bool(candidate["chosen"]),
        fits=bool(candidate["fits"]),
    )


def _outcome(candidate: dict[str, Any], longest: int) -> str:
    if candidate["chosen"]:
        return "chosen"
    if not candidate["fits"]:
        missed = ", ".join(label(name).lower() for name in candidate["missed"])
        return f"misses {missed or 'a limit'}"
    return "dropped early" if (candidate.get("steps") or longest) < longest else "fits"


def _limit(limit: dict[str, Any]) -> tuple[str, str, str]:
    metric = limit["metric"]
    words = f"at {'least' if metric == 'accuracy' else 'most'}"
    text = f"{words} {quantity(metric, limit['value'], unit_of(metric))}"
    soft = "" if limit["hard"] else " (soft)"
    return label(metric), text, f"{limit['source']}{soft}"


def _chart(
    plan: dict[str, Any], given: list[dict[str, Any]], figures: list[dict[str, Measurement]],
    longest: int,
) -> Chart | None:  # fmt: skip
    points = []
    for candidate, known in zip(given, figures, strict=True):
        if candidate["trial"] is None or "storage_bytes" not in known:
            continue
        size, trial = known["storage_bytes"], measurement(candidate["trial"])
        state = "chosen" if candidate["chosen"] else "fits" if candidate["fits"] else "does not fit"
        told = f"{show(size).text}, {show(trial).text}: {describe(candidate['spec'])}"
        text = f"{told} ({_outcome(candidate, longest)})"
        points.append(Point(x=size.value, y=trial.value, state=state, text=text))
    if not points:
        return None
    limits = {limit["metric"]: float(limit["value"]) for limit in (plan.get("limits") or [])}
    named = {
        metric: f"{'floor' if metric == 'accuracy' else 'limit'} "
        f"{quantity(metric, value, unit_of(metric))}"
        for metric, value in limits.items()
    }
    return scatter_chart(
        tuple(points),
        storage=limits.get("storage_bytes"),
        storage_text=named.get("storage_bytes", ""),
        floor=limits.get("accuracy"),
        floor_text=named.get("accuracy", ""),
        metric=_metric(given),
        bytes_kind=weakest([f["storage_bytes"].kind for f in figures if "storage_bytes" in f]),
    )
