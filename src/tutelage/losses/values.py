"""Losses for decisions that are one value: against the teacher's, the label, or a lens's.

Values are in units of the spread (standard deviation) of the training labels, about their mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tutelage.losses.base import Positive, loss


@loss(reads="decision", decides="values")
def squared_error(
    student: Float[Tensor, "batch 1"], teacher: Float[Tensor, "batch 1"]
) -> Float[Tensor, " batch"]:
    """Return the squared difference from the teacher's value, in squared spreads."""
    return (student - teacher).square()[:, 0]


@loss(reads="labels", decides="values")
def value_error(
    student: Float[Tensor, "batch 1"],
    labels: Float[Tensor, " batch"],
    *,
    delta: Positive = 1.0,
) -> Float[Tensor, " batch"]:
    """Return Huber's loss against the label: e^2/2 up to `delta` spreads, then linear (1964)."""
    return F.huber_loss(student[:, 0], labels, reduction="none", delta=delta)


@loss(reads="trajectory", decides="values")
def value_trajectory(
    student: Float[Tensor, "batch 1"], teacher: Float[Tensor, "batch 1"]
) -> Float[Tensor, " batch"]:
    """Return the squared difference of a student's branch from the paired teacher lens."""
    return (student - teacher).square()[:, 0]
