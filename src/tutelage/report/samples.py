"""What a language model's teacher wrote to learn from, what both answer, where they part."""

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
class Lesson:
    """A prompt and the answer to it that the teacher wrote before the student was taught."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Texts that were generated, side-by-side answers, the places of the largest departures."""

    written: tuple[Lesson, ...]
    answers: tuple[Answers, ...]
    partings: tuple[Parting, ...]


def written(data: dict[str, Any]) -> tuple[Lesson, ...]:
    """Return some of what the teacher wrote, from the result of the stage `data`."""
    shown = data.get("generated", {}).get("shown", [])
    return tuple(Lesson(prompt=str(s["prompt"]), answer=str(s["answer"])) for s in shown)


def samples(proof: dict[str, Any], texts: tuple[Lesson, ...] = ()) -> Samples | None:
    """Return the section, or None where there is nothing of a language model to show."""
    if proof.get("decides") != "tokens":
        proof = {}
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
    found = Samples(written=texts, answers=answers, partings=partings)
    return found if texts or answers or partings else None
