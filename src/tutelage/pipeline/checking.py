"""What can be refused before anything is trained or asked."""

from __future__ import annotations

import torch

from tutelage.devices import load_device
from tutelage.errors import RecipeError
from tutelage.losses import LOSSES
from tutelage.losses.objective import check_terms
from tutelage.pipeline.exiting import check_exits
from tutelage.pipeline.lessons import inside, terms_of
from tutelage.pipeline.material import Material
from tutelage.recipe import Recipe
from tutelage.students.built_in import TEACHERS
from tutelage.students.spec import FAMILIES, StudentSpec

_FEWEST = 8  # pixels a side that `student.shrink: auto` leaves


def check_recipe(recipe: Recipe, material: Material) -> None:
    """Raise `RecipeError` for what could never be used: losses, a limit, a precision, a student."""
    _refuse_members(recipe)
    labelled = material.labelled is not None
    if not labelled and recipe.budget.accuracy is not None:
        raise RecipeError(
            f"budget.accuracy cannot be judged, since {recipe.data.train} has no labels: remove "
            "it, or add labels"
        )
    if recipe.budget.speed is not None:
        raise RecipeError("budget.speed is for language models: give budget.latency instead")
    try:
        check_terms(terms_of(recipe.distill), material.decides, labelled=labelled)
    except RecipeError as error:
        raise RecipeError(f"distill.losses: {error}") from None
    if material.decides == "values":
        _refuse_for_values(recipe)
    terms = terms_of(recipe.distill)
    if recipe.distill.balance_classes and not any("label" in LOSSES[t.name].reads for t in terms):
        raise RecipeError(
            f"distill.balance_classes weighs losses that read labels, and '{terms[0].name}' reads "
            "none: add cross_entropy to distill.losses, or remove the key"
        )
    if recipe.export.precision == "float16" and not load_device(recipe.device).runs("float16"):
        raise RecipeError(
            f"export.precision: {recipe.device} reads weights where they are stored, and float16 "
            "ones must become float32 in RAM first: take int8 or float32"
        )
    shrinks_of(recipe, material)
    check_exits(recipe, material)
    if recipe.student.spec is not None:
        spec = fixed_spec(recipe.student.spec, material)
        _check_tokens(recipe, spec)
        with torch.random.fork_rng(devices=[]):
            spec.build()


def _refuse_members(recipe: Recipe) -> None:
    count, student = recipe.teacher.members, recipe.student
    for key, given in (("space: sliced", student.space), ("start: teacher", student.start)):
        if count > 1 and key.endswith(f" {given}"):
            raise RecipeError(
                f"student.{key} takes the weights of one network, and teacher.members is {count}: "
                "remove one of the two"
            )


def _refuse_for_values(recipe: Recipe) -> None:
    for key, given in (
        ("budget.accuracy", recipe.budget.accuracy),
        ("teacher.classes", recipe.teacher.classes),
        ("metric", None if recipe.metric == "accuracy" else recipe.metric),
        ("distill.balance_classes", recipe.distill.balance_classes or None),
    ):
        if given is not None:
            raise RecipeError(
                f"{key}: the labels of {recipe.data.train} are values, not classes; remove the "
                "key (R2 and the errors are reported)"
            )


def _check_tokens(recipe: Recipe, spec: StudentSpec) -> None:
    for term in terms_of(recipe.distill):
        if inside((term,)) and not FAMILIES[spec.family].tokens:
            near = ", ".join(name for name in FAMILIES if FAMILIES[name].tokens)
            raise RecipeError(
                f"distill.losses: '{term.name}' goes token by token, and the student family "
                f"'{spec.family}' has no tokens; use features or trajectory, or the family {near}"
            )


def shrinks_of(recipe: Recipe, material: Material) -> tuple[int, ...]:
    """Return by how much the searched students may shrink their images: 1 leaves them as they are.

    Raises `RecipeError` where the examples are no images, or do not divide.
    """
    wanted = recipe.student.shrink
    if wanted == 1:
        return (1,)
    if "convnet" not in material.task.families:
        raise RecipeError(
            f"student.shrink is for images, and the task is {material.task.name}: remove it"
        )
    sides = material.shape[1:]
    if wanted == "auto":
        able = [n for n in (2, 4) if not any(s % n for s in sides) and min(sides) >= _FEWEST * n]
        return (1, *able)
    if any(side % wanted for side in sides):
        raise RecipeError(
            f"student.shrink is {wanted} and the images are {sides[0]} x {sides[1]} pixels: give a "
            "number that divides both, or write data.size"
        )
    return (wanted,)


def fixed_spec(given: dict[str, object], material: Material) -> StudentSpec:
    """Return the recipe's student, with what the data decides filled in.

    Raises `RecipeError` where it says otherwise than the data, or names a wrong knob.
    """
    decided = {k: list(v) if isinstance(v, tuple) else v for k, v in material.knobs.items()}
    for knob, value in decided.items():
        if given.get(knob, value) != value:
            raise RecipeError(
                f"student.spec: {knob} is {given[knob]} and the data has {value}; leave it out"
            )
    spec = StudentSpec.from_json({**decided, **given})
    if spec.family in {TEACHERS[name].family for name in TEACHERS if TEACHERS[name].most}:
        raise RecipeError(
            f"student.spec: {spec.family} is a teacher alone; take one of "
            f"{', '.join(material.task.families)}"
        )
    return spec
