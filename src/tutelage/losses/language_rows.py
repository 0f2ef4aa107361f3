"""The losses of a few rows of logits with their gradient, in as few passes over them as can be.

Where the teacher names some outcomes (or none), a loss hangs on the logits of these, on that of the
token that came, and on one sum over all the rest: the derivative by the rest is their softmax times
that of the sum. So the logits are exponentiated once, in place, and the losses themselves are
computed on the few. Where the teacher speaks of every token they are computed on all (`terms`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.losses.language_terms import LanguageTerms
from tutelage.losses.sparse import NOTHING, SparseDecision

Sums = tuple[Tensor, list[Tensor]]


def with_slopes(
    logits: Tensor, teacher: SparseDecision | None, targets: Tensor, terms: LanguageTerms
) -> Sums:
    """Return the weighted sum over the rows and each loss's own; logits become their gradient."""
    if terms.cap is not None or (teacher is not None and teacher.ids is None):
        block = logits.detach().requires_grad_()
        with torch.enable_grad():
            total, parts = terms.value(block, teacher, targets)
        (slope,) = torch.autograd.grad(total, block)
        logits.copy_(slope)
        return total.detach(), parts
    ids = logits.new_empty((len(logits), 0), dtype=torch.int64)
    if teacher is not None and any(loss.tempered for loss in terms.losses):
        assert teacher.ids is not None
        ids = teacher.ids.long()
    drawn = teacher is not None and teacher.drawn
    listed, said = logits.gather(1, ids), logits.gather(1, targets[:, None])
    if not drawn:
        logits.scatter_(1, ids, -torch.inf)
    top = logits.amax(dim=1, keepdim=True)
    top = top.clamp(min=NOTHING)  # of a row whose every token is listed
    sums = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
    rest = sums.log() + top
    few = [x.detach().requires_grad_() for x in (listed, said, rest)]
    with torch.enable_grad():
        total, parts = terms.of_few(few[0], few[1], few[2], teacher)
    slopes = torch.autograd.grad(total, few, allow_unused=True)
    of_listed, of_said, of_rest = (
        torch.zeros_like(x) if s is None else s for x, s in zip(few, slopes, strict=True)
    )
    logits.mul_(of_rest / sums.clamp(min=torch.finfo(sums.dtype).tiny))
    logits.scatter_add_(1, ids, of_listed)
    logits.scatter_add_(1, targets[:, None], of_said)
    return total.detach(), parts
