"""The vision transformer: a stem, pre-norm layers, a mean over tokens or a class token.

Built from its first knobs alone it is compact: a convolutional stem, the mean over tokens. `stem:
patch`, `pool` and `eps` are those of networks that others trained (see `teach.vits`), so that
slices of them are students too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.encoder import Layer
from tutelage.students.families.knobs import check_whole

_LARGEST = {
    "image": 16_384, "classes": 1_000_000, "patch": 256, "layers": 256, "hidden": 16_384,
    "heads": 1_024, "inner": 65_536,
}  # fmt: skip
_WORDS = {"stem": ("conv", "patch"), "pool": ("mean", "mean_first", "class")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTSpec:
    """Knobs of one network; every field is plain JSON.

    `image` is (channels, height, width). Each square of `patch` pixels becomes one token of
    `hidden` numbers: through convolutions of stride 2 (`stem: conv`; `patch` is a power of two,
    squares at the edge may be smaller) or one of stride `patch` (`stem: patch`; squares fill the
    image). `layers` layers have `heads` attention heads and `inner` units between. The last norm is
    followed by the mean over the tokens (`pool: mean`) or comes after it (`mean_first`), or one
    more token, which is learned, is read (`class`). `eps` is that of all norms. Raises `ValueError`
    for an impossible knob.
    """

    image: tuple[int, int, int]
    classes: int
    layers: int
    hidden: int
    heads: int
    inner: int
    patch: int = 4
    stem: Literal["conv", "patch"] = "conv"
    pool: Literal["mean", "mean_first", "class"] = "mean"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST, ("image",))
        if len(self.image) != 3:
            raise ValueError("image is [channels, height, width]")
        for knob, words in _WORDS.items():
            if getattr(self, knob) not in words:
                raise ValueError(f"{knob} is {getattr(self, knob)!r}; it is {' or '.join(words)}")
        if self.stem == "conv" and self.patch & (self.patch - 1):
            raise ValueError(f"patch is {self.patch}; it must be a power of two, such as 4")
        if self.stem == "patch" and (self.image[1] % self.patch or self.image[2] % self.patch):
            raise ValueError(
                f"squares of {self.patch} pixels do not fill {self.image[1]} x {self.image[2]}"
            )
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}; {self.heads} heads do not divide it evenly")
        if not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise ValueError(f"eps is {self.eps!r}; it is a small number such as 1e-5")

    @property
    def squares(self) -> int:
        """How many squares of `patch` pixels an image has."""
        return -(-self.image[1] // self.patch) * -(-self.image[2] // self.patch)

    @property
    def length(self) -> int:
        """How many tokens an image has."""
        return self.squares + (self.pool == "class")

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the layers."""
        return tuple(f"stages.{i}" for i in range(self.layers))


class ViT(nn.Module):
    """Stem, learned positions, layers, mean over the tokens or the class token, linear head.

    The usual stem is convolutions of stride 2, not one large patch: it trains faster and needs less
    data (Xiao 2021, 2106.14881). `stages.i` are its taps, [b, t, hidden]. The class token is the
    first row of `positions`.
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = _stem(spec)
        self.positions = nn.Parameter(torch.empty(spec.length, spec.hidden))
        self.stages = nn.ModuleList(Layer(spec, eps=spec.eps) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.hidden, eps=spec.eps)
        self.head = nn.Linear(spec.hidden, spec.classes)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        # The number of tokens as a constant keeps arithmetic on shapes out of an exported graph.
        pool = self.spec.pool
        x = self.stem(images).reshape(-1, self.spec.hidden, self.spec.squares).transpose(1, 2)
        x = F.pad(x, (0, 0, 1, 0)) if pool == "class" else x
        x = x + self.positions
        for stage in self.stages:
            x = stage(x)
        if pool == "mean":
            return self.head(self.norm(x).mean(dim=1))
        return self.head(self.norm(x[:, 0] if pool == "class" else x.mean(dim=1)))


def _stem(spec: ViTSpec) -> nn.Sequential:
    """Halve the resolution and double the width until a patch is one pixel of `hidden` channels."""
    halvings, channels = spec.patch.bit_length() - 1, spec.image[0]
    if spec.stem == "patch":
        return nn.Sequential(nn.Conv2d(channels, spec.hidden, spec.patch, spec.patch))
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
