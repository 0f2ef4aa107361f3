"""What teacher and student of a language model answer, and where in a text they part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.report.figures import Figure, made


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One prompt with both answers."""

    prompt: str
    teacher: str
    student: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """A place in a held-out text: what stood before, what each would write next, how far apart."""

    before: str
    teacher: str
    student: str
    apart: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Side-by-side answers and the places of the largest departures."""

    answers: tuple[Answers, ...]
    partings: tuple[Parting, ...]


def samples(proof: dict[str, Any]) -> Samples | None:
    """Return the section, or None where the proof is of no language model."""
    if proof.get("decides") != "tokens":
        return None
    answers = tuple(
        Answers(prompt=str(a["prompt"]), teacher=str(a["teacher"]), student=str(a["student"]))
        for a in proof.get("answers") or []
    )
    partings = tuple(
        Parting(
            before=str(p["before"]),
            teacher=str(p["teacher"]),
            student=str(p["student"]),
            apart=made("kl", p["kl"]),
        )
        for p in proof.get("partings") or []
    )
    return Samples(answers=answers, partings=partings) if answers or partings else None
