"""Which layers of the student learn from which of the teacher, as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.errors import RecipeError
from tutelage.losses.language_inside import apart_inside
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.students.decoders.network import Decoder
from tutelage.train.inside import InsideLesson

Weighed = tuple[Mapping[str, float], Mapping[str, Mapping[str, Any]]]


def check_inside(recipe: Recipe, weights: Mapping[str, float]) -> None:
    """Refuse lessons inside the networks that say nothing of the next token, or wrong pairs."""
    tokens, inside = apart_inside(weights)
    if not tokens:
        raise RecipeError(
            f"distill.losses: {', '.join(inside)} teach no next token; name forward_kl or "
            "token_cross_entropy too"
        )
    if recipe.distill.pairs is None:
        return
    if not inside:
        raise RecipeError(
            "distill.pairs: only hidden and relations read pairs of layers; name one of them in "
            "distill.losses, or remove the key"
        )
    pairs_of(recipe)


def pairs_of(recipe: Recipe) -> list[tuple[int, int]] | None:
    """Return the recipe's pairs of (student, teacher) layers; raises `RecipeError`."""
    if recipe.distill.pairs is None:
        return None
    found = []
    for pair in recipe.distill.pairs:
        if not all(name.isdecimal() for name in pair):
            raise RecipeError(
                f"distill.pairs: {list(pair)} are not two layers; of a language model write their "
                "numbers from 0 on, ['5', '11'] for instance"
            )
        found.append((int(pair[0]), int(pair[1])))
    if not found:
        raise RecipeError("distill.pairs names no layers; remove the key")
    return found


def inside_of(
    recipe: Recipe, material: LanguageMaterial, student: Decoder, given: Weighed,
    progress: Progress, *, last: bool,
) -> InsideLesson | None:  # fmt: skip
    """Return the lessons from layer to layer, None where the recipe has none; says what they cost.

    Pairs by hand are of the student that ships, so they hold in the last step; in steps before it
    each layer learns from the one that it was.
    """
    weights, options = given
    _, inside = apart_inside(weights)
    if not inside:
        return None
    own = {name: options[name] for name in inside if name in options}
    pairs = pairs_of(recipe) if last else None
    lesson = InsideLesson(student, material.decoder, losses=inside, options=own, pairs=pairs)
    progress.say(lesson.describe(student, int(material.data.train.ids.size)))
    return lesson
