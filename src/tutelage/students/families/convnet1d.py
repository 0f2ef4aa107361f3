"""The compact convolutional family for series: separable, plain or inception blocks over time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.convnet import MOST_STAGES, depths_of
from tutelage.students.families.knobs import check_whole

Block = Literal["separable", "plain", "inception"]
_BLOCKS = ("separable", "plain", "inception")
_LARGEST = {
    "channels": 8_192, "length": 1_000_000, "classes": 1_000_000, "widths": 8_192, "depths": 256,
    "kernel": 1_023, "expand": 64, "stem_stride": 64,
}  # fmt: skip
_STEPS = 128  # the stem brings a longer series to at most this many steps, or near it


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNet1dSpec:
    """Knobs of one network; every field is plain JSON.

    A series has `channels` values at each of `length` steps. Stage `i` has `widths[i]` channels and
    `depths[i]` blocks, and halves the steps unless it is the first. `block` is `separable`
    (expand, depthwise, pointwise), `plain` (two full convolutions) or `inception` (three kernels of
    which `kernel` is the longest, and a pooled branch, side by side; widths are multiples of 4).
    No kernel is longer than what it reads. Raises `ValueError` for an impossible knob.
    """

    channels: int
    length: int
    classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block: Block = "separable"
    kernel: int = 5
    expand: int = 1
    stem_stride: int = 1

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST, lists=("widths", "depths"))
        if not 1 <= len(self.widths) == len(self.depths):
            raise ValueError("widths and depths need one number for each stage, and as many")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd, so that lengths are kept")
        if self.block not in _BLOCKS:
            raise ValueError(f"block is {self.block!r}; it is 'separable', 'plain' or 'inception'")
        if self.block == "inception" and any(width % 4 for width in self.widths):
            raise ValueError(f"widths are {list(self.widths)}; inception takes multiples of 4")

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the stage ends."""
        return tuple(f"stages.{i}" for i in range(len(self.widths)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything about a convnet for series but its width; `depth` of every stage, or of each."""

    block: Block
    growth: float
    depth: int | tuple[int, ...]
    expand: int = 1


STRUCTURES = (
    Structure(block="separable", growth=2.0, depth=1),
    Structure(block="separable", growth=1.5, depth=2),
    Structure(block="separable", growth=1.5, depth=2, expand=2),
    Structure(block="plain", growth=1.5, depth=1),
    Structure(block="plain", growth=2.0, depth=1),
)


def sized(structure: Structure, width: int, given: dict[str, Any]) -> ConvNet1dSpec:
    """Return the network of this structure whose first stage has `width` channels."""
    stages, stride = _stages(given["length"])
    unit = 4 if structure.block == "inception" else 2
    return ConvNet1dSpec(
        channels=given["channels"],
        length=given["length"],
        classes=given["classes"],
        widths=tuple(_rounded(width * structure.growth**i, unit) for i in range(stages)),
        depths=depths_of(structure.depth, stages),
        block=structure.block,
        kernel=5 if given["length"] // stride < 48 else 9,
        expand=structure.expand,
        stem_stride=stride,
    )


def drawn(random: np.random.Generator) -> Structure:
    """Return a structure drawn at random: growth 1 to 2.2, one to three blocks in each stage."""
    separable = bool(random.integers(3))
    return Structure(
        block="separable" if separable else "plain",
        growth=round(float(random.uniform(1.0, 2.2)), 2),
        depth=tuple(int(n) for n in random.integers(1, 4, size=MOST_STAGES)),
        expand=int(random.integers(1, 3)) if separable else 1,
    )


def teacher(width: int, given: dict[str, Any]) -> ConvNet1dSpec:
    """Return the teacher that is trained on the spot: inception blocks, two a stage.

    After InceptionTime (Fawaz et al., 2020), with strides between stages and a stem that shortens
    long series, so that it trains on a processor.
    """
    stages, stride = _stages(given["length"])
    first = _rounded(width, 4)
    return ConvNet1dSpec(
        channels=given["channels"],
        length=given["length"],
        classes=given["classes"],
        widths=(first, *(2 * first,) * (stages - 1)),
        depths=(2,) * stages,
        block="inception",
        kernel=39,
        stem_stride=stride,
    )


def resnet(width: int, given: dict[str, Any]) -> ConvNet1dSpec:
    """Return the other teacher that is trained on the spot: full convolutions, two blocks a stage.

    After the ResNet of Wang et al. (2017, 1611.06455), with strides as `teacher` has them.
    """
    deep = teacher(width, given)
    return replace(deep, block="plain", kernel=9)


def stem_stride(length: int) -> int:
    """Return the stem's stride that brings a series of any length to 128 steps or fewer."""
    stride = 1
    while -(-length // stride) > _STEPS and stride < _LARGEST["stem_stride"]:
        stride *= 2
    return stride


def _stages(length: int) -> tuple[int, int]:
    stride = stem_stride(length)
    return (2 if length // stride < 48 else 3), stride


def _rounded(width: float, unit: int) -> int:
    return max(unit, unit * round(width / unit))


class ConvNet1d(nn.Module):
    """Stem, stages, global average pool, linear head. `stages.i` are its taps.

    A series is an image of height 1 inside: integer kernels on processors and microcontrollers,
    channels-last training, the quantizer and the cost model know 2-D convolutions best, and a
    kernel of (1, k) costs nothing more than a 1-D one.
    """

    def __init__(self, spec: ConvNet1dSpec) -> None:
        super().__init__()
        self.spec = spec
        channels, stride = spec.widths[0], spec.stem_stride
        # The stem must see every step, so its kernel is longer than its stride.
        kernel = _fit(max(spec.kernel if spec.block != "inception" else 9, 2 * stride - 1), spec)
        self.stem = _conv_bn(spec.channels, channels, kernel, stride)
        steps = -(-spec.length // stride)
        stages = []
        for i, (width, depth) in enumerate(zip(spec.widths, spec.depths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                kernel = min(spec.kernel, _odd(steps))
                blocks.append(_block(spec, channels, width, kernel, stride))
                channels, steps = width, -(-steps // stride)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, spec.classes)

    def forward(self, series: Float[Tensor, "b c t"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        images = series.unsqueeze(2)
        return self.head(self.pool(self.stages(self.stem(images))).flatten(1))


def _block(spec: ConvNet1dSpec, cin: int, cout: int, kernel: int, stride: int) -> nn.Module:
    if spec.block == "plain":
        return _PlainBlock(cin, cout, kernel, stride)
    if spec.block == "inception":
        return _InceptionBlock(cin, cout, kernel, stride)
    return _SeparableBlock(cin, cout, kernel, stride, spec.expand)


class _SeparableBlock(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = cin * expand
        self.expand = _conv_bn(cin, inner, 1, 1) if expand > 1 else nn.Identity()
        self.depthwise = _conv_bn(inner, inner, kernel, stride, groups=inner)
        self.pointwise = _conv_bn(inner, cout, 1, 1, relu=False)
        self.relu = nn.ReLU(inplace=True)
        self.same = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.pointwise(self.depthwise(self.expand(x)))
        return self.relu(out + x if self.same else out)


class _PlainBlock(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_bn(cin, cout, kernel, stride)
        self.second = _conv_bn(cout, cout, kernel, 1, relu=False)
        self.shortcut = _shortcut(cin, cout, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class _InceptionBlock(nn.Module):
    # Norms sit in the branches, not behind them, so that each folds into its own convolution.
    def __init__(self, cin: int, cout: int, kernel: int, stride: int) -> None:
        super().__init__()
        part = cout // 4
        self.bottleneck = _conv_bn(cin, part, 1, 1)
        self.branches = nn.ModuleList(
            _conv_bn(part, part, _odd(kernel // shorter), stride, relu=False)
            for shorter in (1, 2, 4)
        )
        self.pooled = nn.MaxPool2d((1, 3), (1, stride), (0, 1))
        self.after = _conv_bn(cin, part, 1, 1, relu=False)
        self.shortcut = _shortcut(cin, cout, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        parts = [branch(narrow) for branch in self.branches]
        return self.relu(torch.cat([*parts, self.after(self.pooled(x))], 1) + self.shortcut(x))


def _fit(kernel: int, spec: ConvNet1dSpec) -> int:
    return min(kernel, _odd(spec.length))


def _odd(number: int) -> int:
    """Return the largest odd number up to this one, 1 at least."""
    return max(1, number - 1 + number % 2)


def _shortcut(cin: int, cout: int, stride: int) -> nn.Module:
    if cin == cout and stride == 1:
        return nn.Identity()
    return _conv_bn(cin, cout, 1, stride, relu=False)


def _conv_bn(
    cin: int, cout: int, kernel: int, stride: int, *, relu: bool = True, groups: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, (1, kernel), (1, stride), (0, kernel // 2), groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
