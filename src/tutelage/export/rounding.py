"""How wide the steps of int8 weights are, so that no processor's integer kernel overflows.

x86 without VNNI multiplies unsigned by signed bytes and adds two neighbouring products in 16 bits,
which saturate at 32,767 (the instruction `vpmaddubsw`): 255 * 127 + 255 * 127 is cut to half. Where
two neighbouring levels add up to 128 at most, 255 * 128 = 32,640 always fits. A channel's steps are
widened until they do, so a file decides alike wherever it runs. That costs less than weights of 7
bits: the largest sum of two neighbours is seldom twice the largest weight.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
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
