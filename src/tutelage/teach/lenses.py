"""Lenses: linear heads that turn what a teacher's tap reads into a decision, or a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.least_squares import affine_fit
from tutelage.tasks.values import score

_MOST_EXAMPLES = 20_000
_DECAY = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """One linear head; `agreement` is how often it decides as the teacher's end does.

    Of values, `agreement` is R2 with the teacher's own value as the truth.
    """

    weight: Float[Tensor, "classes channels"]
    bias: Float[Tensor, " classes"]
    agreement: float

    def __call__(self, features: Float[Tensor, "b channels"]) -> Float[Tensor, "b classes"]:
        """Return the decision at this tap."""
        return features.float() @ self.weight.T + self.bias


def fit_lens(
    features: Float[Tensor, "n channels"],
    decision: Float[Tensor, "n classes"],
    held_out: tuple[Tensor, Tensor],
) -> Lens:
    """Fit one lens to the teacher's own final decision by KL, with L-BFGS on all examples at once.

    `held_out` is (features, decision) of examples not fitted on, for the agreement. The fit is
    deterministic; features are standardised for it and the scaling is folded into the weights. A
    decision of one column is a value, and is fitted by least squares.
    """
    x, target = features[:_MOST_EXAMPLES].float(), decision[:_MOST_EXAMPLES].float()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / scale
    if target.shape[1] == 1:
        weight, bias = affine_fit(x, target, _DECAY)
    else:
        weight, bias = _by_kl(x, target)
    folded = weight / scale
    lens = Lens(weight=folded, bias=bias - folded @ mean, agreement=0.0)
    return replace(lens, agreement=_agreement(lens(held_out[0]), held_out[1]))


def _agreement(said: Tensor, wanted: Tensor) -> float:
    if wanted.shape[1] == 1:
        return score(said[:, 0], wanted[:, 0], "values")
    return float((said.argmax(-1) == wanted.argmax(-1)).float().mean())


def _by_kl(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    wanted = target.softmax(-1)
    weight = torch.zeros(target.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(target.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=80, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        logits = x @ weight.T + bias
        loss = -(wanted * logits.log_softmax(-1)).sum(-1).mean() + _DECAY * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def fit_lenses(
    features: Sequence[Tensor],
    decision: Tensor,
    held_out_features: Sequence[Tensor],
    held_out_decision: Tensor,
) -> tuple[Lens, ...]:
    """Fit one lens a tap; all tensors are of untouched examples, float of any width."""
    return tuple(
        fit_lens(x, decision, (held, held_out_decision))
        for x, held in zip(features, held_out_features, strict=True)
    )
