"""The compact vision transformer: a convolutional stem, pre-norm layers, the mean over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.encoder import Layer
from tutelage.students.knobs import check_whole

_LARGEST = {
    "image": 16_384, "classes": 1_000_000, "patch": 256, "layers": 256, "hidden": 16_384,
    "heads": 1_024, "inner": 65_536,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTSpec:
    """Knobs of one network; every field is plain JSON.

    `image` is (channels, height, width). Each square of `patch` pixels (a power of two; squares at
    the edge may be smaller) becomes one token of `hidden` numbers. `layers` layers have `heads`
    attention heads and `inner` units between. Raises `ValueError` for an impossible knob.
    """

    image: tuple[int, int, int]
    classes: int
    layers: int
    hidden: int
    heads: int
    inner: int
    patch: int = 4

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST, ("image",))
        if len(self.image) != 3:
            raise ValueError("image is [channels, height, width]")
        if self.patch & (self.patch - 1):
            raise ValueError(f"patch is {self.patch}; it must be a power of two, such as 4")
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}; {self.heads} heads do not divide it evenly")

    @property
    def length(self) -> int:
        """How many tokens an image has."""
        return -(-self.image[1] // self.patch) * -(-self.image[2] // self.patch)

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the layers."""
        return tuple(f"stages.{i}" for i in range(self.layers))


class ViT(nn.Module):
    """Stem, learned positions, layers, mean over the tokens, linear head.

    The stem is convolutions of stride 2, not one large patch: it trains faster and needs less data
    (Xiao 2021, 2106.14881). `stages.i` are its taps, [b, t, hidden].
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.hidden, self.tokens = spec.hidden, spec.length
        self.stem = _stem(spec)
        self.positions = nn.Parameter(torch.empty(spec.length, spec.hidden))
        self.stages = nn.ModuleList(Layer(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.hidden)
        self.head = nn.Linear(spec.hidden, spec.classes)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        # The number of tokens as a constant keeps arithmetic on shapes out of an exported graph.
        x = self.stem(images).reshape(-1, self.hidden, self.tokens).transpose(1, 2)
        x = x + self.positions
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean(dim=1))


def _stem(spec: ViTSpec) -> nn.Sequential:
    """Halve the resolution and double the width until a patch is one pixel of `hidden` channels."""
    halvings, channels = spec.patch.bit_length() - 1, spec.image[0]
    layers: list[nn.Module] = []
    for i in range(halvings):
        width = max(4, spec.hidden >> (halvings - 1 - i))
        layers += [
            nn.Conv2d(channels, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, spec.hidden, 1))
