"""Quantization-aware training: the network feels int8 rounding while it learns.

Covers convolutions, linear layers and embeddings as they are exported: weights rounded
symmetrically per output channel (an embedding per column), inputs of convolutions per tensor, and
those of linear layers over tokens per example, as they come (other linear layers compute in float).
Batch norms stay frozen: folding one into its convolution scales whole output channels, which
per-channel rounding commutes with, so nothing need be folded first. The additions and poolings
between layers, and a table of positions, stay exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tutelage.export.rounding import TOP, weight_steps

_LEVELS = 255
_LOW, _HIGH = "rounded_low", "rounded_high"


class _RoundWeight(nn.Module):
    def __init__(self, axis: int, summed: bool) -> None:
        super().__init__()
        self.axis, self.summed = axis, summed

    def forward(self, weight: Tensor) -> Tensor:
        channels = weight.detach().movedim(self.axis, 0)
        steps = weight_steps(channels, summed=self.summed).clamp_min(1e-8)
        scale = steps.reshape(-1, *[1] * (weight.ndim - 1)).movedim(0, self.axis)
        rounded = (weight / scale).round().clamp(-TOP, TOP) * scale
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


def _round_tokens(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round an input of tokens to 8 bits over each example's own range (a forward pre-hook)."""
    x = inputs[0]
    if x.ndim < 3:
        return inputs
    rounding = layer.get_submodule("parametrizations.weight.0")
    assert isinstance(rounding, _RoundWeight)
    rounding.summed = True  # it multiplies in integers
    seen, others = x.detach(), list(range(1, x.ndim))
    low = seen.amin(others, keepdim=True).clamp(max=0.0)
    scale = (seen.amax(others, keepdim=True).clamp(min=0.0) - low).clamp_min(1e-8) / _LEVELS
    zero = (-low / scale).round()
    rounded = (((seen / scale).round() + zero).clamp(0, _LEVELS) - zero) * scale
    return (x + (rounded - seen), *inputs[1:])


@contextmanager
def quantization_aware(network: nn.Module) -> Iterator[None]:
    """Round weights and inputs of `network` inside the block; batch norms are frozen meanwhile."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        layer.register_buffer(_LOW, torch.zeros((), device=layer.weight.device))
        layer.register_buffer(_HIGH, torch.zeros((), device=layer.weight.device))
    hooks = [layer.register_forward_pre_hook(_round_input) for layer in convolutions]
    hooks += [
        layer.register_forward_pre_hook(_round_tokens)
        for layer in layers
        if isinstance(layer, nn.Linear)
    ]
    hooks += [norm.register_forward_pre_hook(_freeze) for norm in norms]
    for layer in layers:
        summed = isinstance(layer, nn.Conv2d) and not 1 < layer.groups == layer.in_channels
        rounding = _RoundWeight(1 if isinstance(layer, nn.Embedding) else 0, summed)
        parametrize.register_parametrization(layer, "weight", rounding, unsafe=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            unrounded(layer)
        for layer in convolutions:
            delattr(layer, _LOW)
            delattr(layer, _HIGH)
        for norm in norms:
            norm.train(network.training)


def unrounded(layer: nn.Module) -> None:
    """Let a layer compute with its own weight again, which comes before its bias as it did."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    bias = layer._parameters.get("bias")
    if bias is not None:
        del layer.bias
        layer.register_parameter("bias", bias)


def _freeze(norm: nn.Module, inputs: Any) -> None:
    norm.eval()
