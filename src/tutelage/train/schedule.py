"""How long and how fast a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tutelage.passes import native_bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Everything the loop needs to know that is neither data nor objective.

    `warmup` is the share of steps in which the rate rises; `floor` the share of the rate left at
    the end. `ema` is the decay of the averaged weights (0: off), `clip` the largest gradient norm,
    `patience` the epochs without a better validation figure before stopping (0: never).
    """

    epochs: int
    batch: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    shape: Literal["cosine", "onecycle"] = "onecycle"
    rate: float = 5e-3
    weight_decay: float = 1e-2
    warmup: float = 0.15
    floor: float = 0.001
    ema: float = 0.99
    clip: float = 5.0
    patience: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    seed: int = 0
    checkpoint_s: float = 30.0

    def rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of `step` of `total`: a pure function, so resuming is exact."""
        rise = max(1, int(self.warmup * total))
        if step < rise:
            start = 0.04 if self.shape == "onecycle" else 0.0
            return self.rate * (start + (1 - start) * (step + 1) / rise)
        share = (step - rise) / max(1, total - rise)
        low = self.rate * self.floor
        return low + (self.rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def build_optimizer(parameters: list[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer; biases and norm parameters are not decayed."""
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.rate, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=schedule.rate, fused=True)


def autocast_dtype(model: nn.Module, schedule: Schedule, device: torch.device) -> torch.dtype:
    """Return bfloat16 where it pays, else float32 (benchmarks/precision.py).

    On a CPU it pays only with native bfloat16 instructions and wide layers: a narrow network is
    bound by memory traffic and slows down, and so does one that convolves channels one by one. With
    a unit for tiles of bfloat16 (AMX) it pays for convolutions from 10 channels on. The rule reads
    the network, never a clock, so that a resumed run computes the same.
    """
    if schedule.precision == "bf16":
        return torch.bfloat16
    if schedule.precision == "float32" or not native_bf16(device):
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    widths = [m.out_channels for m in convolutions]
    widths += [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    if not widths or any(m.groups > 1 for m in convolutions):
        return torch.float32
    least = 10 if convolutions and _has_tiles() else 48
    return torch.bfloat16 if sorted(widths)[len(widths) // 2] >= least else torch.float32


def _has_tiles() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())
