"""Labels that are values: read as numbers, split evenly, learned in units of their spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from tutelage.errors import DataError
from tutelage.tasks.cells import MISSING
from tutelage.types import Decides

_STRATA = 10
_WORST = -1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Mean and standard deviation of the training labels, in the user's unit.

    A network's output `o` means the value `o * std + mean`.
    """

    mean: float
    std: float

    @classmethod
    def fit(cls, values: Float[np.ndarray, " n"]) -> Target:
        """Measure both; `values` must not all be equal."""
        return cls(mean=float(values.mean()), std=float(values.std()))

    def standard(self, values: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return values in units of the spread about the mean, float32."""
        return ((values.double() - self.mean) / self.std).float()

    def in_unit(self, decision: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, " n"]:
        """Return what a network's outputs mean in the user's unit."""
        return decision[:, 0].astype(np.float64) * self.std + self.mean


def as_values(
    labels: Sequence[Any] | np.ndarray, source: str, names: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Return labels as numbers, one an example.

    `names` says how each example is called in messages. Raises `DataError` for several an example,
    and for what is missing or no finite number.
    """
    if isinstance(labels, np.ndarray):
        if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
            raise DataError(
                f"{source}: labels of shape {list(labels.shape)} are several values an example, "
                "and one is supported: make one run a value"
            )
        labels = labels.reshape(-1)
        labels = (labels.astype(str) if labels.dtype.kind in "SMmc" else labels).tolist()
    numbers = [_number(cell) for cell in labels]
    for cell, number, name in zip(labels, numbers, names, strict=False):
        shown = "" if cell is None else str(cell).strip()
        if shown.lower() in MISSING:
            raise DataError(f"{source}: {name} has no label: fill it in, or remove the series")
        if isinstance(cell, (list, tuple, np.ndarray)):
            raise DataError(
                f"{source}: {name} has several values as its label, and one is supported: make one "
                "run a value"
            )
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise DataError(
                f"{source}: {name} has the label '{shown[:40]}', which is no finite number of "
                "single precision: correct it, or give classes (data.target: classes)"
            )
    return np.array(numbers, np.float64)


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def strata(
    values: Float[np.ndarray, " n"], ranks: UInt64[np.ndarray, " n"], share: float
) -> Int[np.ndarray, " n"]:
    """Return groups of like values, from which equal shares can be taken: at most ten.

    Examples of equal rank (equal content) are in one group, that of their least value. A function
    of values and ranks alone: the order of the examples does not matter.
    """
    _, own, counts = np.unique(ranks, return_inverse=True, return_counts=True)
    least = np.full(len(counts), np.inf)
    np.minimum.at(least, own, values)
    order = np.argsort(least, kind="stable")  # the unique ranks ascend, so they break ties
    before = np.empty(len(counts), np.int64)
    before[order] = np.cumsum(counts[order]) - counts[order]
    groups = max(1, min(_STRATA, int(share * len(values))))
    return (before * groups // len(values))[own]


def check_varied(values: Float[np.ndarray, " n"], source: str, split: str) -> None:
    """Raise `DataError` unless there are two different values: else R2 is not defined."""
    if len(values) < 2:
        raise DataError(
            f"{source} leaves {len(values)} {split} examples where values need 2 at least: add some"
        )
    if values.min() == values.max():
        raise DataError(
            f"{source}: every {split} example has the value {values[0]:.6g}, so there is nothing "
            "to learn or to measure: check the labels, or add examples with other values"
        )


def score(said: Any, wanted: Any, decides: Decides) -> float:
    """Return the one figure to choose by, higher is better: accuracy of classes, R2 of values.

    `said` are class numbers or values `[n]`, arrays or tensors as `wanted`. R2 = 1 - sum (said -
    wanted)^2 / sum (wanted - mean)^2; it is cut off at -1,000,000, which stands for answers that
    are not finite too.
    """
    if decides == "classes":
        return int((said == wanted).sum()) / len(wanted)
    x, y = (torch.as_tensor(v).double() for v in (said, wanted))
    value = float(1 - (x - y).square().sum() / (y - y.mean()).square().sum())
    return max(value, _WORST) if math.isfinite(value) else _WORST
