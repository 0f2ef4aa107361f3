"""Confidence: logits are scaled so that the student is as sure as its teacher is.

Losses that compare decisions by correlation or by rank (`dist`, `logit_standardised`) leave the
scale of the logits free. One number, fitted on validation and multiplied into the last layer, sets
it and changes no decision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.passes import Forward, Inputs, call, first_tensor

_LARGEST = 1e3
_CLOSE = 1e-3  # of the largest logit: rounding is far below, another layer's doing far above


def fit_scale(student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"]) -> float:
    """Return the scale s of the student's logits that is nearest to the teacher's probabilities.

    Minimises the mean of KL(softmax(teacher) || softmax(s student)), convex in s, over 1e-3 to 1e3:
    temperature scaling (Guo et al. 2017, section 4.2) with the teacher's decision in the place of
    the label. 1 where a logit is not finite.
    """
    from scipy.optimize import minimize_scalar

    logits, wanted = student.double(), teacher.double().softmax(1)
    if not bool(torch.isfinite(logits).all() & torch.isfinite(wanted).all()):
        return 1.0

    def divergence(power: float) -> float:
        said = (math.exp(power) * logits).log_softmax(1)
        return float(-(wanted * said).sum(1).mean())

    bound = math.log(_LARGEST)
    found = minimize_scalar(divergence, bounds=(-bound, bound), method="bounded")
    return math.exp(float(found.x))


@torch.no_grad()
def scale_logits(
    network: nn.Module, scale: float, example: Inputs, forward: Forward = call
) -> bool:
    """Multiply the network's last linear layer by `scale`, in place; say whether that could be.

    It cannot where something other than a linear layer makes the logits: then nothing is changed.
    """
    ran: list[Any] = []
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [m.register_forward_hook(lambda module, *_: ran.append(module)) for m in linear]
    try:
        before = _logits(network, example, forward)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        return False
    head = [p for p in (ran[-1].weight, ran[-1].bias) if p is not None]
    kept = [p.clone() for p in head]
    for parameter in head:
        parameter.mul_(scale)
    wanted = scale * before
    if bool(
        (_logits(network, example, forward) - wanted).abs().max() <= _CLOSE * wanted.abs().max()
    ):
        return True
    for parameter, old in zip(head, kept, strict=True):
        parameter.copy_(old)
    return False


def _logits(network: nn.Module, example: Inputs, forward: Forward) -> Tensor:
    found = first_tensor(forward(network, example))
    assert found is not None
    return found.float()
