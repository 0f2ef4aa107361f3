"""When an input may stop early: thresholds on the confidence of early decisions.

Covers networks with at most three exits, asked in order: an input stops at the first whose largest
probability reaches its threshold. Thresholds are chosen on one split by trying them all; what they
cost there is no promise for another split, so the proof counts again on the test split.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tutelage.audit.fidelity import probabilities

# Thresholds tried at each exit, by how many exits there are: some thousand combinations.
_LEVELS = {1: 200, 2: 48, 3: 14}

Floats = tuple[float, ...]
Walked = Iterator[tuple[Floats, Floats, float]]
Costs = Callable[[tuple[int, ...]], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """Which exits are kept, and when an input stops there.

    `thresholds` and `shares` go with `used`; the last share is of inputs that stop nowhere. `cost`
    is the mean over inputs and `whole` that of the network without exits, in the same unit. `lost`
    is the share of decisions that stopping turns wrong, less those that it turns right.
    """

    used: tuple[int, ...]
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    cost: float
    whole: float
    lost: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


def confidence(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Return the largest probability of each decision."""
    return probabilities(logits).max(axis=1)


def stops(
    sure: Float[np.ndarray, "exits n"], used: Sequence[int], thresholds: Sequence[float]
) -> Int[np.ndarray, " n"]:
    """Return which of the `used` exits each input stops at; as many as there are: at none."""
    place = np.full(sure.shape[1], len(used))
    for at in reversed(range(len(used))):
        place[sure[used[at]] >= thresholds[at]] = at
    return place


def choose_stops(
    sure: Float[np.ndarray, "exits n"],
    right: Bool[np.ndarray, "decisions n"],
    costs: Costs,
    most_lost: float,
) -> Stopping:
    """Return the exits and thresholds of least mean cost that lose at most `most_lost` decisions.

    `sure` is each exit's confidence. `right` says which decisions are right: each exit's, and last
    the final one. `costs(used)` are what an input costs that stops at each of the `used` exits, and
    last of one that stops nowhere.
    """
    whole = float(costs(())[0])
    best = Stopping(used=(), thresholds=(), shares=(1.0,), cost=whole, whole=whole, lost=0.0)
    for count in range(1, len(sure) + 1):
        for used in itertools.combinations(range(len(sure)), count):
            for found in _every(sure, right, used, [whole, *costs(used)]):
                cheaper = found.cost < best.cost - 1e-9 * whole
                if found.lost <= most_lost + 1e-12 and cheaper:
                    best = found
    return best


def tradeoff(
    sure: Float[np.ndarray, "exits n"], right: Bool[np.ndarray, "decisions n"],
    costs: Costs, used: tuple[int, ...],
) -> list[tuple[float, float]]:  # fmt: skip
    """Return (mean cost, share right) of thresholds that none beats in both, the dearest first."""
    prices = [float(costs(())[0]), *costs(used)]
    found = [
        (stopping.cost, float(right[-1].mean()) - stopping.lost)
        for stopping in _every(sure, right, used, prices)
    ]
    front: list[tuple[float, float]] = []
    for cost, share in sorted(found, key=lambda pair: (pair[0], -pair[1])):
        if not front or share > front[-1][1]:
            front.append((cost, share))
    return front[::-1]


def _every(
    sure: np.ndarray, right: np.ndarray, used: tuple[int, ...], prices: Sequence[float]
) -> Iterator[Stopping]:
    """Yield what each combination of thresholds comes to; `prices` are of the whole, then stops."""
    whole, *costs = prices
    levels = [_levels(sure[i], _LEVELS[len(used)]) for i in used]
    lost = [(right[-1] * 1.0 - right[i]) / right.shape[1] for i in used]
    masks = [[sure[i] >= level for level in row] for i, row in zip(used, levels, strict=True)]

    def walk(at: int, still: np.ndarray, taken: Floats, shares: Floats, gone: float) -> Walked:
        if at == len(used):
            yield taken, (*shares, float(still.mean())), gone
            return
        for level, mask in zip(levels[at], masks[at], strict=True):
            here = still & mask
            more = gone + float(lost[at][here].sum())
            yield from walk(
                at + 1, still & ~mask, (*taken, level), (*shares, float(here.mean())), more
            )

    for taken, shares, gone in walk(0, np.ones(sure.shape[1], bool), (), (), 0.0):
        cost = float(np.dot(shares, costs))
        yield Stopping(
            used=used, thresholds=taken, shares=shares, cost=cost, whole=whole, lost=gone
        )


def _levels(sure: np.ndarray, most: int) -> list[float]:
    """Return thresholds to try, each half-way between two confidences: rounding moves none across.

    The lowest lets every input stop.
    """
    ranked = np.unique(sure)
    at = np.unique(np.linspace(0, len(ranked) - 1, most).round().astype(int))
    below = np.where(at > 0, ranked[at - 1], 0.0)
    return ((below + ranked[at]) / 2).tolist()
