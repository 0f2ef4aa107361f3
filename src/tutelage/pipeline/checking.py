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
    """Raise `RecipeError` for losses, a limit, or a fixed student that could never be used."""
    labelled = material.labelled is not None
    if not labelled and recipe.budget.accuracy is not None:
        raise RecipeError(
            f"budget.accuracy cannot be judged, since {recipe.data.train} has no labels: remove "
            "it, or add labels"
        )
    try:
        check_terms(terms_of(recipe.distill), labelled=labelled)
    except RecipeError as error:
        raise RecipeError(f"distill.losses: {error}") from None
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
