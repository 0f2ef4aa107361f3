"""The recurrent family for series: frames of a few steps, one gated recurrent layer over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.knobs import check_whole

_LARGEST = {
    "channels": 8_192, "length": 1_000_000, "classes": 1_000_000, "hidden": 8_192,
    "window": 1_000_000,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GruSpec:
    """Knobs of one network; every field is plain JSON.

    A series has `channels` values at each of `length` steps. It is cut into frames of `window`
    steps (the outer ones filled up with zeros), each becomes a vector of `hidden` numbers, and a
    GRU with as many units reads them. The decision is read from its `mean` or its `last` state.
    Raises `ValueError` for an impossible knob.
    """

    channels: int
    length: int
    classes: int
    hidden: int
    window: int = 1
    state: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST)
        if self.window > self.length:
            raise ValueError(f"window is {self.window}; the series has {self.length} steps")
        if self.state not in ("mean", "last"):
            raise ValueError(f"state is {self.state!r}; it is 'mean' or 'last'")

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the frames and of the states."""
        return ("stem.2", "gru")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything about a recurrent network but its width."""

    frames: int
    state: Literal["mean", "last"] = "mean"


STRUCTURES = (Structure(frames=12), Structure(frames=24), Structure(frames=48))


def sized(structure: Structure, width: int, given: dict[str, Any]) -> GruSpec:
    """Return the network of this structure with `width` units."""
    return GruSpec(
        channels=given["channels"],
        length=given["length"],
        classes=given["classes"],
        hidden=width,
        window=-(-given["length"] // structure.frames),
        state=structure.state,
    )


class Gru(nn.Module):
    """Frames, recurrent layer, linear head. `stem.2` and `gru` are its taps."""

    def __init__(self, spec: GruSpec) -> None:
        super().__init__()
        self.state = spec.state
        # Frames side by side, each through one linear map: a convolution as wide as its stride.
        missing = -spec.length % spec.window
        self.stem = nn.Sequential(
            nn.Conv2d(
                spec.channels, spec.hidden, (1, spec.window), (1, spec.window),
                (0, (missing + 1) // 2), bias=False,
            ),
            nn.BatchNorm2d(spec.hidden),
            nn.ReLU(inplace=True),
        )  # fmt: skip
        self.gru = nn.GRU(spec.hidden, spec.hidden, batch_first=True)
        self.head = nn.Linear(spec.hidden, spec.classes)

    def forward(self, series: Float[Tensor, "b c t"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        frames = self.stem(series.unsqueeze(2)).squeeze(2).transpose(1, 2)
        states, last = self.gru(frames)
        return self.head(states.mean(dim=1) if self.state == "mean" else last.squeeze(0))
