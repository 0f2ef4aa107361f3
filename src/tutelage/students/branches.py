"""Small networks behind a student's taps that learn early decisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.types import pooled, weights

_CELLS = 7  # a side


class Branch(nn.Module):
    """Turns one tap's output into an early decision.

    Maps are pooled to some 7 x 7 cells (13 at the most, a rest at the edge is left out) and pass a
    depthwise-separable convolution before the linear layer, so that early features need not be
    linearly decodable; vectors and tokens get one linear layer. Positions that do not count
    (`keep`) are left out of every mean.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, hidden: int | None = None) -> None:
        super().__init__()
        channels = shape[0] if len(shape) != 2 else shape[1]
        self.body: nn.Module = nn.Identity()
        if len(shape) == 3:
            hidden = hidden or max(16, min(64, 2 * channels))
            height, width = cell = (max(1, shape[1] // _CELLS), max(1, shape[2] // _CELLS))
            kernel = (3 if shape[1] > 1 else 1, 3 if shape[2] > 1 else 1)
            edge = (kernel[0] // 2, kernel[1] // 2)
            self.body = nn.Sequential(
                nn.AvgPool2d(cell) if height * width > 1 else nn.Identity(),
                nn.Conv2d(channels, channels, kernel, padding=edge, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.Conv2d(channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
            )
            channels = hidden
        self.head = nn.Linear(channels, classes)

    def forward(self, output: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return logits from the tap's output."""
        share = weights(output, keep)
        if share is None or output.ndim != 4:
            return self.head(pooled(self.body(output), keep if output.ndim == 3 else None))
        # A cell is the mean of what counts in it, and counts as much as it holds.
        assert isinstance(self.body, nn.Sequential)
        cells, *others = self.body
        held = cells(share)
        x = cells(output * share) / held.clamp_min(1e-12)
        for layer in others:
            x = layer(x)
        return self.head((x * held).sum(dim=(2, 3)) / held.sum(dim=(2, 3)).clamp_min(1e-12))


class Branches(nn.Module):
    """One branch a tap, in order; a tap that gets no lesson has none."""

    def __init__(self, shapes: Sequence[tuple[int, ...] | None], classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Identity() if shape is None else Branch(shape, classes) for shape in shapes
        )

    def forward(self, outputs: Sequence[Tensor], keep: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the early decisions, one a tap."""
        return tuple(
            torch.empty(0) if isinstance(branch, nn.Identity) else branch(output, keep)
            for branch, output in zip(self.branches, outputs, strict=True)
        )
