"""Teacher beside student, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.records import Measurement
from tutelage.report.figures import Figure, label, measurement, points, ratio, show, weakest

_ORDER = (
    "accuracy_validation",
    "r2_validation",
    "mae_validation",
    "rmse_validation",
    "accuracy_test",
    "perplexity_validation",
    "perplexity_test",
    "bits_per_byte_validation",
    "bits_per_byte_test",
    "agreement_validation",
    "agreement_test",
    "macro_f1_test",
    "balanced_accuracy_test",
    "r2_test",
    "mae_test",
    "rmse_test",
    "storage_bytes",
    "parameters",
    "macs",
    "macs_mean",
    "latency_p50_s",
    "latency_p95_s",
    "latency_mean_s",
    "latency_s",
    "ram_bytes",
    "peak_activation_bytes",
    "energy_j",
    "energy_an_hour_j",
    "decisions_an_hour",
)
# only figures of the same machine compare; sizes are the same everywhere
_OF_A_MACHINE = ("latency", "energy", "ram", "tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRow:
    """One metric at one place; `change` is a ratio, points or a share."""

    name: str
    where: str
    teacher: Figure | None
    student: Figure | None
    change: Figure | None


def comparison(proof: dict[str, Any]) -> tuple[CompareRow, ...]:
    """Return the rows of the table; a name given for several machines has a row for each."""
    both = proof.get("figures") or {}
    teacher = [measurement(m) for m in both.get("teacher") or []]
    student = [measurement(m) for m in both.get("student") or []]
    names = list(dict.fromkeys(m.name for m in (*teacher, *student)))
    names.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    rows: list[CompareRow] = []
    for name in names:
        mine = [m for m in student if m.name == name]
        theirs = [m for m in teacher if m.name == name]
        rows += _rows(name, theirs, mine)
    return tuple(rows)


def _rows(name: str, theirs: list[Measurement], mine: list[Measurement]) -> list[CompareRow]:
    if not name.startswith(_OF_A_MACHINE) and len(theirs) <= 1 and len(mine) <= 1:
        return [_row(name, "", theirs[0] if theirs else None, mine[0] if mine else None)]
    rows = []
    for where in dict.fromkeys(m.where for m in (*mine, *theirs)):
        own = next((m for m in mine if m.where == where), None)
        other = next((m for m in theirs if m.where == where), None)
        rows.append(_row(name, where, other, own))
    return rows


def _row(
    name: str, where: str, teacher: Measurement | None, student: Measurement | None
) -> CompareRow:
    return CompareRow(
        name=label(name),
        where=where,
        teacher=None if teacher is None else show(teacher),
        student=None if student is None else show(student),
        change=_change(teacher, student),
    )


def _change(teacher: Measurement | None, student: Measurement | None) -> Figure | None:
    if teacher is None or student is None or teacher.name == "latency_noise_floor":
        return None
    kind = weakest([teacher.kind, student.kind])
    if teacher.name.startswith(("accuracy", "macro_f1", "balanced_accuracy")):
        text = f"{points(student.value - teacher.value)} pt"
        return Figure(text=text, kind=kind, hint=f"{kind}: student less teacher, points")
    if teacher.name.startswith("r2"):
        change = student.value - teacher.value
        text = "±0" if abs(change) < 5e-4 else f"{change:+.3f}".replace("-", "−")
        return Figure(text=text, kind=kind, hint=f"{kind}: student less teacher")
    if not teacher.value > 0 or not student.value > 0:
        return None
    if teacher.name.startswith(("mae", "rmse", "perplexity", "bits_per_byte")):
        change = f"{student.value / teacher.value - 1:+.1%}".replace("-", "−").replace("%", " %")
        return Figure(text=change, kind=kind, hint=f"{kind}: student's over teacher's")
    less, more = sorted((teacher.value, student.value))
    times = ratio(more, less)
    word = "less" if teacher.value >= student.value else "more"
    text = "about the same" if times == "1×" else f"{times} {word}"
    return Figure(text=text, kind=kind, hint=f"{kind}: teacher's over student's")
