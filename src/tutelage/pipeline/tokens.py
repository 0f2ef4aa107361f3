"""What lessons that go token by token need: who can give it, and the teacher's side of it.

It is large (tokens x width x 2 bytes an example and tap), so only the taps that are paired are
stored, and once the pairing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tutelage.errors import RecipeError, TeacherError
from tutelage.losses import LOSSES
from tutelage.losses.objective import INSIDE, Pairs
from tutelage.pipeline.lessons import inside, terms_of, wants
from tutelage.pipeline.material import Material
from tutelage.pipeline.teaching import Taught
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.inside import Inside, look_inside
from tutelage.students.spec import FAMILIES
from tutelage.teach.inside import Insider, module_of
from tutelage.teach.signals import LiveSignals, SignalCache
from tutelage.types import Tap

MOST_BYTES = 4_000_000_000  # of stored token signals; beyond, the teacher is asked in every step


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLesson:
    """Where the teacher's signals come from, and what is read inside the student."""

    signals: SignalCache | LiveSignals
    student: Inside


def token_lesson(
    recipe: Recipe, material: Material, taught: Taught, network: nn.Module, taps: tuple[Tap, ...],
    pairs: Pairs, run: Run, progress: Progress,
) -> TokenLesson:  # fmt: skip
    """Store what is inside the teacher, or ask it live where that is over `MOST_BYTES`, and say so.

    Without losses that read tokens these are the signals that are there. Raises `StudentError` or
    `TeacherError` where one of the two has nothing to compare token by token.
    """
    terms = terms_of(recipe.distill)
    reads = inside(terms)
    if not reads:
        return TokenLesson(signals=taught.train, student=Inside())
    student = look_inside(network, [taps[s] for s, _ in pairs], reads, who="student")
    module, theirs = module_of(taught.teacher), [taught.teacher.taps[t] for _, t in pairs]
    assert module is not None  # refused before it was asked
    teacher = Insider(
        taught.teacher, look_inside(module, theirs, reads, who="teacher", error=TeacherError)
    )
    needed = wants(terms)
    features, maps = "features" in needed, "maps" in needed
    cache = SignalCache(
        run.file("signals"), material.train, views=material.views, features=features, maps=maps,
        teacher=teacher,
    )  # fmt: skip
    signals: SignalCache | LiveSignals = cache
    if cache.total_bytes > MOST_BYTES:
        progress.say(
            f"signals, token by token: {cache.total_bytes / 1e9:.1f} GB would be over "
            f"{MOST_BYTES / 1e9:g} GB, so the teacher is asked anew in every step"
        )
        signals = LiveSignals(teacher, features=features, maps=maps)
    else:
        progress.say(f"token by token: {cache.describe()}")
        cache.fill(progress)
    signals.lenses = taught.train.lenses
    return TokenLesson(signals=signals, student=student)


def token_families(recipe: Recipe, families: tuple[str, ...], task: str) -> tuple[str, ...]:
    """Return the families that the recipe's losses can teach; raises `RecipeError` for none."""
    reads = [t.name for t in terms_of(recipe.distill) if LOSSES[t.name].reads in INSIDE]
    kept = tuple(f for f in families if not reads or FAMILIES[f].tokens)
    if not kept:
        raise RecipeError(
            f"distill.losses: '{reads[0]}' goes token by token, and no family of students for the "
            f"task '{task}' has tokens; use features or trajectory, or give an own student"
        )
    return kept
