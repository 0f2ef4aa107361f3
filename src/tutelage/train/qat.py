"""Quantization-aware training: the network feels int8 rounding while it learns.

Covers convolutions and linear layers: weights rounded symmetrically per output channel, inputs
per tensor. Batch norms stay frozen: folding one into its convolution scales whole output channels,
which per-channel rounding commutes with, so nothing need be folded first. The additions and
poolings between layers stay exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_LEVELS = 255


class _RoundWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-8) / 127
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
        rounded = (weight / scale).round().clamp(-127, 127) * scale
        return weight + (rounded - weight).detach()  # straight-through estimator


class _RoundInput:
    """A forward pre-hook that rounds to 8 bits over a slowly moving range."""

    def __init__(self) -> None:
        self.low = self.high = 0.0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        if module.training:
            low, high = (float(v) for v in torch.aminmax(x.detach()))
            keep = 0.95 if self.high > self.low else 0.0
            self.low = keep * self.low + (1 - keep) * min(low, 0.0)
            self.high = keep * self.high + (1 - keep) * max(high, 0.0)
        scale = max(self.high - self.low, 1e-8) / _LEVELS
        rounded = (x.detach().clamp(self.low, self.high) / scale).round() * scale
        inside = (x >= self.low) & (x <= self.high)
        return (torch.where(inside, x + (rounded - x).detach(), rounded), *inputs[1:])


@contextmanager
def quantization_aware(network: nn.Module) -> Iterator[None]:
    """Round weights and inputs of `network` inside the block; batch norms are frozen meanwhile."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_pre_hook(_RoundInput()) for layer in layers]
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


def _freeze(norm: nn.Module, inputs: Any) -> None:
    norm.eval()
