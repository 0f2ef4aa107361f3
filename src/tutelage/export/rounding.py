"""How wide the steps of int8 weights are, so that no processor's integer kernel overflows.

x86 without VNNI multiplies unsigned by signed bytes and adds two neighbouring products in 16 bits,
which saturate at 32,767 (the instruction `vpmaddubsw`): 255 * 127 + 255 * 127 is cut to half. Where
two neighbouring levels add up to 128 at most, 255 * 128 = 32,640 always fits. A channel's steps are
widened until they do, so a file decides alike wherever it runs. That costs less than weights of 7
bits: the largest sum of two neighbours is seldom twice the largest weight.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

TOP = 127


def weight_steps(channels: Float[Tensor, "c ..."], *, summed: bool = False) -> Float[Tensor, " c"]:
    """Return the step of each output channel's weights, of which no level is above `TOP`.

    `channels` holds one output channel a row, its weights as [channel in, height, width] or flat.
    `summed`: the weights meet unsigned bytes in integers, channels in fastest, so neighbours in
    that order must not saturate. A channel of zeros has step 0.
    """
    rows = channels.movedim(1, -1).flatten(1) if channels.ndim > 2 else channels
    largest = rows.abs().amax(1)
    if summed and rows.shape[1] > 1:
        # Levels are rounded: two of them may add up to 1 more than their sum, to 128.
        largest = torch.maximum(largest, (rows[:, 1:] + rows[:, :-1]).abs().amax(1))
    return largest / TOP


def weight_levels(
    weights: Float[np.ndarray, "d ..."], axis: int, least: Float[np.ndarray, " c"] | float, *,
    summed: bool, per_channel: bool,
) -> tuple[Int8[np.ndarray, "d ..."], Float[np.ndarray, " c"]]:  # fmt: skip
    """Return weights as levels from -127 to 127, and the step of each channel, along `axis`.

    No step is below `least`. Without `per_channel` all are the largest. A step of 0 becomes 1.
    """
    channels = np.moveaxis(weights, axis, 0)
    steps = weight_steps(torch.from_numpy(channels.astype(np.float64)), summed=summed).numpy()
    steps = np.maximum(steps, least)
    if not per_channel:
        steps = np.full_like(steps, steps.max())
    steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
    levels = np.rint(channels / steps.reshape(-1, *[1] * (weights.ndim - 1)))
    levels = np.moveaxis(np.clip(levels, -TOP, TOP), 0, axis).astype(np.int8)
    return np.ascontiguousarray(levels), steps
