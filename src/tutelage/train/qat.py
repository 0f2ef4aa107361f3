"""Quantization-aware training: the network feels int8 rounding while it learns.

Covers convolutions and linear layers as they are exported: weights rounded symmetrically per output
channel, inputs of convolutions per tensor (a linear layer computes in float). Batch norms stay
frozen: folding one into its convolution scales whole output channels, which per-channel rounding
commutes with, so nothing need be folded first. The additions and poolings between layers stay
exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_LEVELS = 255
_LOW, _HIGH = "rounded_low", "rounded_high"


class _RoundWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-8) / 127
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
        rounded = (weight / scale).round().clamp(-127, 127) * scale
        return weight + (rounded - weight).detach()  # straight-through estimator


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round to 8 bits over a slowly moving range (a forward pre-hook).

    The range lies in buffers of the layer, so that it is copied, averaged and saved with it.
    """
    x = inputs[0]
    low, high = layer.get_buffer(_LOW), layer.get_buffer(_HIGH)
    if layer.training:
        seen_low, seen_high = torch.aminmax(x.detach().float())
        move = torch.where(high > low, 0.05, 1.0)
        low.lerp_(seen_low.clamp(max=0.0), move)
        high.lerp_(seen_high.clamp(min=0.0), move)
    scale = (high - low).clamp_min(1e-8) / _LEVELS
    rounded = (x.detach().clamp(low, high) / scale).round() * scale
    inside = (x >= low) & (x <= high)
    found = torch.where(inside, x + (rounded - x).detach(), rounded)
    return (torch.where(high > low, found, x), *inputs[1:])


@contextmanager
def quantization_aware(network: nn.Module) -> Iterator[None]:
    """Round weights and inputs of `network` inside the block; batch norms are frozen meanwhile."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        layer.register_buffer(_LOW, torch.zeros((), device=layer.weight.device))
        layer.register_buffer(_HIGH, torch.zeros((), device=layer.weight.device))
    hooks = [layer.register_forward_pre_hook(_round_input) for layer in convolutions]
    hooks += [norm.register_forward_pre_hook(_freeze) for norm in norms]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _RoundWeight(), unsafe=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            bias = layer._parameters["bias"]
            if bias is not None:  # weight before bias, as it was
                del layer.bias
                layer.register_parameter("bias", bias)
        for layer in convolutions:
            delattr(layer, _LOW)
            delattr(layer, _HIGH)
        for norm in norms:
            norm.train(network.training)


def _freeze(norm: nn.Module, inputs: Any) -> None:
    norm.eval()
