"""The `@loss` decorator with its registry, and the losses that compare decisions.

A loss is one decorated pure function. Its name is the function's, its options are its keyword-only
arguments. It returns one value an example, `[batch]`, and never masks, averages, weights or applies
T^2: the objective alone does. A loss that relates the examples of a batch to one another (`rkd`,
`cka`, `srd`, the intra-class part of `dist`) also returns `[batch]`: each example's share times the
batch size, or the batch's one value repeated, so that the mean over the batch is the loss. One such
share may be negative; masked examples must be cut out before the call.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.registry import Registry, near_matches

Reads = Literal[
    "labels",  # student logits, labels
    "decision",  # student logits, teacher logits
    "labelled_decision",  # student logits, teacher logits, labels
    "trajectory",  # logits at one pair of taps
    "features",  # pooled features at one pair of taps
    "maps",  # energy maps at one pair of taps
    "branch_labels",  # logits of one student branch, labels
    "branch_decision",  # logits of one student branch, the teacher's final logits
]

Positive = Annotated[float, "greater than 0"]
Share = Annotated[float, "from 0 to 1"]
Size = Annotated[float, "0 or more"]
By = Literal["dist", "kl"]

_HOLDS: dict[str, Callable[[float], bool]] = {
    "greater than 0": lambda value: value > 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "0 or more": lambda value: value >= 0,
}

# Pearson's correlation fades to 0 for vectors whose centred square norm is below this.
_PEARSON_EPS = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One registered loss: its function, and what the objective must do around it.

    `reads` says what it is called with. `projector`: the student's features are first mapped
    linearly to the teacher's width. `tempered`: the objective multiplies by `temperature` squared.
    """

    name: str
    function: Callable[..., Tensor]
    reads: Reads
    projector: bool = False
    tempered: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Option names with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def checked(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return all options, defaults filled in; raises `RecipeError` on a wrong name or value."""
        options = self.options
        hints = get_type_hints(self.function, include_extras=True)
        for name, value in given.items():
            if not options:
                raise RecipeError(f"loss '{self.name}' takes no options; remove '{name}'")
            if name not in options:
                hint = near_matches(str(name), list(options))
                raise RecipeError(f"loss '{self.name}' has no option '{name}'. {hint}")
            options[name] = _checked_value(
                f"option '{name}' of loss '{self.name}'", value, hints[name]
            )
        return options

    def __call__(
        self, student: Tensor, *targets: Tensor, **options: Any
    ) -> Float[Tensor, " batch"]:
        """Return the loss of each example, in float32, with no gradient to the targets."""
        with torch.autocast(student.device.type, enabled=False):
            exact = [_exact(target.detach()) for target in targets]
            return self.function(_exact(student), *exact, **options)


LOSSES: Registry[Loss] = Registry("loss")


def loss(
    *, reads: Reads, projector: bool = False, tempered: bool = False
) -> Callable[[Callable[..., Tensor]], Loss]:
    """Register the decorated function as a loss under its own name.

    Raises `ValueError` when the name is taken, an option has no default, or a tempered loss has no
    `temperature`.
    """

    def register(function: Callable[..., Tensor]) -> Loss:
        name = getattr(function, "__name__", "")
        entry = Loss(
            name=name, function=function, reads=reads, projector=projector, tempered=tempered
        )
        missing = [key for key, value in entry.options.items() if value is inspect.Parameter.empty]
        if missing:
            raise ValueError(f"loss '{name}' has options without a default: {', '.join(missing)}")
        if tempered and "temperature" not in entry.options:
            raise ValueError(f"loss '{name}' is tempered but has no option 'temperature'")
        return LOSSES.add(name, entry)

    return register


def _checked_value(what: str, value: object, hint: Any) -> object:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            words = ", ".join(f"'{word}'" for word in get_args(hint))
            raise RecipeError(f"{what} is {value!r}; give one of {words}")
        return value
    rule = get_args(hint)[1] if get_origin(hint) is Annotated else "a finite number"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, (int, float)) or not number or not math.isfinite(value):
        raise RecipeError(f"{what} is {value!r}; give a finite number, {rule}")
    if rule in _HOLDS and not _HOLDS[rule](value):
        raise RecipeError(f"{what} is {value!r}; give a number {rule}")
    return float(value)


def _exact(values: Tensor) -> Tensor:
    """Widen half precision to float32; float64 and integers stay."""
    if not values.is_floating_point():
        return values
    return values.to(torch.promote_types(values.dtype, torch.float32))


@loss(reads="decision", tempered=True)
def kl(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    temperature: Positive = 4.0,
) -> Float[Tensor, " batch"]:
    """Return KL(teacher || student) of the tempered decisions, in nats (Hinton, 1503.02531)."""
    return _divergence(_log_softmax(student / temperature), _log_softmax(teacher / temperature))


@loss(reads="labelled_decision", tempered=True)
def dkd(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    alpha: Size = 1.0,
    beta: Size = 8.0,
    temperature: Positive = 4.0,
) -> Float[Tensor, " batch"]:
    """Return KL decoupled into the true class and the others (Zhao 2022, 2203.08679, eq. 7).

    `alpha` KL(true class against the rest) + `beta` KL(among the other classes), in nats.
    """
    binary_s, others_s = _decoupled(student / temperature, labels)
    binary_t, others_t = _decoupled(teacher / temperature, labels)
    return alpha * _divergence(binary_s, binary_t) + beta * _divergence(others_s, others_t)


@loss(reads="decision", tempered=True)
def dist(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    beta: Size = 1.0,
    gamma: Size = 1.0,
    temperature: Positive = 1.0,
) -> Float[Tensor, " batch"]:
    """Return the inter- and intra-class correlation loss, DIST (Huang 2022, 2205.10536, eq. 8-10).

    `beta` (1 - Pearson over the classes of an example) + `gamma` (1 - mean over classes of Pearson
    over the batch). The second is relational: each example returns its share times the batch size.
    A batch of one has no relations; its second part is 1, without a gradient.
    """
    p_s = (student / temperature).softmax(dim=1)
    p_t = (teacher / temperature).softmax(dim=1)
    inter = 1 - (_standard(p_s, dim=1) * _standard(p_t, dim=1)).sum(dim=1)
    shares = (_standard(p_s, dim=0) * _standard(p_t, dim=0)).mean(dim=1)
    intra = 1 - student.shape[0] * shares
    return beta * inter + gamma * intra


@loss(reads="decision", tempered=True)
def logit_standardised(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    temperature: Positive = 2.0,
) -> Float[Tensor, " batch"]:
    """Return KL between decisions of z-scored logits, in nats (Sun 2024, 2403.01427, alg. 1)."""
    z_s, z_t = _z_score(student), _z_score(teacher)
    return _divergence(_log_softmax(z_s / temperature), _log_softmax(z_t / temperature))


@loss(reads="labels")
def cross_entropy(
    student: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    label_smoothing: Share = 0.0,
) -> Float[Tensor, " batch"]:
    """Return the cross entropy against the labels, in nats, optionally smoothed."""
    return F.cross_entropy(student, labels, reduction="none", label_smoothing=label_smoothing)


@loss(reads="trajectory", tempered=True)
def trajectory(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    by: By = "dist",
    temperature: Positive = 1.0,
) -> Float[Tensor, " batch"]:
    """Return how far a student's branch departs from the paired teacher lens's decision."""
    return _compare(student, teacher, by, temperature)


@loss(reads="branch_labels")
def deep_supervision(
    student: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    label_smoothing: Share = 0.0,
) -> Float[Tensor, " batch"]:
    """Return the cross entropy of one branch: the control of `trajectory`, with no teacher."""
    return F.cross_entropy(student, labels, reduction="none", label_smoothing=label_smoothing)


@loss(reads="branch_decision", tempered=True)
def decision_everywhere(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    by: By = "dist",
    temperature: Positive = 1.0,
) -> Float[Tensor, " batch"]:
    """Return how far one branch departs from the teacher's final decision."""
    return _compare(student, teacher, by, temperature)


def _compare(student: Tensor, teacher: Tensor, by: By, temperature: float) -> Tensor:
    if by not in get_args(By):
        raise RecipeError(f"option 'by' is {by!r}; give one of 'dist', 'kl'")
    chosen = dist if by == "dist" else kl
    return chosen.function(student, teacher, temperature=temperature)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=1)


def _divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(t || s) over the class axis; log-probabilities are finite, so 0 log 0 is 0."""
    return (log_t.exp() * (log_t - log_s)).sum(dim=1)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log [p(true), p(rest)], and the log-distribution among the other classes."""
    classes = logits.shape[1]
    log_p = _log_softmax(logits)
    # The other classes in cyclic order: the same columns for student and teacher, none masked.
    offsets = torch.arange(1, classes, device=labels.device)
    others = (labels[:, None] + offsets) % classes
    log_rest = log_p.gather(1, others).logsumexp(dim=1)
    log_true = log_p.gather(1, labels[:, None])[:, 0]
    return torch.stack([log_true, log_rest], dim=1), _log_softmax(logits.gather(1, others))


def _standard(values: Tensor, dim: int) -> Tensor:
    """Centre and scale to unit norm along `dim`; the product of two then sums to Pearson's r."""
    centred = values - values.mean(dim=dim, keepdim=True)
    return centred * (centred.square().sum(dim=dim, keepdim=True) + _PEARSON_EPS).rsqrt()


def _z_score(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1)
    return centred * (variance + 1e-12).rsqrt()
