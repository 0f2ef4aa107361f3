"""Losses that compare decisions: with the teacher's, with labels, at the end or at branches."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.losses.base import Positive, Share, Size, loss

By = Literal["dist", "kl"]

# Pearson's correlation fades to 0 for vectors whose centred square norm is below this.
_PEARSON_EPS = 1e-8


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
