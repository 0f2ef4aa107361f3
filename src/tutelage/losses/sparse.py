"""What a teacher says about the next token: of every token, of the likeliest, or of drawn ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Logarithm of a probability that is nothing: the least that half precision holds.
NOTHING = -65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseDecision:
    """Log-probabilities, in nats and at temperature 1, that a teacher gives n tokens.

    `ids` name the tokens that `log_probs` speak of; None: all of the vocabulary, in its order.
    `tail` is the log of the mass that is not listed, -inf where there is none. `drawn`: the ids
    were drawn from the teacher's distribution, with repeats, and each counts 1/k; there is no tail.
    """

    ids: Int[Tensor, "tokens kept"] | None
    log_probs: Float[Tensor, "tokens kept"]
    tail: Float[Tensor, " tokens"]
    drawn: bool = False

    def __len__(self) -> int:
        return self.log_probs.shape[0]

    def rows(self, first: int, last: int) -> SparseDecision:
        """Return the part about tokens `first` to `last`, without copying."""
        return SparseDecision(
            ids=None if self.ids is None else self.ids[first:last],
            log_probs=self.log_probs[first:last],
            tail=self.tail[first:last],
            drawn=self.drawn,
        )

    def to(self, device: torch.device) -> SparseDecision:
        """Return the same on `device`."""
        return SparseDecision(
            ids=None if self.ids is None else self.ids.to(device),
            log_probs=self.log_probs.to(device),
            tail=self.tail.to(device),
            drawn=self.drawn,
        )


def dense_of(logits: Float[Tensor, "tokens vocabulary"]) -> SparseDecision:
    """Return what logits say about every token of the vocabulary."""
    log_p = exact(logits).log_softmax(dim=1)
    return SparseDecision(ids=None, log_probs=log_p, tail=_no_tail(log_p))


def top_of(logits: Float[Tensor, "tokens vocabulary"], kept: int) -> SparseDecision:
    """Return the `kept` likeliest tokens, and the exact mass of all the others as the tail."""
    log_p = exact(logits).log_softmax(dim=1)
    found, ids = log_p.topk(min(kept, log_p.shape[1]), dim=1)
    tail = log_p.scatter(1, ids, -torch.inf).logsumexp(dim=1)
    return SparseDecision(ids=ids.int(), log_probs=found, tail=tail)


def drawn_of(
    logits: Float[Tensor, "tokens vocabulary"], uniforms: Float[Tensor, "tokens kept"]
) -> SparseDecision:
    """Return ids drawn from the distribution, one for each of `uniforms`, which lie in [0, 1).

    Draw j inverts the distribution at (j + u_j) / k: one draw from each of k strata of equal mass.
    A token's expected share of the draws is its probability, as with independent draws, and its
    variance is never larger (Cochran 1977, section 5.6).
    """
    kept = uniforms.shape[1]
    mass = logits.double().softmax(dim=1).cumsum(dim=1)
    strata = torch.arange(kept, device=logits.device, dtype=torch.float64)
    points = (strata + uniforms.double()) / kept * mass[:, -1:]
    ids = torch.searchsorted(mass, points, right=True).clamp(max=mass.shape[1] - 1)
    log_p = exact(logits).log_softmax(dim=1).gather(1, ids)
    return SparseDecision(ids=ids.int(), log_probs=log_p, tail=_no_tail(log_p), drawn=True)


def exact(values: Tensor) -> Tensor:
    """Widen half precision to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _no_tail(log_p: Tensor) -> Tensor:
    return log_p.new_full((log_p.shape[0],), -torch.inf)
