"""The objective: the weighted sum of losses on one batch of signals.

It alone masks, averages over examples and pairs, weights, and applies T^2. A loss that reads labels
is averaged over the examples that have one (a label of -1 is none), all else over all.

Automatic balance, for a term whose weight is None. Let v_i(k) be term i's value (averaged, T^2
included, not weighted) in training step k, and m_i the mean of |v_i| over steps 1..k, the present
one included. The reference r is the first term that reads the teacher's decision and whose weight
is not 0 (else the first whose weight is not 0); its own weight is the given one, or 1. Then

    w_i = share * w_r * clamp(m_r / m_i, 1e-4, 1e4)

so that the term weighs, on average, `share` times what the reference weighs. The mean stops growing
after `balance_steps` steps, and the weights are frozen from there. A step is a forward pass in
training mode; one with a value that is not finite, or with no example left for a loss, does not
count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import tutelage.losses.decision
import tutelage.losses.features
import tutelage.losses.tokens
import tutelage.losses.values  # noqa: F401 (all register their losses)
from tutelage.errors import RecipeError, TeacherError
from tutelage.losses.base import LOSSES, Loss, Reads
from tutelage.losses.cut import labelled_only, selected
from tutelage.losses.projectors import Pairs, Projections, check_pair, projectors
from tutelage.types import Decides, Reading

# What each kind of loss wants from the teacher (or the data), and from the student's taps.
_WANTS: dict[Reads, tuple[frozenset[str], frozenset[str]]] = {
    "labels": (frozenset({"labels"}), frozenset()),
    "decision": (frozenset({"decision"}), frozenset()),
    "labelled_decision": (frozenset({"decision", "labels"}), frozenset()),
    "trajectory": (frozenset({"trajectory"}), frozenset({"trajectory"})),
    "features": (frozenset({"features"}), frozenset({"features"})),
    "maps": (frozenset({"maps"}), frozenset({"maps"})),
    "states": (frozenset({"states"}), frozenset({"states"})),
    "scores": (frozenset({"scores"}), frozenset({"scores"})),
    "relations": (frozenset({"relations"}), frozenset({"relations"})),
    "branch_labels": (frozenset({"labels"}), frozenset({"trajectory"})),
    "branch_decision": (frozenset({"decision"}), frozenset({"trajectory"})),
}
_PAIRED = frozenset({"trajectory", "features", "maps", "states", "scores"})
INSIDE = frozenset({"states", "scores", "relations"})  # token by token
_LARGEST_RATIO = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One loss by name, its weight (None: balanced automatically) and its options.

    An `optional` one that compares taps is left out where none are paired.
    """

    name: str
    weight: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveValue:
    """The total to minimise, and each loss's value before weighting (T^2 included, detached).

    `total` = sum of weight * part.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """Weighted losses, with the projectors some of them need; these train but never ship.

    `pairs` are (student tap, teacher tap) indices. Projectors of features begin as `projections`,
    one a pair; without them, and those of token states, they are drawn term by term, pair by pair,
    from `seed` alone. `class_weights` weigh each example, by its class, in losses that read
    labels. Raises `RecipeError` on a wrong name, option, weight or pairing.
    """

    def __init__(
        self,
        terms: tuple[Term, ...],
        *,
        pairs: Pairs = (),
        student_widths: tuple[int, ...] = (),
        teacher_widths: tuple[int, ...] = (),
        projections: Projections = (),
        share: float = 1.0,
        balance_steps: int = 50,
        seed: int = 0,
        class_weights: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.terms = tuple(
            term
            for term in _checked_terms(terms)
            if pairs or not (term.optional and LOSSES[term.name].reads in _PAIRED)
        )
        self.losses = tuple(LOSSES[term.name] for term in self.terms)
        self.pairs = pairs
        self.share = share
        self.balance_steps = balance_steps
        self.class_weights = class_weights
        self.reference = _reference(self.terms, self.losses)
        for entry in self.losses:
            if entry.reads in _PAIRED:
                _check_pairs(entry.name, pairs)
        self.projectors = projectors(
            self.losses, pairs, student_widths, teacher_widths, projections, seed
        )
        given = [term.weight for term in self.terms]
        if given[self.reference] is None:
            given[self.reference] = 1.0
        self._reference_weight = float(given[self.reference] or 1.0)
        self.fixed: Tensor
        self.automatic: Tensor
        self.sums: Tensor
        self.steps: Tensor
        self._class_weights: Tensor
        fixed = torch.tensor([0.0 if weight is None else weight for weight in given])
        automatic = torch.tensor([weight is None for weight in given])
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("automatic", automatic, persistent=False)
        weights = torch.tensor(class_weights or ())
        self.register_buffer("_class_weights", weights, persistent=False)
        self.register_buffer("sums", torch.zeros(len(given)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def needs(self) -> frozenset[str]:
        """What must be at hand: `labels`, or fields of a teacher's reading."""
        return frozenset().union(*(_WANTS[entry.reads][0] for entry in self.losses))

    @property
    def student_needs(self) -> frozenset[str]:
        """What must be read of the student beside its decision: fields of a reading."""
        return frozenset().union(*(_WANTS[entry.reads][1] for entry in self.losses))

    @property
    def reads_pairs(self) -> bool:
        """Whether a loss compares paired taps."""
        return any(entry.reads in _PAIRED for entry in self.losses)

    def weights(self) -> dict[str, float]:
        """Return the weights in use, by loss name; a balanced one moves until it is frozen."""
        values = self._weights().tolist()
        return {term.name: value for term, value in zip(self.terms, values, strict=True)}

    def forward(
        self,
        student: Reading,
        teacher: Reading | None,
        labels: Int[Tensor, " batch"] | Float[Tensor, " batch"] | None,
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> ObjectiveValue:
        """Return the total over the examples where `mask` is true; 0 when there is none.

        `labels` is -1 for an example without one; on the CPU, asking which are costs no wait.
        Raises `RecipeError` when a loss lacks what it reads, `TeacherError` when student and
        teacher decide among different numbers of classes.
        """
        with torch.autocast(student.decision.device.type, enabled=False):
            for entry in self.losses:
                _check_given(entry, student, teacher, labels)
            if mask is not None:
                # Cut out, not zeroed: relations between examples must not see the masked ones.
                student = selected(student, mask)
                teacher = None if teacher is None else selected(teacher, mask)
                labels = None if labels is None else labels[mask.to(labels.device)]
            if student.decision.shape[0] == 0:
                zero = student.decision.float().sum()
                parts = {term.name: torch.zeros_like(zero).detach() for term in self.terms}
                return ObjectiveValue(total=zero, parts=parts)
            every, labelled = (student, teacher, labels), labelled_only(student, teacher, labels)
            read = [labelled if reads_labels(entry) else every for entry in self.losses]
            values = torch.stack([self._value(i, *given) for i, given in enumerate(read)])
            if all(len(given[0].decision) for given in read):
                self._observe(values.detach())
            total = (self._weights() * values).sum()
        parts = {t.name: v for t, v in zip(self.terms, values.detach(), strict=True)}
        return ObjectiveValue(total=total, parts=parts)

    def _value(
        self, i: int, student: Reading, teacher: Reading | None, labels: Tensor | None
    ) -> Tensor:
        """Return term i's mean over examples and pairs (or branches), times T^2; 0 without any."""
        if len(student.decision) == 0:
            return student.decision.float().sum()
        entry, options = self.losses[i], self.terms[i].options
        calls = _calls(entry, self.pairs, student, teacher, labels)
        if entry.projector:
            maps = self.projectors[entry.name]
            assert isinstance(maps, nn.ModuleList)
            calls = [(m(c[0].float()), *c[1:]) for m, c in zip(maps, calls, strict=True)]
        values = [entry(*call, **options) for call in calls]
        if self.class_weights is not None and "labels" in _WANTS[entry.reads][0]:
            assert labels is not None  # by _check_given
            values = [value * self._class_weights[labels] for value in values]
        value = torch.stack([value.mean() for value in values]).mean()
        return value * options["temperature"] ** 2 if entry.tempered else value

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        if not self.training:
            return
        # No branch on the values: reading one would make the accelerator wait.
        counts = values.isfinite().all() & (self.steps < self.balance_steps)
        self.sums += torch.where(counts, values.abs(), 0.0)
        self.steps += counts

    def _weights(self) -> Tensor:
        means = self.sums / self.steps.clamp(min=1)
        ratio = means[self.reference] / means.clamp(min=torch.finfo(means.dtype).tiny)
        ratio = ratio.clamp(1 / _LARGEST_RATIO, _LARGEST_RATIO)
        ratio = torch.where(self.steps > 0, ratio, 1.0)
        return torch.where(self.automatic, self.share * self._reference_weight * ratio, self.fixed)


def check_terms(
    terms: tuple[Term, ...], decides: Decides = "classes", *, labelled: bool = True
) -> None:
    """Raise `RecipeError` on a wrong name, option, weight or kind, before anything is built.

    So does a loss that reads labels, unless some examples are `labelled`.
    """
    checked = _checked_terms(terms)
    _reference(checked, tuple(LOSSES[term.name] for term in checked))
    for term in checked:
        if LOSSES[term.name].decides not in (decides, "both"):
            fitting = ", ".join(name for name in LOSSES if LOSSES[name].decides == decides)
            raise RecipeError(
                f"loss '{term.name}' is for {LOSSES[term.name].decides}, and the data's labels are "
                f"{decides}; use some of {fitting}"
            )
        if not labelled and reads_labels(LOSSES[term.name]):
            raise RecipeError(
                f"loss '{term.name}' reads labels, but the data has none: add labels, or use "
                "losses that ask the teacher alone (dist, kl)"
            )


def reads_labels(entry: Loss) -> bool:
    """Say whether a loss is called with labels."""
    return "labels" in _WANTS[entry.reads][0]


def _checked_terms(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    if not terms:
        raise RecipeError("the objective has no losses: name at least one, for instance dist")
    checked: dict[str, Term] = {}
    for term in terms:
        if term.name in checked:
            raise RecipeError(f"loss '{term.name}' is listed twice; keep one of them")
        options = LOSSES[term.name].checked(term.options)
        weight = term.weight
        if weight is not None and not (
            isinstance(weight, (int, float))
            and not isinstance(weight, bool)
            and math.isfinite(weight)
            and weight >= 0
        ):
            raise RecipeError(
                f"the weight of loss '{term.name}' is {weight!r}; give a finite number, 0 or more, "
                "or leave it out to have it balanced"
            )
        checked[term.name] = replace(term, options=options)
    return tuple(checked.values())


def _reference(terms: tuple[Term, ...], losses: tuple[Loss, ...]) -> int:
    heavy = [i for i, term in enumerate(terms) if term.weight != 0]
    if not heavy:
        raise RecipeError("every loss has the weight 0: give at least one a greater weight")
    decisions = [i for i in heavy if losses[i].reads in ("decision", "labelled_decision")]
    return decisions[0] if decisions else heavy[0]


def _check_pairs(name: str, pairs: Pairs) -> None:
    if not pairs:
        raise RecipeError(
            f"loss '{name}' compares paired taps, but no taps are paired: "
            "pair at least one student tap with a teacher tap, or remove the loss"
        )


def _check_given(
    entry: Loss, student: Reading, teacher: Reading | None, labels: Tensor | None
) -> None:
    """Raise unless everything the loss reads is there."""
    needs, student_needs = _WANTS[entry.reads]
    if "labels" in needs and labels is None:
        raise RecipeError(
            f"loss '{entry.name}' reads labels, but the data has none: "
            "add labels or remove the loss"
        )
    for what in sorted(needs - {"labels"}):
        if teacher is None:
            raise RecipeError(
                f"loss '{entry.name}' reads the teacher's {what}, but there is no teacher: "
                "name a teacher or remove the loss"
            )
        if len(getattr(teacher, what)) == 0:
            raise RecipeError(
                f"loss '{entry.name}' reads the teacher's {what}, but this teacher gives none: "
                "use a teacher whose taps can be read, or remove the loss"
            )
        if what == "decision" or what == "trajectory":
            _check_classes(student, teacher)
    for what in sorted(student_needs):
        if len(getattr(student, what)) == 0:
            raise RecipeError(
                f"loss '{entry.name}' reads the student's {what}, but this student gives none: "
                "give it taps that can be read, or remove the loss"
            )


def _check_classes(student: Reading, teacher: Reading) -> None:
    mine, theirs = student.decision.shape[1], teacher.decision.shape[1]
    if mine != theirs:
        raise TeacherError(
            f"the student decides among {mine} classes but the teacher among {theirs}: "
            "give the student the teacher's classes, in the same order"
        )


def _calls(
    entry: Loss, pairs: Pairs, student: Reading, teacher: Reading | None, labels: Tensor | None
) -> list[tuple[Tensor, ...]]:
    """Return the tensors of each call of the loss: one, or one a pair, or one a branch."""
    needs, _ = _WANTS[entry.reads]
    if entry.reads in INSIDE:
        assert teacher is not None
        return _token_calls(entry, student, teacher)
    if entry.reads in _PAIRED:
        assert teacher is not None
        mine, theirs = getattr(student, entry.reads), getattr(teacher, entry.reads)
        for pair in pairs:
            check_pair(entry.name, pair, len(mine), len(theirs))
        return [(mine[s], theirs[t]) for s, t in pairs if mine[s].numel()]
    targets: list[Tensor] = []
    if "decision" in needs:
        assert teacher is not None
        targets.append(teacher.decision)
    if "labels" in needs:
        assert labels is not None
        targets.append(labels)
    branched = entry.reads.startswith("branch_")
    outputs = student.trajectory if branched else (student.decision,)
    return [(output, *targets) for output in outputs if output.numel()]


def _token_calls(entry: Loss, student: Reading, teacher: Reading) -> list[tuple[Tensor, ...]]:
    calls = []
    pairs = zip(getattr(student, entry.reads), getattr(teacher, entry.reads), strict=True)
    for mine, theirs in pairs:
        if mine.shape[-2] != theirs.shape[-2]:
            raise TeacherError(
                f"loss '{entry.name}' compares token by token, and the student has "
                f"{mine.shape[-2]} tokens where the teacher has {theirs.shape[-2]}: use features "
                "or trajectory"
            )
        keep = student.keep
        if keep is None:
            keep = torch.ones(len(mine), mine.shape[-2], dtype=torch.bool, device=mine.device)
        calls.append((mine, theirs, keep))
    return calls
