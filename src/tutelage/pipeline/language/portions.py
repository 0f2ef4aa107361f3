"""How much text each step of teaching a language model takes: pieces of passes over the data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.recipe import Recipe

_POINTS = 12  # of the curve of all teaching; each is a validation
_LEAST_STEPS = 8  # optimiser steps between two validations
_LAST = 2.0  # how much more text the student that ships learns from than one on the way to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """A step's text: `count` pieces from piece `first` on, of which a pass has `pieces`."""

    pieces: int
    first: int
    count: int


def portions(
    recipe: Recipe, material: LanguageMaterial, steps: int, *, behind: int = 0
) -> tuple[Portion, ...]:
    """Return what each of `steps` steps learns from, `behind` pieces having been learned before.

    Steps take text that no other took while there is such. Where the recipe says `distill.epochs`,
    each step makes these passes, else all steps share its `language.tokens`.
    """
    train = material.taught
    a_pass, most = int(train.learned.sum()), max(1, len(train) // recipe.distill.batch)
    passes = recipe.distill.epochs
    weights = [1.0] * steps if passes else [1.0] * (steps - 1) + [_LAST]
    whole = passes * steps if passes else max(1.0, recipe.language.tokens / max(1, a_pass))
    pieces = max(1, min(round(_POINTS / whole), most // _LEAST_STEPS))
    if not passes and steps > 1:  # a piece is the least that a step takes
        pieces = max(pieces, min(most, steps + 1))
    counts = [max(1, round(pieces * whole * weight / sum(weights))) for weight in weights]
    firsts = accumulate(counts[:-1], initial=behind)
    return tuple(
        Portion(pieces=pieces, first=first, count=count)
        for first, count in zip(firsts, counts, strict=True)
    )
