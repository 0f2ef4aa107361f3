"""How a recipe's student writes some of its batches itself: which, how long, and what is asked."""

from __future__ import annotations

from typing import Any

from tutelage.errors import RecipeError
from tutelage.losses.language_terms import LANGUAGE_LOSSES
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.recipe import Recipe
from tutelage.tasks.causal_lm.tokens import Writer
from tutelage.teach.token_signals import Speaker
from tutelage.train.on_policy import Mixing, OnPolicy, check_longest, check_losses

Options = dict[str, dict[str, float]]
_LONGEST = 64


def own_losses(
    recipe: Recipe, weights: dict[str, float], options: Options
) -> tuple[dict[str, float], Options]:
    """Return what is learned from the student's own words; `weights` are those of the data.

    Raises `RecipeError` where nothing compares with the teacher.
    """
    part = recipe.language.own
    if part is None:
        return {}, {}
    found = part.losses
    if found is None:
        found = {name: w for name, w in weights.items() if LANGUAGE_LOSSES[name].tempered}
        if not found:
            raise RecipeError(
                "language.on_policy needs a loss that compares with the teacher, and "
                "distill.losses has none: name one in language.on_policy.losses, such as reverse_kl"
            )
    found = {name: float(weight) for name, weight in found.items()}
    chosen = {name: given for name, given in options.items() if name in found}
    check_losses(found, chosen)
    return found, chosen


def longest_of(recipe: Recipe, length: int) -> int:
    """Return the most tokens of a continuation; raises `RecipeError` where it is too long."""
    part = recipe.language.own
    if part is None or part.longest is None:
        return max(1, min(_LONGEST, length // 2))
    check_longest(part.longest, length)
    return part.longest


def own_words(
    recipe: Recipe, material: LanguageMaterial, losses: tuple[dict[str, float], Options],
    *, steps: int, seed: int,
) -> OnPolicy | None:  # fmt: skip
    """Return what a lesson of `steps` steps in all needs for it; None where it is off."""
    part = recipe.language.own
    if part is None:
        return None
    chats = getattr(material.tokenizer, "chat_template", None) is not None
    writer = Writer(material.tokenizer)
    weights, options = own_losses(recipe, *losses)
    return OnPolicy(
        Speaker(material.decoder),
        material.taught,
        material.data.validation,
        mixing=Mixing(share=part.share, first=round(part.after * steps)),
        losses=weights,
        options=options,
        ends=writer.ends() if chats else {writer.end},
        longest=longest_of(recipe, material.length),
        temperature=part.temperature,
        seed=seed,
    )


def own_record(own: OnPolicy | None, steps: int) -> dict[str, Any]:
    """Return what run.json says of it: how many of the `steps` were the student's own."""
    if own is None:
        return {}
    taken = sum(own.mixing.takes(step) for step in range(steps))
    return {"own_steps": taken, "steps": steps}
