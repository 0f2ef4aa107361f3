"""Losses of spans of text that two tokenizers write differently, some spans at a time.

A span's outcomes are those of its last token, times the probability of the tokens before it in the
span: the chain rule, so that the outcome that came has the probability of the whole span. (Taking
the first token's outcomes instead is wrong for all others: huggingface/trl#5152.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.losses.base import Loss
from tutelage.losses.language_terms import LANGUAGE_LOSSES, capped

_CHUNK_BYTES = {"cpu": 15 << 20, "cuda": 1 << 28}  # of a chunk's logits, of both sides together


def uld(
    student: Float[Tensor, "spans outcomes"], teacher: Float[Tensor, "spans others"]
) -> Float[Tensor, " spans"]:
    """Return sum |p_(i) - q_(i)| over probabilities sorted downwards (ULD, 2402.12030, eq. 5).

    That is the least cost of moving one onto the other where all tokens are equally far apart, so
    it needs no common token; nor does it say which one is meant, which the text says. The fewer
    outcomes are filled up with 0.
    """
    most = max(student.shape[1], teacher.shape[1])
    q, p = (
        F.pad(x.exp().sort(dim=1, descending=True).values, (0, most - x.shape[1]))
        for x in (student, teacher)
    )
    return (p - q).abs().sum(dim=1)


ULD = LANGUAGE_LOSSES.add("uld", Loss(name="uld", function=uld, reads="spans"))


def apart_spans(weights: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the weights of losses of single tokens, and those of losses of spans."""
    spans = {name: w for name, w in weights.items() if LANGUAGE_LOSSES[name].reads == "spans"}
    return {name: w for name, w in weights.items() if name not in spans}, spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What one network says of the spans' tokens, span by span: states before each, and the head.

    `lengths` are the tokens of each span; `cap` is that of the logits, where there is one.
    """

    states: Float[Tensor, "tokens width"]
    head: Float[Tensor, "vocabulary width"]
    targets: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " spans"]
    cap: float | None = None

    def part(self, first: int, last: int) -> Voice:
        """Return the part about spans `first` to `last`."""
        start, stop = (int(self.lengths[:number].sum()) for number in (first, last))
        return Voice(
            states=self.states[start:stop], head=self.head, targets=self.targets[start:stop],
            lengths=self.lengths[first:last], cap=self.cap,
        )  # fmt: skip

    def outcomes(self) -> Float[Tensor, "spans vocabulary"]:
        """Return log-probabilities of the spans' outcomes."""
        log_p, own, said = self._said()
        last = self.lengths.cumsum(0) - 1
        return log_p[last] + (said - own[last])[:, None]

    def told(self) -> Float[Tensor, " spans"]:
        """Return the log-probability of each span's own text."""
        return self._said()[2]

    def _said(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities a token: of all, of the one that came, and its sum a span."""
        logits = self.states @ self.head.T
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_p = capped(exact, self.cap).log_softmax(dim=1)
        own = log_p.gather(1, self.targets[:, None])[:, 0]
        span = torch.repeat_interleave(self.lengths)
        return log_p, own, own.new_zeros(len(self.lengths)).index_add(0, span, own)


def spans_loss(student: Voice, teacher: Voice, chunk: int | None = None) -> Float[Tensor, ""]:
    """Return the sum of `uld` over the spans, in float32, with no gradient to the teacher.

    `chunk` is how many spans are taken at a time; by their bytes when unset. The gradient is found
    on the way, so that logits of all spans never exist at once.
    """
    if not len(student.lengths):
        return (student.states.sum() + student.head[:0].sum()) * 0.0
    return _Spans.apply(student.states, student.head, student, teacher, chunk)  # type: ignore[return-value]


class _Spans(torch.autograd.Function):
    """The sum with its gradient found in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, student: Voice, teacher: Voice, chunk: int | None
    ) -> Tensor:
        """Compute the sum and what the backward pass will hand out."""
        learns = any(ctx.needs_input_grad[:2])
        found = states.new_zeros((), dtype=torch.promote_types(states.dtype, torch.float32))
        grads = (torch.zeros_like(states), torch.zeros_like(head)) if learns else None
        seen, count = 0, len(student.lengths)
        step = chunk or _spans_at_once(student, teacher)
        for first in range(0, count, step):
            last = min(first + step, count)
            said, mine = teacher.part(first, last).outcomes(), student.part(first, last)
            given = [x.detach().requires_grad_(learns) for x in (mine.states, head)]
            with torch.set_grad_enabled(learns):
                own = Voice(
                    states=given[0], head=given[1], targets=mine.targets, lengths=mine.lengths,
                    cap=mine.cap,
                )  # fmt: skip
                value = uld(own.outcomes(), said).sum()
            if grads is not None:
                slopes = torch.autograd.grad(value, given)
                grads[0][seen : seen + len(mine.states)] = slopes[0]
                grads[1].add_(slopes[1])
            seen += len(mine.states)
            found += value.detach()
        ctx.grads = grads
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradients out, scaled in place."""
        grads, ctx.grads = ctx.grads or (None, None), None
        return (*(None if g is None else g.mul_(slopes[0]) for g in grads), None, None, None)


def _spans_at_once(student: Voice, teacher: Voice) -> int:
    kind = student.states.device.type
    rows = [4 * len(v.head) * len(v.states) / len(v.lengths) for v in (student, teacher)]
    return max(1, int(_CHUNK_BYTES.get(kind, _CHUNK_BYTES["cuda"]) / sum(rows)))
