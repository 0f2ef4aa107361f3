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
from tutelage.pipeline.fitting import built_in_spec
from tutelage.pipeline.foreign import sliceable
from tutelage.pipeline.inheriting import from_network, own_module
from tutelage.pipeline.material import Material
from tutelage.pipeline.narrowing import scores_of_stages
from tutelage.pipeline.teaching import Taught
from tutelage.plan import SPACES, Candidate
from tutelage.plan.candidate import most_parameters, stand_in
from tutelage.plan.costs import Costing
from tutelage.plan.refusal import infeasible, shortfall
from tutelage.plan.sliced import depths, widest_slice
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Shortfall
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
    own, unlike = sliceable(taught.teacher, material.shape)
    whole = None if own is None else own[1]
    why = not_sliced(recipe, material, whole, unlike)
    if space == "sliced":
        if why:
            raise StudentError(why)
        return _slices(recipe, costing, material, taught, run, progress, places)
    whole, slices = None if why else whole, ()
    if not why:
        try:
            slices = _slices(recipe, costing, material, taught, run, progress, places // 2)
        except (StudentError, InfeasibleError) as error:
            why = str(error)
    if why:
        progress.say(f"plan: the compact space alone, since {why}")
    try:
        found = compact()
    except InfeasibleError as error:
        if not slices:
            near = nearest_of(error, whole, costing, taught.teacher.parameters)
            raise near or error from None
        progress.say("plan: slices of the teacher alone, since no compact student fits")
        found = ()
    return (*found[: places - len(slices)], *slices)


def built_in_whole(recipe: Recipe, material: Material) -> StudentSpec | None:
    """Return the spec of the teacher that is fitted on the spot; None where it is not sliced."""
    if recipe.teacher.members > 1:
        return None
    own = own_module(built_in_spec(recipe, material).build(), material.shape)
    return None if own is None else own[1]


def nearest_of(
    error: InfeasibleError, whole: StudentSpec | None, costing: Costing, teacher_parameters: int
) -> InfeasibleError | None:
    """Return what refuses compact students, or slices where the narrowest is nearer the limits.

    `whole` is the teacher's spec where slices compete. None where one fits.
    """
    if whole is None or error.shortfall is None:
        return error
    most = most_parameters(teacher_parameters)
    slices = [widest_slice(spec, costing, most) for spec in depths(whole)]
    if any(widest is not None for widest, _ in slices):
        return None
    narrowest = [least for _, least in slices]
    networks = (stand_in(candidate.spec) for candidate in narrowest)
    found = shortfall(narrowest, networks, costing)
    if _ratio(found) >= _ratio(error.shortfall):
        return error
    return infeasible(found, costing.device, given=False)


def _ratio(found: Shortfall) -> float:
    return max(v.figure.value / v.limit.value for v in found.verdicts if v.limit.hard)


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
            most_parameters=most_parameters(taught.teacher.parameters),
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
