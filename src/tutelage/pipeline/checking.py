"""What can be refused before anything is trained or asked."""

from __future__ import annotations

import torch

from tutelage.errors import RecipeError
from tutelage.losses.objective import check_terms
from tutelage.pipeline.lessons import terms_of
from tutelage.pipeline.material import Material
from tutelage.recipe import Recipe
from tutelage.students.spec import StudentSpec


def check_recipe(recipe: Recipe, material: Material) -> None:
    """Raise `RecipeError` for losses, limits or a fixed student that could never be used."""
    try:
        check_terms(terms_of(recipe.distill), material.decides)
    except RecipeError as error:
        raise RecipeError(f"distill.losses: {error}") from None
    if material.decides == "values":
        for key, given in (
            ("budget.accuracy", recipe.budget.accuracy),
            ("teacher.classes", recipe.teacher.classes),
        ):
            if given is not None:
                raise RecipeError(
                    f"{key}: the labels of {recipe.data.train} are values, not classes; remove the "
                    "key (R2 and the errors are reported)"
                )
    if recipe.student.spec is not None:
        spec = fixed_spec(recipe.student.spec, material)
        with torch.random.fork_rng(devices=[]):
            spec.build()


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
    return StudentSpec.from_json({**decided, **given})
