"""The smallest family for texts: an embedding, separable convolutions over tokens, a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.students.families.encoder import check_pad, masked_mean
from tutelage.students.families.knobs import check_whole

_LARGEST = {
    "vocabulary": 10_000_000, "length": 65_536, "classes": 1_000_000, "embedding": 8_192,
    "kernel": 1_023,
}  # fmt: skip
_DEEPEST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConvSpec:
    """Knobs of one network; every field is plain JSON.

    A text is at most `length` tokens out of `vocabulary`, filled up with the token `pad`. Each is
    embedded in `embedding` numbers and passes `depth` separable convolutions over `kernel` tokens;
    with none, the decision is linear in the mean of the embeddings. Raises `ValueError` for an
    impossible knob.
    """

    vocabulary: int
    length: int
    classes: int
    embedding: int
    pad: int = 0
    depth: int = 0
    kernel: int = 5

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST)
        check_pad(self)
        if self.depth != 0:
            check_whole(self, {"depth": _DEEPEST})
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd, so that lengths are kept")

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the blocks, or of the embedding where there are none."""
        return tuple(f"stages.{i}" for i in range(self.depth)) or ("embedding",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything about a textconv but its width."""

    depth: int


STRUCTURES = (Structure(depth=0), Structure(depth=1), Structure(depth=2))


def sized(structure: Structure, width: int, given: dict[str, Any]) -> TextConvSpec:
    """Return the network of this structure whose tokens have `width` numbers."""
    return TextConvSpec(
        vocabulary=given["vocabulary"],
        length=given["length"],
        pad=given["pad"],
        classes=given["classes"],
        embedding=width,
        depth=structure.depth,
    )


class TextConv(nn.Module):
    """Embedding, blocks, pool, linear head. `stages.i` are its taps, [b, c, 1, t].

    The pool is the mean over the tokens that are no pads and, behind convolutions, their maximum.
    What stands at pads changes no decision, nor does how many there are.
    """

    def __init__(self, spec: TextConvSpec) -> None:
        super().__init__()
        self.pad, width = spec.pad, spec.embedding
        self.embedding = nn.Embedding(spec.vocabulary, width)
        self.stages = nn.ModuleList(_Block(width, spec.kernel) for _ in range(spec.depth))
        self.head = nn.Linear(2 * width if spec.depth else width, spec.classes)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        x = self.embedding(ids)
        keep = ids.ne(self.pad).to(x.dtype)
        if not len(self.stages):
            return self.head(masked_mean(x, keep))
        # Convolutions over time are those of an image one pixel high, as for series.
        mask = keep[:, None, None, :]
        x = x.transpose(1, 2).unsqueeze(2) * mask
        for stage in self.stages:
            x = stage(x, mask)
        x = x.squeeze(2).transpose(1, 2)
        # A block ends at 0 or above, and at 0 for pads: they never are the maximum alone.
        return self.head(torch.cat([masked_mean(x, keep), x.amax(dim=1)], dim=1))


class _Block(nn.Module):
    """relu(x + pointwise(relu(depthwise(x)))), and 0 at pads."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(
                width, width, (1, kernel), padding=(0, kernel // 2), groups=width, bias=False
            ),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.relu(self.pointwise(self.depthwise(x)) + x) * mask
