"""Choose, teach, ship and prove a slice; where it missed a limit, again from what was taught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tutelage.devices import Device
from tutelage.errors import InfeasibleError
from tutelage.files import hash_json
from tutelage.pipeline import tightening
from tutelage.pipeline.language.costs import Terms, figures_on
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.pace import Pace
from tutelage.pipeline.language.planning import Slice, candidates, choose
from tutelage.pipeline.language.proving import prove
from tutelage.pipeline.language.rehearsing import rehearsed
from tutelage.pipeline.language.scores import SliceScores, lesson_of
from tutelage.pipeline.language.shipping import ship
from tutelage.pipeline.language.teaching import Taught, ask, teach
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.teach.token_signals import TokenSignals


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every round of a run has in common."""

    recipe: Recipe
    material: LanguageMaterial
    device: Device
    limits: tuple[Limit, ...]
    terms: Terms
    pace: Pace | None
    scores: SliceScores
    run: Run
    progress: Progress


def proven(job: Job) -> tuple[dict[str, Any], Taught]:
    """Return the proof and the student of the last round.

    Where the file misses a hard limit, the limit is tightened by what was missed, a smaller slice
    is chosen of the student that was taught, taught on, shipped and proven: at most three times.
    Each round's stages are recorded, so a killed run goes on in the round it was in.
    """
    lesson = lesson_of(job.recipe, job.material)
    signals: TokenSignals | None = None
    taught: Taught | None = None
    number = 0
    while True:
        found = _next_slice(job, taught, number, lesson)
        if found is None:
            assert taught is not None  # a first round without a slice raises
            return _shipped(job, taught), taught
        material = rehearsed(job.recipe, job.material, job.run, job.progress)
        signals = signals or ask(job.recipe, material, job.run, job.progress)
        taught = teach(job.recipe, material, found, signals, job.run, job.progress, before=taught)
        known, internal = tightening.recorded(job.run, job.limits, lesson)
        if known <= number:  # else this round was done before, and missed
            proof = _shipped(job, taught)
            held = _as_planned(job, taught, internal)
            if tightening.tighten(job.run, number, job.limits, held, proof, lesson) is None:
                return proof, taught
            _, internal = tightening.recorded(job.run, job.limits, lesson)
            job.progress.say(f"plan: {tightening.said(job.limits, internal)}")
        number += 1


def _as_planned(job: Job, taught: Taught, internal: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """Return the limits, lowered to what was foretold of the student: sizes come in coarse steps.

    What was missed is a ratio to that figure, so the next slice is smaller than this one.
    """
    figures = figures_on(taught.student.spec, taught.form, job.terms, job.device, job.pace)
    values = {figure.name: figure.value for figure in figures}
    return tuple(replace(x, value=min(x.value, values.get(x.metric, x.value))) for x in internal)


def _next_slice(job: Job, taught: Taught | None, number: int, lesson: str) -> Slice | None:
    """Return the slice of round `number`; None where no smaller one keeps the tightened limits."""
    _, internal = tightening.recorded(job.run, job.limits, lesson, most=number)
    start = None if taught is None else taught.student
    forms = job.recipe.language.formats
    if taught is not None and job.material.given is None:  # a slice gets smaller, not coarser
        forms = (taught.form,)
    try:
        found = candidates(
            job.material, job.terms, internal, job.device, job.pace,
            forms=forms, start=None if start is None else start.spec,
        )  # fmt: skip
    except InfeasibleError:
        if taught is None:
            raise
        return None
    if taught is not None and any(
        (c.spec, c.form) == (taught.student.spec, taught.form) for c in found
    ):
        return None  # what was missed is not foretold, so nothing would change
    return choose(
        found, job.device, job.material, internal, job.scores, job.run, job.progress,
        start=start, number=number, threads=job.recipe.threads,
    )  # fmt: skip


def _shipped(job: Job, taught: Taught) -> dict[str, Any]:
    run, said = job.run, job.progress
    run.stage("distill", hash_json(taught.result), lambda: (taught.result, []))
    shipped = ship(job.recipe, job.material, taught, run, said)
    proof = prove(job.recipe, job.material, taught, shipped, job.device, job.limits, run, said)
    rows = {row["name"]: row for row in proof["figures"]["student"]}
    figure = Measurement.from_json(rows[f"{proof['metric']}_validation"])
    job.scores.note(taught.student.spec, taught.form, "taught", figure)
    return proof
