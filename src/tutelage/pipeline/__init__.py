"""The stages over a run directory, in their order; resumable at every one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.devices import Device, load_device
from tutelage.errors import InfeasibleError
from tutelage.files import hash_json, write_atomically
from tutelage.pipeline import tightening
from tutelage.pipeline.checking import check_recipe
from tutelage.pipeline.class_names import with_classes
from tutelage.pipeline.fitting import built_in_parameters
from tutelage.pipeline.foreign import UNLIKE
from tutelage.pipeline.learning import distill
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import Material, read_material
from tutelage.pipeline.opening import opened, with_threads
from tutelage.pipeline.planning import (
    budget_of,
    costing_of,
    find_candidates,
    load_own_student,
    plan,
    refuse_given,
)
from tutelage.pipeline.proving import prove
from tutelage.pipeline.result import Result
from tutelage.pipeline.shipping import ship
from tutelage.pipeline.slicing import built_in_whole, nearest_of, not_sliced
from tutelage.pipeline.teaching import Taught, teach
from tutelage.pipeline.trials import note_taught, scores_of
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.recipe_language import LANGUAGE
from tutelage.records import Limit
from tutelage.report import build_report
from tutelage.run import Run


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    progress: Progress | None = None,
    trust_code: bool = False,
    material: Material | None = None,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
) -> Result:
    """Do every stage that is not done yet and return the result.

    The three last arguments come from Python and take the place of the recipe's. Raises a
    `TutelageError` of the stage that cannot go on; a missed hard limit is no error here (see
    `raise_if_missed`).
    """
    if recipe.task == LANGUAGE:
        from tutelage.pipeline.language import run_language

        return run_language(recipe, folder, progress=progress)
    with _ready(
        recipe, folder, progress, trust_code, material=material, teacher=teacher, student=student
    ) as ready:
        started = time.monotonic()
        proof, network = _proven(ready)
        spent = time.monotonic() - started + ready.spent_s
        ready.run.save()
        build_report(ready.run.path)
        return Result(run=ready.run.path, proof=proof, seconds=spent, student=network)


def try_recipe(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None, trust_code: bool = False
) -> None:
    """Do the stages up to the choice of the student: ask the teacher, distil candidates briefly.

    `run_recipe` goes on from there; raises as it does.
    """
    if recipe.task == LANGUAGE:
        from tutelage.pipeline.language import try_language

        try_language(recipe, folder, progress=progress)
        return
    with _ready(recipe, folder, progress, trust_code) as r:
        plan(r.recipe, r.material, r.taught, r.device, r.limits, r.run, r.progress, own=r.own)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A run whose teacher was asked: all that the later stages start from."""

    recipe: Recipe
    run: Run
    progress: Progress
    material: Material
    device: Device
    taught: Taught
    limits: tuple[Limit, ...]
    own: nn.Module | None
    spent_s: float


@contextmanager
def _ready(
    recipe: Recipe, folder: Path, progress: Progress | None, trust_code: bool, *,
    material: Material | None = None, teacher: nn.Module | None = None,
    student: nn.Module | None = None,
) -> Iterator[_Ready]:  # fmt: skip
    """Open the run, read the data and ask the teacher."""
    recipe = with_threads(recipe)
    device = load_device(recipe.device)
    with opened(recipe, folder, progress) as (run, progress):
        started = time.monotonic()
        material = material or read_material(recipe, progress)
        material = with_classes(recipe, material, trust_code=trust_code, module=teacher)
        recipe = with_usual(
            recipe, material.decides, material.task, len(material.classes),
            labelled=material.well_labelled,
        )  # fmt: skip
        check_recipe(recipe, material)
        found = material.to_json(recipe.data.source)
        run.stage("data", hash_json(found), lambda: (found, []))
        for note in material.notes:
            progress.say(f"data: {note}")
        own = student if student is not None else load_own_student(
            recipe, material, trust_code=trust_code
        )  # fmt: skip
        planned = own is None and recipe.student.space in ("auto", "compact")
        if own is not None or recipe.student.spec is not None:
            refuse_given(recipe, material, device, own)
        elif recipe.teacher.fit is True and teacher is None and planned:
            _refuse_infeasible(recipe, material, device, run, progress)
        taught = teach(recipe, material, run, progress, trust_code=trust_code, module=teacher)
        write_atomically(run.file("recipe.yaml"), recipe.to_yaml())
        yield _Ready(
            recipe=recipe, run=run, progress=progress, material=material, device=device,
            taught=taught, limits=budget_of(recipe, device, 4 * taught.teacher.parameters),
            own=own, spent_s=time.monotonic() - started,
        )  # fmt: skip


def _proven(ready: _Ready) -> tuple[dict[str, Any], nn.Module]:
    """Choose, teach, ship and prove a student; again, with a tighter plan, where it missed."""
    recipe, material, run, progress = ready.recipe, ready.material, ready.run, ready.progress
    taught, device, limits, own = ready.taught, ready.device, ready.limits, ready.own
    free = own is None and recipe.student.spec is None
    # What a file misses hangs on what it is made of: another precision or space starts anew.
    parts = (recipe.student, recipe.export)
    lesson = hash_json([taught.train.key, *(part.model_dump(mode="json") for part in parts)])
    number, internal = tightening.recorded(run, limits, lesson)
    found: tuple[dict[str, Any], nn.Module] | None = None
    while True:
        try:
            chosen = plan(recipe, material, taught, device, internal, run, progress, own=own)
        except InfeasibleError:
            if found is not None:
                return found  # nothing smaller can be built: what was missed stays missed
            if number == 0:
                raise
            # A killed run comes back to where nothing fits: the round before it holds the answer.
            number, internal = tightening.recorded(run, limits, lesson, most=number - 1)
            continue
        learned = distill(recipe, material, taught, chosen, run, progress)
        shipped = ship(recipe, material, taught, learned, run, progress, limits)
        proof = prove(recipe, material, taught, shipped, device, limits, run, progress)
        if chosen.spec is not None:
            note_taught(scores_of(recipe, material, run.path), proof, chosen.spec, chosen.space)
        found = proof, learned.network
        tighter = free and tightening.tighten(run, number, limits, internal, proof, lesson)
        if not tighter:
            return found
        number, internal = number + 1, tighter
        progress.say(f"plan: {tightening.said(limits, internal)}")


def _refuse_infeasible(
    recipe: Recipe, material: Material, device: Device, run: Run, progress: Progress
) -> None:
    """Raise `InfeasibleError` before a teacher is trained for students that cannot be."""
    parameters = built_in_parameters(recipe, material)
    limits = budget_of(recipe, device, 4 * parameters)
    costing = costing_of(recipe, material, device, limits)
    try:
        find_candidates(recipe, costing, parameters, material, run, progress)
    except InfeasibleError as error:
        whole = None if recipe.student.space == "compact" else built_in_whole(recipe, material)
        if whole is None or not_sliced(recipe, material, whole, UNLIKE):
            raise
        near = nearest_of(error, whole, costing, parameters)
        if near is not None:
            raise near from None
