"""Which taps of the student learn from which of the teacher, and the lesson built of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.errors import RecipeError
from tutelage.least_squares import affine_fit
from tutelage.losses import LOSSES
from tutelage.losses.objective import Term
from tutelage.losses.projectors import Projections
from tutelage.pairing import Pairing, find_pairing
from tutelage.passes import Forward, Inputs, call, mapped
from tutelage.pipeline.imbalance import class_weights
from tutelage.pipeline.lessons import batch_for, objective_of, terms_of
from tutelage.pipeline.material import Material
from tutelage.pipeline.teaching import Taught
from tutelage.pipeline.tokens import TokenLesson
from tutelage.recipe import Recipe
from tutelage.students.inside import Inside
from tutelage.students.taps import describe_taps, find_taps, reading
from tutelage.train.distill import Distillation
from tutelage.types import Tap, pooled

_PAIRING_EXAMPLES, _FEWEST_TO_FIT = 1_000, 16
_RIDGE = 0.01  # of what features are mapped by: some hundreds of channels, a thousand examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The student's taps and the pairing with the teacher's.

    `projections` are, a pair, the map by which what the student says there as it starts comes
    nearest to what the teacher says; there are none where no loss maps features, or validation is
    too small to fit them.
    """

    taps: tuple[Tap, ...]
    pairing: Pairing | None
    projections: Projections = ()


UNPAIRED = Paired(taps=(), pairing=None)


def pair_taps(
    recipe: Recipe, material: Material, taught: Taught, network: nn.Module, forward: Forward = call,
    *, start: nn.Module | None = None,
) -> Paired:  # fmt: skip
    """Find the student's taps and pair them with the teacher's by what they say on validation.

    `start` is the student as it starts its lesson, where a loss of the recipe maps its features.
    Both stay as they are.
    """
    network = copy.deepcopy(network).eval()
    examples, keep = _some_validation(material, network)
    two = mapped(examples, lambda x: x[:2])
    if recipe.student.taps is None:
        taps = find_taps(network, two, forward=forward)
    else:
        taps = describe_taps(network, two, recipe.student.taps, forward=forward)
    teacher_taps = tuple(tap.path for tap in taught.teacher.taps)
    if not taps or not teacher_taps:
        if recipe.distill.pairs:
            raise RecipeError("distill.pairs: this teacher has no taps to pair; remove the key")
        return Paired(taps=taps, pairing=None)
    mine = _features(network, examples, keep, taps, forward)
    theirs = _features_of_teacher(material, taught)
    named = None if recipe.distill.pairs is None else list(recipe.distill.pairs)
    paths = tuple(t.path for t in taps)
    pairing = find_pairing(mine, theirs, paths, teacher_taps, named)
    maps = any(LOSSES[term.name].projector for term in terms_of(recipe.distill))
    if start is None or not maps or len(theirs[0]) < _FEWEST_TO_FIT:
        return Paired(taps=taps, pairing=pairing)
    mine = _features(_by_batch(start), examples, keep, taps, forward)
    fitted = tuple(affine_fit(mine[s], theirs[t], _RIDGE) for s, t in pairing.pairs)
    return Paired(taps=taps, pairing=pairing, projections=fitted)


def _by_batch(network: nn.Module) -> nn.Module:
    """Return a copy whose batch norms go by the batch, as in a lesson; fresh ones saw none yet."""
    found = copy.deepcopy(network).eval()
    for module in found.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return found


def _some_validation(material: Material, network: nn.Module) -> tuple[Inputs, Tensor | None]:
    """Return validation examples where the network is, and which of their tokens count."""
    index = torch.arange(min(_PAIRING_EXAMPLES, material.validation.count))
    batch = material.validation.batch(index, 0)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    keep = None if batch.keep is None else batch.keep.to(device)
    return mapped(batch.inputs, lambda x: x.to(device)), keep


def _features(
    network: nn.Module, examples: Inputs, keep: Tensor | None, taps: tuple[Tap, ...],
    forward: Forward,
) -> list[Tensor]:  # fmt: skip
    with torch.inference_mode():
        said = reading(
            network, examples, taps, features=True, maps=False, keep=keep, forward=forward
        )
    return [x.cpu() for x in said.features]


def _features_of_teacher(material: Material, taught: Taught) -> tuple[Tensor, ...]:
    index = torch.arange(min(_PAIRING_EXAMPLES, material.validation.count))
    return taught.validation.read(index, 0).features


def build_lesson(
    recipe: Recipe, material: Material, taught: Taught, network: nn.Module, paired: Paired,
    terms: tuple[Term, ...] = (), tokens: TokenLesson | None = None, forward: Forward = call,
    examples: int | None = None,
) -> Distillation:  # fmt: skip
    """Put student, signals, data and objective (`terms`, else the recipe's losses) together.

    `examples` are as many as it learns from, where not from all; `tokens` replaces the signals that
    were asked for before taps were paired.
    """
    objective = objective_of(
        terms or terms_of(recipe.distill),
        pairs=paired.pairing.pairs if paired.pairing else (),
        student_widths=tuple(_width(tap) for tap in paired.taps),
        teacher_widths=tuple(_width(tap) for tap in taught.teacher.taps),
        seed=recipe.seed,
        projections=paired.projections,
        class_weights=class_weights(recipe, material),
    )
    return Distillation(
        network,
        objective,
        material.train,
        material.validation,
        signals=tokens.signals if tokens else taught.train,
        validation_decision=taught.validation_decision,
        taps=paired.taps,
        inside=tokens.student if tokens else Inside(),
        classes=material.outputs,
        decides=material.decides,
        views=material.views,
        batch=batch_for(recipe, material.train.count),
        seed=recipe.seed,
        examples=examples,
        metric=recipe.metric,
        forward=forward,
    )


def _width(tap: Tap) -> int:
    return int(pooled(torch.zeros(1, *tap.shape)).shape[1])
