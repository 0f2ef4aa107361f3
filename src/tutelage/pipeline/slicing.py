"""The student spaces side by side: slices of the teacher, and the compact families.

Covers teachers of the built-in convolutional families and vision transformers, plain vision
transformers of timm, transformers and torchvision, convolutional classifiers of images that can be
traced (`pipeline.foreign`), and text encoders laid out like BERT with a head that was fitted here;
for every other teacher the compact space stands alone, and the run says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.errors import InfeasibleError, StudentError
from tutelage.files import hash_json
from tutelage.pipeline.elastic import elastic_cuts
from tutelage.pipeline.foreign import sliceable
from tutelage.pipeline.inheriting import from_network
from tutelage.pipeline.material import Material
from tutelage.pipeline.narrowing import scores_of_stages
from tutelage.pipeline.teaching import Taught
from tutelage.plan import SPACES, Candidate
from tutelage.plan.costs import Costing
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.spec import StudentSpec


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
    if space == "elastic":
        return elastic_cuts(recipe, costing, material, taught, run, progress)
    alone = space == "sliced"
    own, unlike = sliceable(taught.teacher, material.shape)
    why = not_sliced(recipe, material, None if own is None else own[1], unlike)
    if why and alone:
        raise StudentError(why)
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


def not_sliced(recipe: Recipe, material: Material, whole: StudentSpec | None, unlike: str) -> str:
    """Say why the teacher is not sliced; '' if it is.

    `whole` is its spec where it can be; where it cannot, `unlike` says why.
    """
    alone, why = recipe.student.space == "sliced", ""
    if recipe.teacher.members > 1:
        why = f"a slice is of one network, and the teacher is {recipe.teacher.members}"
    elif whole is None:
        why = unlike
    elif any(getattr(whole.knobs, k) != v for k, v in material.knobs.items() if k != "classes"):
        why = "the teacher reads inputs of another shape than the student's"
    elif recipe.student.candidates < 2 and not alone:
        why = "student.candidates is 1"
    if why and alone:
        return f"student.space: sliced, but {why}. Choose student.space: compact"
    return why


def _slices(
    recipe: Recipe, costing: Costing, material: Material, taught: Taught, run: Run,
    progress: Progress, count: int,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Return the slices that fit, found once a run."""

    def search() -> tuple[Any, list[Path]]:
        progress.say(f"plan: slicing the teacher to fit {costing.device.name}")
        own, _ = sliceable(taught.teacher, material.shape)
        assert own is not None
        scores = scores_of_stages(*own, taught.teacher.fingerprint, material, run, progress)
        found = SPACES["sliced"](
            costing,
            whole=own[1],
            most_parameters=max(2_000, taught.teacher.parameters // 2),
            count=count,
            scores=scores if count > 1 else None,
        )
        return [candidate.to_json() for candidate in found], []

    inputs = hash_json(
        [
            *costing.key(),
            count,
            taught.train.key,
            recipe.threads,
            "by scores",
        ]
    )
    found = tuple(map(Candidate.from_json, run.stage("slices", inputs, search).result))
    own, _ = sliceable(taught.teacher, material.shape)
    return from_network(found, own, taught.teacher.fingerprint, material, run, progress)
