"""Small networks behind a student's taps that learn early decisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Branch(nn.Module):
    """Turns one tap's output into an early decision.

    Maps are pooled to at most 7 x 7 and pass a depthwise-separable convolution before the linear
    layer, so that early features need not be linearly decodable; vectors and tokens get one linear
    layer.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, hidden: int | None = None) -> None:
        super().__init__()
        channels = shape[0] if len(shape) != 2 else shape[1]
        self.body: nn.Module = nn.Identity()
        if len(shape) == 3:
            hidden = hidden or max(16, min(64, 2 * channels))
            side = (min(7, shape[1]), min(7, shape[2]))
            self.body = nn.Sequential(
                nn.AdaptiveAvgPool2d(side) if side != tuple(shape[1:]) else nn.Identity(),
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.Conv2d(channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
            )
            channels = hidden
        self.head = nn.Linear(channels, classes)

    def forward(self, output: Tensor) -> Tensor:
        """Return logits from the tap's output."""
        x = self.body(output)
        if x.ndim == 4:
            x = x.mean(dim=(2, 3))
        elif x.ndim == 3:
            x = x.mean(dim=1)
        return self.head(x.flatten(1))


class Branches(nn.Module):
    """One branch a tap, in order; a tap that gets no lesson has none."""

    def __init__(self, shapes: Sequence[tuple[int, ...] | None], classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Identity() if shape is None else Branch(shape, classes) for shape in shapes
        )

    def forward(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the early decisions, one a tap."""
        return tuple(
            torch.empty(0) if isinstance(branch, nn.Identity) else branch(output)
            for branch, output in zip(self.branches, outputs, strict=True)
        )
