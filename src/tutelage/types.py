"""What flows through teaching and training: batches, signals, taps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.passes import Inputs

# What a decision is: one of some classes, or one value.
Decides = Literal["classes", "values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples as the network sees them; `index` names them in the data set.

    `inputs` is a tensor `[batch, ...]`, or a dict or tuple of such, nested where need be. `labels`
    is None for data without labels; class numbers (-1 for an example without one), or values in
    units of the training labels' spread about their mean. `view` is the augmentation view they were
    drawn from. `keep` is true where an input's position counts (a token that is no pad); None where
    all do.
    """

    inputs: Inputs
    labels: Int[Tensor, " batch"] | Float[Tensor, " batch"] | None
    index: Int[Tensor, " batch"]
    view: int = 0
    keep: Bool[Tensor, "batch tokens"] | None = None

    @property
    def tensor(self) -> Float[Tensor, "batch ..."]:
        """The inputs of data whose inputs are one tensor."""
        assert isinstance(self.inputs, Tensor)
        return self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A named point in a network: module path, and the shape its output has for one example."""

    path: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one network says about a batch: its decision and what its taps read.

    `decision`: logits, or one value. `trajectory`: the same at each tap, through lenses (teacher)
    or branches (student). `features`: per tap, pooled over space. `maps`: per tap, the spatial
    energy map (mean square over channels, at most 8 x 8), for attention transfer.

    Of transformers, where losses ask for it: `states` are the tokens' own vectors, and `scores` the
    attention before its softmax, averaged over heads, both one a pair of taps; `relations` are
    query, key and value of the last layer. `keep` says which tokens count; None: all.
    """

    decision: Float[Tensor, "batch classes"]
    trajectory: tuple[Float[Tensor, "batch classes"], ...] = ()
    features: tuple[Float[Tensor, "batch channels"], ...] = ()
    maps: tuple[Float[Tensor, "batch height width"], ...] = ()
    states: tuple[Float[Tensor, "batch tokens channels"], ...] = ()
    scores: tuple[Float[Tensor, "batch tokens tokens"], ...] = ()
    relations: tuple[Float[Tensor, "batch 3 tokens channels"], ...] = ()
    keep: Bool[Tensor, "batch tokens"] | None = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> Reading:
        """Return the reading with `change` made to every tensor of it."""

        def each(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(map(change, tensors))

        return Reading(
            decision=change(self.decision),
            trajectory=each(self.trajectory),
            features=each(self.features),
            maps=each(self.maps),
            states=each(self.states),
            scores=each(self.scores),
            relations=each(self.relations),
            keep=None if self.keep is None else change(self.keep),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What the teacher says about a batch of examples, read from the cache or asked live."""

    reading: Reading
    taps: tuple[str, ...] = field(default=())


def weights(output: Tensor, keep: Bool[Tensor, "batch tokens"] | None) -> Tensor | None:
    """Return the share of each position of `[b, t, c]` or `[b, c, 1, t]`: equal where kept, else 0.

    None where the output does not lie over the positions that `keep` speaks of: all count there.
    """
    if keep is None:
        return None
    tokens = output.ndim == 3 and output.shape[1] == keep.shape[1]
    steps = output.ndim == 4 and output.shape[2] == 1 and output.shape[3] == keep.shape[1]
    if not (tokens or steps):
        return None
    share = keep / keep.sum(dim=1, keepdim=True).clamp_min(1)
    return share[:, :, None] if tokens else share[:, None, None, :]


def pooled(
    output: Tensor, keep: Bool[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, "batch channels"]:
    """Pool a tap's output to one vector an example: mean over space or time.

    `[b, c]` stays; `[b, c, h, w]` is averaged over space; `[b, t, c]` over tokens. Where it lies
    over the positions of `keep`, those that do not count are left out.
    """
    share = weights(output, keep)
    if share is not None:
        return (output * share).sum(dim=1 if output.ndim == 3 else (2, 3))
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    if output.ndim == 3:
        return output.mean(dim=1)
    return output.flatten(1)


def energy_map(output: Tensor, side: int = 8) -> Float[Tensor, "batch height width"] | None:
    """Return the mean square over channels of `[b, c, h, w]`, at most `side` wide; else None."""
    if output.ndim != 4:
        return None
    energy = output.float().square().mean(dim=1, keepdim=True)
    size = (min(side, energy.shape[2]), min(side, energy.shape[3]))
    return torch.nn.functional.adaptive_avg_pool2d(energy, size)[:, 0]
