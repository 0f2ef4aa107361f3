"""How the student was taught: learning curves, losses, pairing, and what the lenses see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tutelage.report.canvas import Chart
from tutelage.report.charts import Cell, heat_chart, lens_chart
from tutelage.report.curves import Series, figure_chart, loss_chart, perplexity_chart
from tutelage.report.figures import Figure, made, measurement, quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRow:
    """One loss: the weight used, its value in the last epoch and its share of the total then."""

    name: str
    weight: Figure
    last: Figure | None
    share: Figure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Curves, the table of losses, facts in words, the pairing and the lenses.

    `unread`: no loss of the run reads the paired taps.
    """

    curves: tuple[Chart, ...]
    losses: tuple[LossRow, ...]
    facts: tuple[str, ...]
    pairing: Chart | None
    pairs: tuple[str, ...]
    paired_by: str
    unread: bool
    lenses: Chart | None


def training(
    distilled: dict[str, Any], teacher: dict[str, Any], proof: dict[str, Any] | None = None
) -> Training | None:
    """Return the section from the stages' results; None when neither has anything to show.

    What the teacher of a language model reaches on validation is read from the proof.
    """
    history = distilled.get("history") or {}
    metric = str(distilled.get("metric", "accuracy"))
    found = Training(
        curves=_curves(
            history, _teacher_line(teacher.get("figures"), metric), metric, distilled.get("tokens")
        )
        + _perplexity(distilled, (proof or {}).get("figures") or {}),
        losses=_losses(distilled, history),
        facts=_facts(distilled, history),
        pairing=_heat(distilled.get("pairing") or {}),
        pairs=_pairs(distilled.get("pairing") or {}),
        paired_by=str((distilled.get("pairing") or {}).get("by", "")),
        unread=not distilled.get("reads_pairs", True),
        lenses=_lenses(teacher.get("lenses") or [], metric),
    )
    return found if distilled or found.lenses else None


def _teacher_line(figures: list[Any] | None, metric: str) -> float | None:
    found = [measurement(m) for m in figures or []]
    return next((m.value for m in found if m.name == f"{metric}_validation"), None)


def _curves(
    history: dict[str, Any], teacher: float | None, metric: str, tokens: list[int] | None
) -> tuple[Chart, ...]:
    """Draw loss and figure by epoch; a language model's loss by the tokens learned at each."""
    charts = []
    series = [_series("total", history.get("loss") or [], tokens)]
    parts = history.get("parts") or []
    names = list(dict.fromkeys(name for epoch in parts for name in epoch))
    if len(names) > 1:
        series += [_series(name, [epoch.get(name) for epoch in parts], tokens) for name in names]
    series = [s for s in series if s.values]
    if series:
        charts.append(loss_chart(tuple(series), tokens=tokens is not None))
    shown = _series("student", history.get("figure") or [])
    if shown.values:
        best = history.get("best_epoch", -1)
        charts.append(figure_chart(shown, teacher=teacher, best=best, metric=metric))
    return tuple(charts)


def _perplexity(distilled: dict[str, Any], figures: dict[str, Any]) -> tuple[Chart, ...]:
    pairs = zip(distilled.get("tokens") or [], distilled.get("perplexity") or [], strict=False)
    points = [(int(x), float(y)) for x, y in pairs if math.isfinite(y)]
    teacher = _teacher_line(figures.get("teacher"), "perplexity")
    return (perplexity_chart(points, teacher=teacher),) if points else ()


def _series(name: str, values: list[Any], at: list[int] | None = None) -> Series:
    places = at or range(1, len(values) + 1)
    pairs = zip(places, values, strict=False)
    kept = [(i, float(v)) for i, v in pairs if v is not None and math.isfinite(v)]
    return Series(name=name, values=tuple(kept))


def _losses(distilled: dict[str, Any], history: dict[str, Any]) -> tuple[LossRow, ...]:
    weights = distilled.get("weights") or {}
    # An epoch may have none of a loss: a language model can learn from its own words alone.
    last = {name: value for epoch in history.get("parts") or () for name, value in epoch.items()}
    total = sum(abs(w * last.get(name, 0.0)) for name, w in weights.items())
    rows = []
    for name, weight in weights.items():
        value = last.get(name)
        share = None if value is None or not total else abs(weight * value) / total
        rows.append(
            LossRow(
                name=str(name),
                weight=made("weight", weight),
                last=None if value is None else made("loss", value),
                share=None if share is None else made("share", share),
            )
        )
    return tuple(rows)


def _facts(distilled: dict[str, Any], history: dict[str, Any]) -> tuple[str, ...]:
    facts = []
    if "epochs" in distilled:
        facts.append(str(distilled.get("bound") or f"{int(distilled['epochs'])} epochs"))
    if history.get("best_epoch", -1) >= 0:
        best, tokens = int(history["best_epoch"]), distilled.get("tokens") or []
        when = f"after {tokens[best]:,} tokens" if best < len(tokens) else f"of epoch {best + 1}"
        facts.append(f"weights {when}")
    if history.get("precision"):
        facts.append(f"trained in {history['precision']}")
    for key, words in (("skipped", "steps skipped for NaN"), ("rolled_back", "roll-backs")):
        if history.get(key) is not None:
            facts.append(f"{int(history[key])} {words}")
    if own := distilled.get("own_batches"):
        facts.append(f"{int(own['own']):,} of {int(own['all']):,} batches in its own words")
    if shared := distilled.get("shared"):
        share = quantity("share", shared["span_bytes"] / shared["learned_bytes"], "1")
        facts.append(f"{share} of the learned text lies in spans that the teacher also writes")
        if unread := [str(name) for name in shared["unread"]]:
            facts.append(f"the teacher does not know {', '.join(unread)}: texts end there for it")
    facts += [f"started with {taken}" for taken in distilled.get("start") or []]
    if history.get("stopped_early"):
        facts.append("stopped early")
    return tuple(facts)


def _heat(pairing: dict[str, Any]) -> Chart | None:
    chosen = {(i, j) for i, j in (pairing.get("pairs") or [])}
    cells = [
        Cell(student=student, teacher=teacher, value=float(value), chosen=(i, j) in chosen)
        for i, (student, row) in enumerate(_rows(pairing))
        for j, (teacher, value) in enumerate(zip(pairing["teacher_taps"], row, strict=True))
    ]
    return heat_chart(tuple(cells)) if cells else None


def _rows(pairing: dict[str, Any]) -> list[tuple[str, list[float]]]:
    if not pairing.get("similarity"):
        return []
    return list(zip(pairing["student_taps"], pairing["similarity"], strict=True))


def _pairs(pairing: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{pairing['student_taps'][i]} from {pairing['teacher_taps'][j]}"
        for i, j in pairing.get("pairs") or []
    )


def _lenses(given: list[dict[str, Any]], metric: str) -> Chart | None:
    found = tuple((str(lens["tap"]), float(lens["agreement"])) for lens in given)
    return lens_chart(found, values=metric == "r2") if found else None
