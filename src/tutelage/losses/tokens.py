"""Losses that look inside transformers: token states, attention scores, relations among tokens.

`keep` is true for the tokens that count; the others are left out of every sum and every softmax.
Widths and numbers of heads need not agree, numbers of tokens must. Each returns one value an
example, so that long texts weigh no more than short ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.losses.base import Count, loss

_EPS = 1e-12


@loss(reads="states", projector=True)
def hidden(
    student: Float[Tensor, "batch tokens channels"],
    teacher: Float[Tensor, "batch tokens channels"],
    keep: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """Return the squared distance of token states over the teacher's square (after TinyBERT).

    Eq. 8 of Jiao 2020, 1909.10351, divided by what a student that says 0 would lose: the scale of
    the teacher's states, which differs a hundredfold among encoders, does not count.
    """
    counts = keep[:, :, None]
    away = torch.where(counts, student - teacher, 0.0).square().sum(dim=(1, 2))
    return away / (torch.where(counts, teacher, 0.0).square().sum(dim=(1, 2)) + _EPS)


@loss(reads="scores")
def attention_scores(
    student: Float[Tensor, "batch tokens tokens"],
    teacher: Float[Tensor, "batch tokens tokens"],
    keep: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """Return the mean squared distance of attention scores (TinyBERT, 1909.10351, eq. 7).

    Scores are those before the softmax, averaged over the heads. Each row is centred first: the
    softmax does not see what is added to a whole row.
    """
    both = keep[:, :, None] & keep[:, None, :]
    away = torch.where(both, student - teacher, 0.0)
    per_row = keep.sum(dim=1).clamp(min=1)[:, None, None]
    away = torch.where(both, away - away.sum(dim=2, keepdim=True) / per_row, 0.0)
    return away.square().sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp(min=1)


@loss(reads="relations")
def relations(
    student: Float[Tensor, "batch 3 tokens channels"],
    teacher: Float[Tensor, "batch 3 tokens width"],
    keep: Bool[Tensor, "batch tokens"],
    *,
    heads: Count = 4,
) -> Float[Tensor, " batch"]:
    """Return KL between the relations of queries, keys and values (MiniLMv2, 2012.15828, eq. 5-8).

    The three are cut into `heads` relation heads each; relations are the softmax of their scaled
    products among tokens. In nats, averaged over the three, the heads and the tokens.
    """
    log_s, log_t = (_log_relations(x, keep, int(heads)) for x in (student, teacher))
    both = (keep[:, :, None] & keep[:, None, :])[:, None, None]
    # A pad has probability 0, and 0 log 0 is 0: both its terms are left out.
    each = torch.where(both, log_t.exp() * (log_t - log_s), 0.0).sum(dim=(1, 2, 3, 4))
    return each / (3 * int(heads) * keep.sum(dim=1).clamp(min=1))


def _log_relations(
    values: Float[Tensor, "b 3 t c"], keep: Bool[Tensor, "b t"], heads: int
) -> Float[Tensor, "b 3 heads t t"]:
    width = values.shape[3]
    if width % heads:
        fits = max(h for h in range(1, heads) if width % h == 0)
        raise RecipeError(
            f"loss 'relations': {heads} heads do not divide {width} numbers a token evenly; "
            f"write relations: {{heads: {fits}}}, or another divisor of both widths"
        )
    cut = values.unflatten(3, (heads, width // heads)).transpose(2, 3)
    products = cut @ cut.transpose(3, 4) * (width // heads) ** -0.5
    lowest = torch.finfo(products.dtype).min / 4
    return products.masked_fill(~keep[:, None, None, None, :], lowest).log_softmax(dim=4)
