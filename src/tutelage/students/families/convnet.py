"""The compact convolutional family for images: residual stages, plain or depthwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.knobs import check_whole

MOST_STAGES = 3
_LARGEST = {
    "image": 16_384, "classes": 1_000_000, "widths": 8_192, "depths": 256, "kernel": 31,
    "expand": 64, "stem_stride": 8, "shrink": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNetSpec:
    """Knobs of one network; every field is plain JSON.

    `image` is (channels, height, width). Stage `i` has `widths[i]` channels and `depths[i]` blocks,
    and halves the resolution unless it is the first. `block` is `plain` (two full convolutions) or
    `depthwise` (expand, depthwise, project). Squares of `shrink` pixels a side are averaged first:
    the network computes on a smaller image. Raises `ValueError` for an impossible knob.
    """

    image: tuple[int, int, int]
    classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block: Literal["plain", "depthwise"] = "plain"
    kernel: int = 3
    expand: int = 2
    stem_stride: int = 1
    shrink: int = 1

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST, ("image", "widths", "depths"))
        if len(self.image) != 3:
            raise ValueError("image is [channels, height, width]")
        if self.image[1] % self.shrink or self.image[2] % self.shrink:
            raise ValueError(f"shrink is {self.shrink}; it must divide both sides of the image")
        if not 1 <= len(self.widths) == len(self.depths):
            raise ValueError("widths and depths need one number for each stage, and as many")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd, so that shapes are kept")
        if self.block not in ("plain", "depthwise"):
            raise ValueError(f"block is {self.block!r}; it is 'plain' or 'depthwise'")

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the stage ends."""
        return tuple(f"stages.{i}" for i in range(len(self.widths)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything about a convnet but its width; `depth` of every stage, or of each."""

    block: Literal["plain", "depthwise"]
    growth: float
    depth: int | tuple[int, ...]
    expand: int = 2
    shrink: int = 1


STRUCTURES = (
    Structure(block="plain", growth=2.0, depth=1),
    Structure(block="plain", growth=1.5, depth=1),
    Structure(block="plain", growth=1.5, depth=2),
    Structure(block="depthwise", growth=1.5, depth=2, expand=3),
    Structure(block="depthwise", growth=2.0, depth=2, expand=2),
)


def sized(structure: Structure, width: int, given: dict[str, Any]) -> ConvNetSpec:
    """Return the network of this structure whose first stage has `width` channels."""
    stages, stride = _stages(given["image"], structure.shrink)
    return ConvNetSpec(
        image=given["image"],
        classes=given["classes"],
        widths=tuple(max(2, 2 * round(width * structure.growth**i / 2)) for i in range(stages)),
        depths=depths_of(structure.depth, stages),
        block=structure.block,
        expand=structure.expand,
        stem_stride=stride,
        shrink=structure.shrink,
    )


def drawn(random: np.random.Generator) -> Structure:
    """Return a structure drawn at random: growth 1 to 2.2, one to three blocks in each stage."""
    plain = bool(random.integers(2))
    return Structure(
        block="plain" if plain else "depthwise",
        growth=round(float(random.uniform(1.0, 2.2)), 2),
        depth=tuple(int(n) for n in random.integers(1, 4, size=MOST_STAGES)),
        expand=2 if plain else int(random.integers(2, 5)),
    )


def teacher(width: int, given: dict[str, Any]) -> ConvNetSpec:
    """Return the teacher that is trained on the spot: plain blocks, two a stage."""
    stages, stride = _stages(given["image"])
    return ConvNetSpec(
        image=given["image"],
        classes=given["classes"],
        widths=tuple(width * 2**i for i in range(stages)),
        depths=(2,) * stages,
        stem_stride=stride,
    )


def depths_of(depth: int | tuple[int, ...], stages: int) -> tuple[int, ...]:
    """Return the blocks of each of the stages there are."""
    return (depth,) * stages if isinstance(depth, int) else depth[:stages]


def _stages(image: tuple[int, int, int], shrink: int = 1) -> tuple[int, int]:
    stride = stem_stride(image[1], image[2])
    return (2 if min(image[1], image[2]) // shrink // stride < 12 else 3), stride


def stem_stride(height: int, width: int) -> int:
    """Return the stem's stride that brings an image of any size near 32 pixels."""
    side = max(height, width)
    return 1 if side <= 48 else 2 if side <= 96 else 4


class ConvNet(nn.Module):
    """Stem, stages, global average pool, linear head. `stages.i` are its taps."""

    def __init__(self, spec: ConvNetSpec) -> None:
        super().__init__()
        self.spec = spec
        block = _PlainBlock if spec.block == "plain" else _DepthwiseBlock
        channels = spec.widths[0]
        self.stem = _conv_bn(spec.image[0], channels, spec.kernel, spec.stem_stride, relu=True)
        stages = []
        for i, (width, depth) in enumerate(zip(spec.widths, spec.depths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, width, stride, spec))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, spec.classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        if self.spec.shrink > 1:
            images = F.avg_pool2d(images, self.spec.shrink)
        return self.head(self.pool(self.stages(self.stem(images))).flatten(1))


class _PlainBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, spec: ConvNetSpec) -> None:
        super().__init__()
        self.first = _conv_bn(cin, cout, spec.kernel, stride, relu=True)
        self.second = _conv_bn(cout, cout, spec.kernel, 1, relu=False)
        self.shortcut = _shortcut(cin, cout, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class _DepthwiseBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, spec: ConvNetSpec) -> None:
        super().__init__()
        inner = cin * spec.expand
        self.expand = _conv_bn(cin, inner, 1, 1, relu=True)
        self.depthwise = _conv_bn(inner, inner, spec.kernel, stride, relu=True, groups=inner)
        self.project = _conv_bn(inner, cout, 1, 1, relu=False)
        self.same = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return out + x if self.same else out


def _shortcut(cin: int, cout: int, stride: int) -> nn.Module:
    if cin == cout and stride == 1:
        return nn.Identity()
    return _conv_bn(cin, cout, 1, stride, relu=False)


def _conv_bn(
    cin: int, cout: int, kernel: int, stride: int, *, relu: bool, groups: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
