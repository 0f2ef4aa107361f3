"""What flows through teaching and training: batches, signals, taps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

# What a decision is: one of some classes, or one value.
Decides = Literal["classes", "values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples as the network sees them; `index` names them in the data set.

    `labels` is None for data without labels; class numbers, or values in units of the training
    labels' spread about their mean. `view` is the augmentation view they were drawn from.
    """

    inputs: Float[Tensor, "batch ..."]
    labels: Int[Tensor, " batch"] | Float[Tensor, " batch"] | None
    index: Int[Tensor, " batch"]
    view: int = 0


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
    """

    decision: Float[Tensor, "batch classes"]
    trajectory: tuple[Float[Tensor, "batch classes"], ...] = ()
    features: tuple[Float[Tensor, "batch channels"], ...] = ()
    maps: tuple[Float[Tensor, "batch height width"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What the teacher says about a batch of examples, read from the cache or asked live."""

    reading: Reading
    taps: tuple[str, ...] = field(default=())


def pooled(output: Tensor) -> Float[Tensor, "batch channels"]:
    """Pool a tap's output to one vector an example: mean over space or time.

    `[b, c]` stays; `[b, c, h, w]` is averaged over space; `[b, t, c]` over tokens.
    """
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
