"""From the recipe's words to objectives and schedules."""

from __future__ import annotations

import math
from typing import Any

from tutelage.losses import LOSSES
from tutelage.losses.objective import INSIDE, Objective, Pairs, Term, reads_labels
from tutelage.losses.projectors import Projections
from tutelage.recipe import DistillPart, LossPart, Recipe
from tutelage.students.spec import FAMILIES, StudentSpec
from tutelage.tasks import Task
from tutelage.train.schedule import Schedule
from tutelage.types import Decides
from tutelage.units import parse_quantity

_STEPS_WANTED = 9_000
_FEWEST_STEPS = 2_400
_FEWEST_EPOCHS, _MOST_EPOCHS = 20, 120
# Multiply-accumulates of teaching a token model by default: 20 minutes at 50 GFLOP/s, two a MAC.
_MOST_MACS, _FEWEST_BOUNDED_EPOCHS = 3e13, 4
_PASSES = 3  # forward, and backward for twice as much
# Each loss for values as if alone: the teacher's value smooths noise, the label is the truth.
_LOSSES_OF_VALUES = {"squared_error": 1.0, "value_error": 1.0}
_GENTLY = 0.1
_NARROW = 48  # numbers a token, up to which a fresh transformer learns at the usual rate
_LEVEL = 0.3  # KL beside DIST: at 1 it upsets thresholds that a start inherits, for some steps
_MOST_STAYS = 0.5
_BRANCHED = ("trajectory", "branch_labels", "branch_decision")
_BY_KL = LossPart.model_validate({"weight": 1.0, "by": "kl"})
SMALL = 1_000  # examples; below, an epoch is over in a few steps


def usual_losses(
    decides: Decides, task: Task, classes: int, *, labelled: bool = True
) -> dict[str, Any]:
    """Return the losses that teach such data where the recipe names none.

    Where those of the task read labels and the data is not `labelled`, or few of it, DIST stands
    in: losses that read labels are averaged over the examples that have one.

    DIST correlates decisions and leaves their level free. Over an example's two probabilities every
    correlation is 1 or -1: of two classes it teaches an order of the examples, and no threshold.
    KL beside it does; alone it was slow to begin (benchmarks/RESULTS.md, two classes).
    """
    if decides == "values":
        return dict(_LOSSES_OF_VALUES)
    losses = dict(task.losses)
    if not labelled and any(reads_labels(LOSSES[name]) for name in losses):
        losses = {"dist": 1.0}
    level = {"kl": _LEVEL} if classes == 2 and "dist" in losses else {}
    return {**losses, **level}


def with_usual(
    recipe: Recipe, decides: Decides, task: Task, classes: int, *, labelled: bool = True
) -> Recipe:
    """Return the recipe with the losses and the batch that suit its data, where it names none.

    Exits need a loss that teaches branches; one is added where the recipe has none: the trajectory,
    which was not seen to cost the final decision (benchmarks/RESULTS.md), or the final decision
    where the teacher is a file that shows no more. Beside it features were not measured: they are
    left out.
    """
    losses: dict[str, Any] = dict(recipe.distill.losses)
    if "losses" not in recipe.distill.model_fields_set:
        losses = usual_losses(decides, task, classes, labelled=labelled)
        if recipe.student.exits is not None:
            losses.pop("features", None)
    if recipe.student.exits is not None and not any(LOSSES[x].reads in _BRANCHED for x in losses):
        whole = (recipe.teacher.source or "").endswith(".onnx")
        losses |= {"decision_everywhere": _BY_KL} if whole else {"trajectory": 1.0}
    batch = recipe.distill.batch if "batch" in recipe.distill.model_fields_set else task.batch_size
    if (losses, batch) == (recipe.distill.losses, recipe.distill.batch):
        return recipe
    part = recipe.distill.model_copy(update={"losses": losses, "batch": batch})
    return recipe.model_copy(update={"distill": part})


def terms_of(part: DistillPart) -> tuple[Term, ...]:
    """Return the recipe's losses as terms of an objective."""
    return tuple(_term(name, given) for name, given in part.losses.items())


def _term(name: str, given: Any) -> Term:
    part = given if isinstance(given, LossPart) else LossPart.model_validate({"weight": given})
    weight = None if part.weight == "auto" else float(part.weight)
    return Term(name=name, weight=weight, options=part.options, optional=part.optional)


def distill_inputs(recipe: Recipe) -> list[Any]:
    """Return what a lesson hangs on in the recipe, for the hash of a stage's inputs.

    Keys that came later are left out where they are not used, so that older runs go on.
    """
    part = recipe.distill
    left_out = {"checkpoint"} | (set() if part.balance_classes else {"balance_classes"})
    exits = ["exits"] if recipe.student.exits is not None else []
    return [part.model_dump(mode="json", exclude=left_out), *metric_inputs(recipe), *exits]


def teacher_inputs(recipe: Recipe) -> dict[str, Any]:
    """Return what the recipe says of the teacher, for hashes; later keys as in `distill_inputs`."""
    part = recipe.teacher
    unset = {"members": part.members == 1, "network": part.network is None}
    return part.model_dump(mode="json", exclude={key for key, is_so in unset.items() if is_so})


def metric_inputs(recipe: Recipe) -> list[str]:
    """Return the metric by which validation chooses, for hashes; nothing for accuracy."""
    return [] if recipe.metric == "accuracy" else [recipe.metric]


def wants(terms: tuple[Term, ...]) -> frozenset[str]:
    """Return what the signal cache must hold for these losses, beside decisions."""
    reads = {LOSSES[term.name].reads for term in terms}
    return frozenset(
        what
        for what, kinds in (("features", {"trajectory", "features"}), ("maps", {"maps"}))
        if reads & kinds
    )


def inside(terms: tuple[Term, ...]) -> frozenset[str]:
    """Return what these losses read token by token: of `states`, `scores`, `relations`."""
    return INSIDE & {LOSSES[term.name].reads for term in terms}


def objective_of(
    terms: tuple[Term, ...],
    *,
    pairs: Pairs,
    student_widths: tuple[int, ...],
    teacher_widths: tuple[int, ...],
    seed: int,
    projections: Projections = (),
    class_weights: tuple[float, ...] | None = None,
) -> Objective:
    """Build the objective; raises `RecipeError` on a wrong loss, option or pairing."""
    return Objective(
        terms,
        pairs=pairs,
        student_widths=student_widths,
        teacher_widths=teacher_widths,
        seed=seed,
        projections=projections,
        class_weights=class_weights,
    )


def batch_for(recipe: Recipe, examples: int) -> int:
    """Return the recipe's batch, at most an eighth of a small data set, so that steps are many."""
    return min(recipe.distill.batch, max(8, examples // 8))


def rate_for(recipe: Recipe, spec: StudentSpec | None, *, inherits: bool) -> float:
    """Return the recipe's rate; unset, less of it for a transformer.

    That is a tenth where it `inherits` weights that were taught before, and with fresh ones, of n
    numbers a token, 48/n where that is less than 1 (benchmarks/student_lessons.py). `spec` is None
    for one's own student. Source: Yang et al., Tensor Programs V (2022): under Adam the rate of
    hidden weights goes with 1/width.
    """
    rate = recipe.distill.rate
    if "rate" in recipe.distill.model_fields_set or spec is None:
        return rate
    if not FAMILIES[spec.family].attends:
        return rate
    return rate * (_GENTLY if inherits else min(1.0, _NARROW / spec.knobs.hidden))


def epochs_for(recipe: Recipe, examples: int, macs: float | None = None) -> int:
    """Return the recipe's epochs; unset, as many as make about 9,000 steps, from 20 to 120.

    Where 120 epochs are fewer than 2,400 steps, as many as make those: an epoch is short there.
    `macs` are the multiply-accumulates of a token model for one example: 3 x macs x examples x
    epochs is then at most 3e13, in no fewer than 4 epochs. No clock decides.
    """
    if recipe.distill.epochs is not None:
        return recipe.distill.epochs
    steps = max(1, examples // batch_for(recipe, examples))
    usual = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, math.ceil(_STEPS_WANTED / steps)))
    usual = max(usual, math.ceil(_FEWEST_STEPS / steps))
    if not macs:
        return usual
    bound = int(_MOST_MACS / (_PASSES * macs * examples))
    return min(usual, max(_FEWEST_BOUNDED_EPOCHS, bound))


def further_of(
    recipe: Recipe, epochs: int, stays: float | None, rate: float
) -> tuple[int, dict[str, float]]:
    """Return how long a student that starts as it is chosen is taught, and what of the schedule.

    A cut of the elastic student, which learned for `epochs`, is taught further: unless the recipe
    says otherwise for a tenth of them, at a third of the rate. What is a part of a student taught
    before, by the share `stays`, is taught for a quarter of them at a third of the recipe's rate,
    but no more than `rate`, that of any such start, or for a half at `rate` where little stays
    (benchmarks/warm_starts.py). Every other starts its lesson here.
    """
    further = recipe.student.further
    if recipe.student.space == "elastic":
        further = max(1, epochs // 10) if further is None else further
        return further, {"rate": recipe.distill.rate / 3}
    if stays is None:
        return epochs, {}
    near = stays >= _MOST_STAYS
    usual = max(1, epochs // 4 if near else epochs // 2)
    changes = {"rate": min(rate, recipe.distill.rate / 3)} if near else {}
    return usual if further is None else further, changes


def bounded_by(recipe: Recipe, examples: int, macs: float | None) -> str:
    """Say by what the default number of epochs was bounded; '' where it was not."""
    usual, epochs = (epochs_for(recipe, examples, m) for m in (None, macs))
    if epochs == usual or not macs:
        return ""
    whole = _PASSES * macs * examples * epochs
    return (
        f"{epochs} epochs, not {usual}: this student computes {macs / 1e6:,.0f} MMAC a text, so "
        f"that teaching takes {whole:.1e} MAC (distill.epochs sets another number)"
    )


def schedule_of(recipe: Recipe, *, epochs: int, seed: int, **changes: Any) -> Schedule:
    """Return the recipe's training schedule."""
    part = recipe.distill
    values: dict[str, Any] = {
        "batch": part.batch,
        "optimizer": part.optimizer,
        "shape": part.schedule,
        "rate": part.rate,
        "weight_decay": part.weight_decay,
        "ema": part.ema,
        "clip": part.clip,
        "patience": part.patience,
        "precision": part.precision,
        "checkpoint_s": parse_quantity(part.checkpoint, "s"),
    }
    return Schedule(epochs=epochs, seed=seed, **{**values, **changes})
