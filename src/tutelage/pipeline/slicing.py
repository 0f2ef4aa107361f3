"""The student spaces side by side: slices of the teacher, and the compact families.

Covers teachers of the built-in convolutional families, and text encoders laid out like BERT with a
head that was fitted here; for every other teacher the compact space stands alone, and the run says
so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.errors import InfeasibleError, StudentError
from tutelage.files import hash_json, read_tensors, write_tensors
from tutelage.pipeline.inheriting import own_network
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.teaching import Taught
from tutelage.plan import SPACES, Candidate
from tutelage.plan.costs import Costing
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.teach.teachers import Teacher


def of_all_spaces(
    recipe: Recipe, costing: Costing, material: Material, taught: Taught, run: Run,
    progress: Progress, *, compact: Callable[[], tuple[Candidate, ...]],
) -> tuple[Candidate, ...]:  # fmt: skip
    """Return the candidates of the recipe's `student.space`; `compact` finds those of its space.

    With `auto` slices take up to half the places. Raises `StudentError` where slices alone are
    asked for and the teacher has none, `InfeasibleError` where none fits.
    """
    space, places = recipe.student.space, recipe.student.candidates
    if recipe.student.spec is not None or space == "compact":
        return compact()
    alone = space == "sliced"
    why = _not_sliced(recipe, material, taught.teacher, alone=alone)
    if why and alone:
        raise StudentError(f"student.space: sliced, but {why}. Choose student.space: compact")
    slices: tuple[Candidate, ...] = ()
    if not why:
        try:
            count = places if alone else places // 2
            slices = _slices(recipe, costing, material, taught, run, progress, count)
        except (StudentError, InfeasibleError) as error:
            if alone:
                raise
            why = str(error)
    if why:
        progress.say(f"plan: the compact space alone, since {why}")
    return slices if alone else (*compact()[: places - len(slices)], *slices)


def _not_sliced(recipe: Recipe, material: Material, teacher: Teacher, *, alone: bool) -> str:
    """Say why the teacher is not sliced; '' if it can be tried."""
    own = own_network(teacher, material.shape)
    if own is None:
        return "slices are of built-in networks and of BERT's kind, and this is another network"
    knobs = own[1].knobs
    if any(getattr(knobs, k) != v for k, v in material.knobs.items() if k != "classes"):
        return "the teacher reads inputs of another shape than the student's"
    if recipe.student.candidates < 2 and not alone:
        return "student.candidates is 1"
    return ""


def _slices(
    recipe: Recipe, costing: Costing, material: Material, taught: Taught, run: Run,
    progress: Progress, count: int,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Return the slices that fit, found once a run."""

    def search() -> tuple[Any, list[Path]]:
        progress.say(f"plan: slicing the teacher to fit {costing.device.name}")
        own = own_network(taught.teacher, material.shape)
        assert own is not None
        found = SPACES["sliced"](
            costing,
            teacher=own[0],
            spec=own[1],
            inputs=some_examples(material),
            most_parameters=max(2_000, taught.teacher.parameters // 2),
            count=count,
        )
        rows, files = [], []
        for number, candidate in enumerate(found):
            files.append(run.file(f"slices/{number}.safetensors"))
            write_tensors(files[-1], candidate.weights or {})
            rows.append(candidate.to_json())
        return rows, files

    inputs = hash_json(
        [
            costing.meta.to_json(),
            costing.device.model_dump(mode="json"),
            [dataclasses.asdict(limit) for limit in costing.limits],
            costing.precision,
            *(dataclasses.asdict(file) for file in costing.beside),
            count,
            taught.train.key,
            recipe.threads,
        ]
    )
    record = run.stage("slices", inputs, search)
    return tuple(
        Candidate.from_json(row, read_tensors(run.file(f"slices/{number}.safetensors"))[0])
        for number, row in enumerate(record.result)
    )
