"""Several networks of one spec, trained from other seeds and asked as one.

Covers networks of one family that read the same inputs. It does not weigh them: each counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOST_MEMBERS = 8


class Ensemble(nn.Module):
    """The mean of several networks: of their probabilities, or of their values.

    Decision: log of the mean of softmax(member), as InceptionTime's five networks are asked (Ismail
    Fawaz 2020, 1909.04939, eq. 3). Taps are those of the first member (see `taps.find_taps`).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Float[Tensor, "b classes"]:
        """Return log-probabilities, or one value an example."""
        said = torch.stack([member(inputs) for member in self.members])
        if said.shape[2] == 1:
            return said.mean(0)
        return said.log_softmax(2).logsumexp(0) - math.log(len(self.members))

    def describe(self) -> str:
        """Say in words how they are asked."""
        return (
            f"{len(self.members)} networks are asked as one, by the mean of what they say "
            "(probabilities or values); features are those of the first"
        )


def networks_of(network: nn.Module) -> tuple[nn.Module, ...]:
    """Return the members of an ensemble, and a single network alone."""
    return tuple(network.members) if isinstance(network, Ensemble) else (network,)
