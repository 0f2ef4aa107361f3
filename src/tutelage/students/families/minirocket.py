"""A teacher of few series: shares of fixed convolutions above a bias, and a ridge on top.

MiniRocket (Dempster et al., 2021, 2012.08791) on the series and on its differences, as MultiRocket
(2102.00457) has it. Nothing but the last layer is learned, in closed form: seconds where a deep
teacher takes minutes. It is a teacher alone: its features are thousands, so no student.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.students.families.knobs import check_whole
from tutelage.types import Decides

MOST_SERIES = 2_000  # the ridge solves a square of so many, times their views
_KERNEL, _KERNELS = 9, 84  # weights -1, three of them 2: all 84 ways to place those
_MOST_DILATIONS, _MOST_CHANNELS = 32, 9
_GOLDEN = (math.sqrt(5) + 1) / 2
_PENALTIES = tuple(10.0**i for i in range(-6, 4))  # beside the features' number
_MOST_AT_ONCE, _MOST_STEPS = 32, 2**19  # series, and steps of all: 84 numbers are made of each
_LARGEST = {"channels": 8_192, "length": 1_000_000, "classes": 1_000_000, "features": 100_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniRocketSpec:
    """Knobs of one network; every field is plain JSON.

    `features` are of the series and, again, of its differences; whole multiples of 84 are taken.
    Raises `ValueError` for an impossible knob.
    """

    channels: int
    length: int
    classes: int
    features: int = 4_998

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST, lists=())
        if self.features < _KERNELS:
            raise ValueError(f"features is {self.features}; {_KERNELS} at least")
        if self.length < 2:
            raise ValueError("length is 1; differences need 2 steps")


def teacher(width: int, given: dict[str, Any]) -> MiniRocketSpec:
    """Return the teacher that is fitted on the spot; it has no width."""
    return MiniRocketSpec(
        channels=given["channels"], length=given["length"], classes=given["classes"]
    )


class MiniRocket(nn.Module):
    """Features of the series and of its differences, and a linear head."""

    def __init__(self, spec: MiniRocketSpec) -> None:
        super().__init__()
        self.spec = spec
        shares = [Shares(spec.channels, n, spec.features) for n in (spec.length, spec.length - 1)]
        self.shares = nn.ModuleList(shares)
        self.full_precision = True  # it counts what lies above thresholds, and bfloat16 is slower
        self.head = nn.Linear(sum(part.count for part in shares), spec.classes)
        self.requires_grad_(False)

    def forward(self, series: Float[Tensor, "b c t"]) -> Float[Tensor, "b classes"]:
        """Return logits, or one value a series."""
        return self.head(self.features(series))

    def features(self, series: Float[Tensor, "b c t"]) -> Float[Tensor, "b f"]:
        """Return the shares of all kernels, 0 to 1."""
        return torch.cat([part(x) for part, x in self._both(series)], 1)

    def _both(self, series: Tensor) -> list[tuple[Shares, Tensor]]:
        parts: Any = self.shares
        return list(zip(parts, (series, series[:, :, 1:] - series[:, :, :-1]), strict=True))

    @torch.no_grad()
    def solve(
        self, series: Float[Tensor, "n v c t"], wanted: Int[Tensor, " n"] | Float[Tensor, " n"],
        decides: Decides,
    ) -> None:  # fmt: skip
        """Set biases by the series, and the head by ridge regression on what is `wanted`.

        `v` are views of the same series, the untouched one first: a share above a bias is easily
        upset by noise that it never met. The penalty is the one with the least error on series that
        are left out one at a time, with all their views; logits are scaled so that their likelihood
        on these is highest. Draws from torch's generator.
        """
        for part, values in self._both(series[:, 0]):
            part.set_biases(values)
        features = self.features(series.flatten(0, 1))
        if decides == "values":
            targets = wanted[:, None].double()
        else:
            targets = 2.0 * F.one_hot(wanted, self.spec.classes).double() - 1.0
        views = series.shape[1]
        weight, bias, left_out = ridge(features, targets.repeat_interleave(views, 0), views)
        scale = 1.0 if decides == "values" else _scale(left_out[::views], wanted)
        self.head.weight.copy_(weight.T * scale)
        self.head.bias.copy_(bias * scale)


class Shares(nn.Module):
    """The share of steps at which each of many dilated convolutions is above its bias.

    Every second kernel reads the inside of the series alone, where nothing is padded. With several
    channels each kernel and dilation adds up a few, drawn at random.
    """

    read: Tensor
    kernels: Tensor

    def __init__(self, channels: int, length: int, features: int) -> None:
        super().__init__()
        each = max(1, features // _KERNELS)
        dilations = _dilations(length, each)
        self.dilations = tuple(dilations)
        self.counts = tuple(dilations.values())
        self.count = _KERNELS * each
        self.at_once = max(1, min(_MOST_AT_ONCE, _MOST_STEPS // length))
        self.register_buffer("read", _channels(channels, len(dilations)))
        self.biases = nn.Parameter(torch.zeros(_KERNELS, each))
        kernels = torch.full((_KERNELS, 1, _KERNEL), -1.0)
        for kernel, places in zip(kernels, itertools.combinations(range(9), 3), strict=True):
            kernel[0, list(places)] = 2.0
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, series: Float[Tensor, "b c t"]) -> Float[Tensor, "b f"]:
        """Return the shares; some series at a time, since what lies between is large."""
        return torch.cat([self._few(few) for few in series.split(self.at_once)])

    def _few(self, series: Tensor) -> Tensor:
        """Return the shares of some, of two halves of the kernels for each dilation."""
        found, first = [], 0
        for at, count in enumerate(self.counts):
            for half, said in enumerate(self._halves(series, at)):
                found.append(_above(said, self.biases[half::2, first : first + count]))
            first += count
        return torch.cat(found, 1)

    def _halves(self, series: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Return what the kernels of each half say at each step, with one dilation."""
        dilation = self.dilations[at]
        reach = _KERNEL // 2 * dilation
        kernels = self.kernels * self.read[at, :, :, None]
        inside = 0 if series.shape[2] > 2 * reach else reach
        return (
            F.conv1d(series, kernels[0::2], padding=reach, dilation=dilation),
            F.conv1d(series, kernels[1::2], padding=inside, dilation=dilation),
        )

    @torch.no_grad()
    def set_biases(self, series: Float[Tensor, "n c t"]) -> None:
        """Take as biases quantiles of what each kernel says of one series drawn at random."""
        first = 0
        for at, count in enumerate(self.counts):
            for half in (0, 1):
                drawn = series[torch.randint(len(series), (_KERNELS // 2,))]
                said = torch.stack([
                    self._halves(one[None], at)[half][0, kernel] for kernel, one in enumerate(drawn)
                ])  # fmt: skip
                places = torch.arange(count) + count * torch.arange(half, _KERNELS, 2)[:, None]
                share = (_KERNELS * first + places + 1).double() * _GOLDEN % 1
                low = said.double().sort(1).values
                spot = share * (low.shape[1] - 1)
                under = low.gather(1, spot.long())
                over = low.gather(1, spot.ceil().long())
                self.biases[half::2, first : first + count] = (
                    under + (over - under) * (spot - spot.floor())
                ).float()
            first += count


def _above(said: Float[Tensor, "b k t"], biases: Float[Tensor, "k n"]) -> Float[Tensor, "b kn"]:
    """Return the share of steps above each bias.

    A buffer that all biases share is five times as fast as a tensor for each; an export knows none.
    """
    if torch.onnx.is_in_onnx_export():
        return (said[:, :, None] > biases[:, :, None]).to(said.dtype).mean(3).flatten(1)
    above, shares = torch.empty_like(said), said.new_empty(*said.shape[:2], biases.shape[1])
    for at, bias in enumerate(biases.T):
        torch.gt(said, bias[:, None], out=above)
        torch.mean(above, 2, out=shares[:, :, at])
    return shares.flatten(1)


def _dilations(length: int, each: int) -> dict[int, int]:
    """Return how many of a kernel's `each` features have which dilation."""
    most = min(each, _MOST_DILATIONS)
    last = math.log2(max(1.0, (length - 1) / (_KERNEL - 1)))
    steps = [int(2 ** (last * i / max(1, most - 1))) for i in range(most)]
    found = {step: steps.count(step) * each // most for step in dict.fromkeys(steps)}
    for step in itertools.islice(itertools.cycle(found), each - sum(found.values())):
        found[step] += 1
    return found


def _channels(channels: int, dilations: int) -> Float[Tensor, "d kernels c"]:
    """Draw which channels each kernel adds up: one to nine, few more often than many."""
    read = torch.zeros(dilations, _KERNELS, channels)
    most = math.log2(min(channels, _MOST_CHANNELS) + 1)
    for row in read.reshape(-1, channels):
        count = min(channels, int(2 ** (float(torch.rand(())) * most)))
        row[torch.randperm(channels)[: max(1, count)]] = 1.0
    return read


def ridge(
    features: Float[Tensor, "n f"], targets: Float[Tensor, "n k"], views: int = 1
) -> tuple[Float[Tensor, "f k"], Float[Tensor, " k"], Float[Tensor, "n k"]]:
    """Return weights and biases of the best ridge regression, and what it says of rows left out.

    Every `views` rows are of one example, and left out together. Features are brought to mean 0 and
    deviation 1. The square of all pairs is decomposed once, and every penalty's error on what is
    left out read off it (as scikit-learn's RidgeCV does, one row at a time).
    """
    features, targets = features.double(), targets.double()
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled, middle = (features - mean) / deviation, targets.mean(0)
    square = scaled @ scaled.T
    # What is added along the mean makes that direction the largest, which is left out: no penalty.
    values, vectors = torch.linalg.eigh(square + square.trace() / len(square) + 1)
    values, vectors = values[:-1].clamp(min=0), vectors[:, :-1]
    seen, examples = vectors.T @ (targets - middle), vectors.unflatten(0, (-1, views))
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in _PENALTIES:
        shrunk = 1 / (values + penalty * features.shape[1])
        solved = vectors @ (seen * shrunk[:, None])
        blocks = (examples * shrunk) @ examples.mT  # of the inverse, an example's own rows
        wrong = torch.linalg.solve(blocks, solved.unflatten(0, (-1, views))).flatten(0, 1)
        error = float(wrong.square().mean())
        if best is None or error < best[0]:
            best = error, solved, targets - wrong
    assert best is not None
    weight = (scaled.T @ best[1]) / deviation[:, None]
    return weight.float(), (middle - mean @ weight).float(), best[2].float()


def _scale(said: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """Return by what to multiply decisions so that the labels' likelihood is highest."""
    tried = [10.0 ** (i / 10) for i in range(-10, 21)]
    losses = [float(F.cross_entropy(said * scale, labels)) for scale in tried]
    return tried[losses.index(min(losses))]
