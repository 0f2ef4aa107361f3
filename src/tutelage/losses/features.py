"""Losses that compare what taps read: regression, relations between examples, attention.

The convention for relational losses stands in `base.py`: `[batch]` values whose mean is the
loss. Losses marked `projector` are called with the student's features already mapped to the
teacher's width; the others take any two widths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tutelage.losses.base import Positive, Size, loss

_EPS = 1e-12
_BATCH_NORM_EPS = 1e-4  # as the authors of SRD set it


@loss(reads="features", projector=True, decides="both")
def features(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, " batch"]:
    """Return the squared distance over the teacher's variance in the batch (FitNets, 1412.6550).

    Mean over channels of both: who says the batch's mean for every example loses 1 on average. A
    teacher that does not vary teaches nothing.
    """
    spread = (teacher - teacher.mean(dim=0)).square().mean()
    away = (student - teacher).square().mean(dim=1)
    return torch.where(spread > _EPS, away / spread.clamp(min=_EPS), 0.0 * away)


@loss(reads="features", projector=True, decides="both")
def srd(
    student: Float[Tensor, "batch channels"],
    teacher: Float[Tensor, "batch channels"],
    *,
    alpha: Positive = 4.0,
) -> Float[Tensor, " batch"]:
    """Return log(1 + sum |bn(student) - bn(teacher)|^alpha), SRD (Miles 2024, 2303.11098).

    The sum runs over batch and channels, and the one value is repeated for every example. The 1 is
    ours: it keeps the value finite and at least 0, and is lost beside a sum of any real batch.
    """
    total = (_batch_norm(student) - _batch_norm(teacher)).abs().pow(alpha).sum()
    return total.log1p().expand(student.shape[0])


@loss(reads="maps", decides="both")
def attention(
    student: Float[Tensor, "batch height width"], teacher: Float[Tensor, "batch rows columns"]
) -> Float[Tensor, " batch"]:
    """Return the squared distance of unit-norm energy maps (Zagoruyko 2017, 1612.03928, eq. 2).

    Maps of different sizes are averaged down to the smaller height and width.
    """
    size = (min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2]))
    flat_s, flat_t = (
        F.adaptive_avg_pool2d(maps[:, None], size).flatten(1) for maps in (student, teacher)
    )
    return (_unit(flat_s) - _unit(flat_t)).square().sum(dim=1)


@loss(reads="features", decides="both")
def rkd(
    student: Float[Tensor, "batch channels"],
    teacher: Float[Tensor, "batch width"],
    *,
    distance: Size = 1.0,
    angle: Size = 2.0,
) -> Float[Tensor, " batch"]:
    """Return relational distillation, Huber over pairs and triples (Park 2019, 1904.05068).

    `distance` weighs pairwise distances over their mean, `angle` the cosine at every example
    between every two others. Memory grows with batch^3 unless `angle` is 0.
    """
    away_s, length_s = _differences(student)
    away_t, length_t = _differences(teacher)
    scaled_s, scaled_t = _over_mean(length_s), _over_mean(length_t)
    value = distance * F.smooth_l1_loss(scaled_s, scaled_t, reduction="none").mean(dim=1)
    if angle == 0:
        return value
    cosine_s, cosine_t = _cosines(away_s, length_s), _cosines(away_t, length_t)
    return value + angle * F.smooth_l1_loss(cosine_s, cosine_t, reduction="none").mean(dim=(1, 2))


@loss(reads="features", decides="both")
def cka(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch width"]
) -> Float[Tensor, " batch"]:
    """Return 1 - linear CKA over the batch (Kornblith 2019, 1905.00414, eq. 3-5).

    Each example returns its row's share times the batch size. A batch that does not vary has no
    similarity; its loss is 1, without a gradient.
    """
    similarity = (_centred_gram(student) * _centred_gram(teacher)).sum(dim=1)
    return 1 - student.shape[0] * similarity


def _unit(values: Tensor) -> Tensor:
    return values * (values.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()


def _batch_norm(values: Tensor) -> Tensor:
    """Standardise each channel over the batch, by the batch's own statistics."""
    centred = values - values.mean(dim=0)
    return centred * (centred.square().mean(dim=0) + _BATCH_NORM_EPS).rsqrt()


def _differences(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[i, j]` = x_j - x_i and its length; the length of nothing is tiny, not 0."""
    away = values[None, :] - values[:, None]
    # clamp before sqrt: at 0 the root's gradient is infinite, below the clamp it is 0.
    return away, away.square().sum(dim=2).clamp(min=_EPS).sqrt()


def _over_mean(lengths: Tensor) -> Tensor:
    batch = lengths.shape[0]
    others = lengths * (1 - torch.eye(batch, dtype=lengths.dtype, device=lengths.device))
    return others * max(batch * (batch - 1), 1) / (others.sum() + _EPS)


def _cosines(away: Tensor, lengths: Tensor) -> Tensor:
    directions = away / lengths[..., None]
    return directions @ directions.transpose(1, 2)


def _centred_gram(values: Tensor) -> Tensor:
    """Return K = X X^T of centred features, scaled to unit Frobenius norm."""
    centred = values - values.mean(dim=0)
    # One scale for the batch: CKA does not see it, and the squares below stay in range.
    centred = centred / (centred.detach().abs().max() + _EPS)
    gram = centred @ centred.T
    return gram / (torch.linalg.vector_norm(gram) + _EPS)
