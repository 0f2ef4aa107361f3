"""The statistics of the grid: intervals over seeds, paired differences, ranks over cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean over `n` values and half its 95 % t-interval; NaN where `n` is 1."""

    mean: float
    half: float
    n: int

    @property
    def clear(self) -> bool:
        """Say whether the interval leaves 0 out."""
        return abs(self.mean) > self.half


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Mean ranks of methods over blocks (1 is best), whether they differ, and by how much.

    `critical` is the difference of two mean ranks that Nemenyi's test calls significant at 5 %.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    statistic: float
    p: float
    critical: float


def spread(values: Sequence[float]) -> Spread:
    """Return the mean with its 95 % interval by Student's t."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Spread(mean=mean, half=math.nan, n=n)
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Spread(mean=mean, half=half, n=n)


def paired(mine: Mapping[int, float], other: Mapping[int, float]) -> Spread | None:
    """Return the spread of the differences over the seeds that both have; None without any."""
    both = sorted(set(mine) & set(other))
    return spread([mine[seed] - other[seed] for seed in both]) if both else None


def ranked(scores: Float[np.ndarray, "blocks methods"]) -> Float[np.ndarray, "blocks methods"]:
    """Return the rank of every method in every block: 1 for the highest, equals share theirs."""
    return stats.rankdata(-scores, axis=1)


def critical_difference(methods: int, blocks: int) -> float:
    """Return Nemenyi's critical difference at 5 %: q sqrt(k (k + 1) / (6 N)) (Demsar 2006)."""
    q = float(stats.studentized_range.ppf(0.95, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def ranking(
    methods: tuple[str, ...], scores: Float[np.ndarray, "blocks methods"]
) -> Ranking | None:
    """Return mean ranks with Friedman's test; None for fewer than three methods or two blocks."""
    blocks, count = scores.shape
    if count < 3 or blocks < 2:
        return None
    flat = bool((scores == scores[:, :1]).all())  # all equal everywhere: scipy would divide by 0
    statistic, p = (0.0, 1.0) if flat else stats.friedmanchisquare(*scores.T)
    mean = ranked(scores).mean(axis=0)
    order = np.argsort(mean, kind="stable")
    return Ranking(
        methods=tuple(methods[i] for i in order),
        ranks=tuple(float(mean[i]) for i in order),
        blocks=blocks,
        statistic=float(statistic),
        p=float(p),
        critical=critical_difference(count, blocks),
    )


def groups(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Return the longest runs (first, last) of ascending ranks that lie within the difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(len(ranks)) if ranks[i] - ranks[first] <= critical)
        if last > first and not any(a <= first and last <= b for a, b in found):
            found.append((first, last))
    return found
