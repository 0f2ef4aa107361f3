"""Weights as a GGUF file holds them: rounded in blocks of 32 numbers of a row, in torch.

The numbers are the very ones that are read back from the file. Source: ggml's
quantize_row_q4_0_ref to quantize_row_q8_0_ref, as the `gguf` package writes them.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tutelage.devices.gguf_sizes import F16, F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, StoredType

_HALVES = {Q4_0.name: 8, Q5_0.name: 16}  # steps on either side of zero
_STEPS = {Q4_1.name: 15, Q5_1.name: 31}  # steps from the least number to the largest


def rounded(weight: Float[Tensor, "*n k"], stored: StoredType) -> Float[Tensor, "*n k"]:
    """Return what the file of that type says of the weights, float32; they are not changed."""
    weight = weight.detach().float()
    if stored is F32:
        return weight
    if stored is F16:
        return weight.half().float()
    blocks = weight.reshape(-1, stored.block)
    if stored is Q8_0:
        found = _scaled(blocks, blocks.abs().amax(1, keepdim=True) / 127, 127)
    elif stored.name in _HALVES:
        half = _HALVES[stored.name]
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        found = _scaled(blocks, largest / -half, half)
    else:
        found = _between(blocks, _STEPS[stored.name])
    return found.reshape(weight.shape)


def _scaled(blocks: Tensor, step: Tensor, half: int) -> Tensor:
    """Round to whole steps; of the bytes (127) half a step goes away from zero, of others up."""
    parts = blocks * _inverse(step)
    if half == 127:
        whole = parts.abs().add_(0.5).floor_().copysign_(parts)
    else:
        whole = (parts + (half + 0.5)).trunc_().clamp_(0, 2 * half - 1).sub_(half)
    return whole.mul_(step.half().float())


def _between(blocks: Tensor, steps: int) -> Tensor:
    """Round to so many steps from the least number of a block to the largest."""
    least = blocks.amin(1, keepdim=True)
    step = (blocks.amax(1, keepdim=True) - least) / steps
    whole = ((blocks - least) * _inverse(step)).add_(0.5).trunc_().clamp_(0, steps)
    return whole.mul_(step.half().float()).add_(least.half().float())


def _inverse(step: Tensor) -> Tensor:
    """Return one over a step; 0 for one that float16 holds as 0, whose number does not matter."""
    inverse = 1 / step
    return inverse.where(inverse.isfinite(), 0.0)
