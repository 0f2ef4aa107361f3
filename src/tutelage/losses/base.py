"""The `@loss` decorator with its registry: how a loss is written, checked and called.

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
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.registry import Registry, near_matches
from tutelage.types import Decides

Reads = Literal[
    "labels",  # student logits, labels
    "decision",  # student logits, teacher logits
    "labelled_decision",  # student logits, teacher logits, labels
    "trajectory",  # logits at one pair of taps
    "features",  # pooled features at one pair of taps
    "maps",  # energy maps at one pair of taps
    "states",  # token states at one pair of taps, which tokens count
    "scores",  # attention scores inside one pair of taps, which tokens count
    "relations",  # queries, keys and values of both last layers, which tokens count
    "spans",  # log-probabilities of outcomes of spans of text, in tokens of two kinds
    "branch_labels",  # logits of one student branch, labels
    "branch_decision",  # logits of one student branch, the teacher's final logits
]

Positive = Annotated[float, "greater than 0"]
Share = Annotated[float, "from 0 to 1"]
Size = Annotated[float, "0 or more"]
Count = Annotated[float, "that is whole, 1 or more"]

_HOLDS: dict[str, Callable[[float], bool]] = {
    "greater than 0": lambda value: value > 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "0 or more": lambda value: value >= 0,
    "that is whole, 1 or more": lambda value: value >= 1 and value == int(value),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One registered loss: its function, and what the objective must do around it.

    `reads` says what it is called with. `projector`: the student's features are first mapped
    linearly to the teacher's width. `tempered`: the objective multiplies by `temperature` squared.
    `decides`: which kind of decision it is for.
    """

    name: str
    function: Callable[..., Tensor]
    reads: Reads
    projector: bool = False
    tempered: bool = False
    decides: Decides | Literal["both"] = "classes"

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
    *, reads: Reads, projector: bool = False, tempered: bool = False,
    decides: Decides | Literal["both"] = "classes",
) -> Callable[[Callable[..., Tensor]], Loss]:  # fmt: skip
    """Register the decorated function as a loss under its own name.

    Raises `ValueError` when the name is taken, an option has no default, or a tempered loss has no
    `temperature`.
    """

    def register(function: Callable[..., Tensor]) -> Loss:
        name = getattr(function, "__name__", "")
        entry = Loss(
            name=name, function=function, reads=reads, projector=projector, tempered=tempered,
            decides=decides,
        )  # fmt: skip
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
