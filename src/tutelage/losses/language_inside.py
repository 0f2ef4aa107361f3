"""Losses inside language models: what layers pass on, and how tokens relate to those before them.

Widths and numbers of heads need not agree, numbers of tokens must. Each returns one value a token;
a token relates to itself and to those before it, as in the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.losses.base import Count, Loss, Reads
from tutelage.losses.language_terms import INSIDE, LANGUAGE_LOSSES

_EPS = 1e-12


def _inside(reads: Reads) -> Callable[[Callable[..., Tensor]], Loss]:
    def register(function: Callable[..., Tensor]) -> Loss:
        name = getattr(function, "__name__", "")
        entry = Loss(name=name, function=function, reads=reads, projector=reads == "states")
        return LANGUAGE_LOSSES.add(name, entry)

    return register


@_inside("states")
def hidden(
    student: Float[Tensor, "tokens channels"],
    teacher: Float[Tensor, "tokens channels"],
    *,
    by: Literal["mse", "cosine"] = "mse",
) -> Float[Tensor, " tokens"]:
    """Return the squared distance over the teacher's square, or 1 - cos (TinyBERT, 1909.10351).

    Eq. 8 there, divided by what a student that says 0 would lose at the same token: a few tokens of
    a language model have states a thousand times as large as the others.
    """
    if by == "cosine":
        return 1 - torch.cosine_similarity(student, teacher, dim=-1, eps=_EPS)
    return (student - teacher).square().sum(-1) / (teacher.square().sum(-1) + _EPS)


@_inside("relations")
def relations(
    student: Float[Tensor, "*batch tokens channels"],
    teacher: Float[Tensor, "*batch tokens width"],
    *,
    heads: Count = 4,
) -> Float[Tensor, "*batch tokens"]:
    """Return KL between relations of queries, keys or values (MiniLMv2, 2012.15828, eq. 5-8).

    They are cut into `heads` relation heads; a token's relations are the softmax of its scaled
    products with itself and all before it. In nats, averaged over the heads.
    """
    log_s, log_t = (_log_relations(x, int(heads)) for x in (student, teacher))
    # What comes later has probability 0, and 0 log 0 is 0: the logarithms are finite.
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean(-2)


def _log_relations(values: Float[Tensor, "*b t c"], heads: int) -> Float[Tensor, "*b heads t t"]:
    width, count = values.shape[-1], values.shape[-2]
    if width % heads:
        fits = max(h for h in range(1, heads) if width % h == 0)
        raise RecipeError(
            f"loss 'relations': {heads} heads do not divide {width} numbers a token evenly; "
            f"write relations: {{heads: {fits}}}, or another divisor of all widths"
        )
    cut = values.unflatten(-1, (heads, width // heads)).transpose(-2, -3)
    products = cut @ cut.transpose(-1, -2) * (width // heads) ** -0.5
    later = torch.ones(count, count, dtype=torch.bool, device=values.device).triu(1)
    return products.masked_fill(later, torch.finfo(products.dtype).min / 4).log_softmax(-1)


def relations_by_sequence(
    student: Float[Tensor, "b t c"], teacher: Float[Tensor, "b t w"],
    counts: Float[Tensor, "b t"], **options: Any,
) -> Float[Tensor, ""]:  # fmt: skip
    """Return the sum over tokens of `counts` times the loss.

    One sequence at a time, its gradient found on the way: products of all tokens with all others
    exist once, whatever the batch.
    """
    return _BySequence.apply(student, teacher, counts, options)  # type: ignore[return-value]


class _BySequence(torch.autograd.Function):
    """The sum with its gradient found in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, counts: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """Compute the sum and what the backward pass will hand out."""
        learns = ctx.needs_input_grad[0]
        grad = torch.zeros_like(student) if learns else None
        total = student.new_zeros(())
        for row in range(len(student)):
            part = student[row].detach().requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                each = relations(part, teacher[row], **options)
                value = (each * counts[row]).sum()
            if grad is not None:
                (grad[row],) = torch.autograd.grad(value, part)
            total += value.detach()
        ctx.grad = grad
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradient out."""
        return None if ctx.grad is None else ctx.grad * slopes[0], None, None, None


def apart_inside(losses: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the losses of next tokens, and those inside the networks, with their weights."""
    inside = {n: w for n, w in losses.items() if LANGUAGE_LOSSES[n].reads in INSIDE}
    return {n: w for n, w in losses.items() if n not in inside}, inside
