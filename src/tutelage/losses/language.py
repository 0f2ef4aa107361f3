"""Losses of language models from hidden states and the head, so that a batch's logits never exist.

Logits of 1,024 tokens over 49,152 words are 200 MB, and a plain loss keeps three or more of their
size. Here tokens are taken some at a time: logits of a chunk, the losses and their derivative, the
gradients of states and head, and the next chunk in the same place. All is done in the forward pass
(as in Liger's fused linear cross entropy, 2410.10989), so nothing is computed twice; the backward
pass only scales. The vocabulary is not cut: its softmax would cost another product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.losses.language_rows import with_slopes
from tutelage.losses.language_terms import LanguageTerms, check_teacher, language_terms
from tutelage.losses.sparse import SparseDecision

# Bytes of a chunk's logits (one product with the head), and of a block's, which are few enough to
# stay in the processor's cache while the losses pass over them. A GPU wants fewer, larger kernels.
_CHUNK_BYTES = {"cpu": 15 << 20, "cuda": 1 << 28}
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}
_NO_OPTIONS: Mapping[str, Mapping[str, float]] = {}


def language_loss(
    states: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocabulary width"],
    teacher: SparseDecision | None,
    targets: Int[Tensor, " tokens"],
    *,
    losses: Mapping[str, float],
    temperature: float = 1.0,
    options: Mapping[str, Mapping[str, float]] = _NO_OPTIONS,
    cap: float | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the weighted mean over the tokens, in nats, and each loss's own mean, detached.

    `losses` are weights by name, `options` their options by name. What compares decisions is
    tempered and multiplied by T^2. `chunk` is how many tokens are taken at a time; by their bytes
    when unset. `cap` is that of the network's logits, where it has one. Sums are in float32;
    products with the head are in autocast's type where that is on. No token is 0. Raises
    `RecipeError` on a wrong loss or option or one that the teacher's signals cannot give,
    `TeacherError` where they are about other tokens.
    """
    terms = language_terms(losses, options, temperature, cap)
    check_teacher(terms, teacher)
    _check_shapes(states, head, teacher, targets)
    if not len(states):
        nothing = (states.sum() + head[:0].sum()) * 0.0
        return nothing, dict.fromkeys(losses, nothing.detach())
    learns = torch.is_grad_enabled() and (states.requires_grad or head.requires_grad)
    given = (terms, teacher, targets, chunk)
    if learns:
        total, *parts = _Chunked.apply(states, head, *given)
    else:
        total, parts, *_ = _walk(states, head, *given, wanted=(False, False))
    return total, dict(zip(losses, parts, strict=True))


class _Chunked(torch.autograd.Function):
    """The loss with its gradients found in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: Tensor, head: Tensor, *given: Any
    ) -> tuple[Tensor, ...]:
        """Compute the loss, its parts, and what the backward pass will hand out."""
        total, parts, *grads = _walk(states, head, *given, wanted=ctx.needs_input_grad[:2])
        ctx.grads = grads
        ctx.mark_non_differentiable(*parts)
        return total, *parts

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradients out, scaled in place: no second copy of the head's is made."""
        if ctx.grads is None:
            raise RuntimeError("the gradients of language_loss were handed out already")
        grads, ctx.grads = ctx.grads, None
        scaled = [None if grad is None else grad.mul_(slopes[0]) for grad in grads]
        return (*scaled, None, None, None, None)


def _walk(
    states: Tensor, head: Tensor, terms: LanguageTerms, teacher: SparseDecision | None,
    targets: Tensor, chunk: int | None, *, wanted: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None]:  # fmt: skip
    """Return the mean, each loss's own, and the gradients of states and head where wanted."""
    kind, computes = states.device.type, _computes_in(states, head)
    with torch.autocast(kind, enabled=False), torch.no_grad():
        matrix, wide = head.to(computes), torch.promote_types(computes, torch.float32)
        grad_states = torch.empty_like(states) if wanted[0] else None
        grad_head = torch.zeros_like(head, dtype=wide) if wanted[1] else None
        sums = torch.zeros(1 + len(terms.losses), dtype=wide, device=states.device)
        row_bytes = len(head) * wide.itemsize
        rows = min(chunk or _rows(_CHUNK_BYTES, kind, row_bytes), len(states))
        place = states.new_empty((rows, head.shape[0]), dtype=wide)
        for first in range(0, len(states), rows):
            last = min(first + rows, len(states))
            part = states[first:last].to(computes)
            logits = place[: last - first]
            _product(part, matrix.T, logits)
            said = None if teacher is None else teacher.rows(first, last)
            sums += _blocks(logits, said, targets[first:last], terms, any(wanted), len(states))
            slopes = logits.to(computes)
            if grad_states is not None:
                grad_states[first:last] = slopes @ matrix
            if grad_head is not None:
                _add_product(grad_head, slopes.T, part)
        if grad_head is not None:
            grad_head = grad_head.to(head.dtype)
        return sums[0], list(sums[1:].clone()), grad_states, grad_head


def _blocks(
    logits: Tensor, teacher: SparseDecision | None, targets: Tensor, terms: LanguageTerms,
    learns: bool, count: int,
) -> Tensor:  # fmt: skip
    """Return the sums over `count` tokens; where it `learns`, logits become their own gradient."""
    found = logits.new_zeros(1 + len(terms.losses))
    row_bytes = logits.shape[1] * logits.element_size()
    rows = _rows(_BLOCK_BYTES, logits.device.type, row_bytes)
    for first in range(0, len(logits), rows):
        last = min(first + rows, len(logits))
        said = None if teacher is None else teacher.rows(first, last)
        find = with_slopes if learns else _valued
        total, parts = find(logits[first:last], said, targets[first:last].long(), terms)
        found += torch.stack([total, *parts]) / count
    if learns:
        logits /= count
    return found


def _valued(
    logits: Tensor, teacher: SparseDecision | None, targets: Tensor, terms: LanguageTerms
) -> tuple[Tensor, list[Tensor]]:
    return terms.value(logits, teacher, targets)


def _product(left: Tensor, right: Tensor, place: Tensor) -> None:
    if place.dtype == left.dtype:
        torch.mm(left, right, out=place)
    else:
        place.copy_(left @ right)


def _add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    if target.dtype == left.dtype:
        target.addmm_(left, right)
    else:
        target += left @ right


def _computes_in(states: Tensor, head: Tensor) -> torch.dtype:
    """Return the type of the products: autocast's where it is on, else that of what is given."""
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(states.dtype, head.dtype)


def _rows(limits: Mapping[str, int], kind: str, row_bytes: int) -> int:
    return max(1, limits.get(kind, limits["cuda"]) // row_bytes)


def _check_shapes(
    states: Tensor, head: Tensor, teacher: SparseDecision | None, targets: Tensor
) -> None:
    if states.shape[1] != head.shape[1] or len(targets) != len(states):
        raise ValueError(
            f"states {tuple(states.shape)}, head {tuple(head.shape)} and {len(targets)} targets "
            "do not belong together"
        )
    if teacher is None:
        return
    if len(teacher) != len(states):
        raise TeacherError(
            f"the teacher speaks of {len(teacher)} tokens and the student of {len(states)}; "
            "fill the signals from the same tokens"
        )
    if teacher.ids is None and teacher.log_probs.shape[1] != head.shape[0]:
        raise TeacherError(
            f"the teacher decides among {teacher.log_probs.shape[1]:,} tokens and the student "
            f"among {head.shape[0]:,}; both must share one tokenizer, or the teacher be asked "
            "about the student's vocabulary"
        )
