"""From timed graphs to seconds an operation: non-negative least squares of relative errors.

Covers: one fit over all classes of operators and a call's overhead together, so that graphs of
many operators count for each; for products, whether arithmetic and traffic add up or the larger
counts, and in which blocks of channels a kernel works, as cross-validation decides with whole
graphs left out. Does not cover: interactions, such as operators that a runtime fuses in one network
and not in another; they are part of the residuals, and so of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from tutelage.devices.calibration import FIGURES, Timed, Width, features, group_of
from tutelage.records import OpCost

Group = tuple[Timed, Width]
Costs = tuple[OpCost, ...]
_CONVOLUTIONS = ("conv", "depthwise")
_PRODUCTS = ("conv", "depthwise", "linear", "product", "recurrent")
_CHANGES: tuple[dict[str, Any], ...] = (  # tried in turn
    *({"blocks": b} for b in ((1, 4), (1, 8), (1, 16), (8, 8), (16, 16))),
    {"even": 4}, {"even": 8}, {"even": 16}, {"roofline": True},
)  # fmt: skip
_FOLDS = 5
_GAIN = 0.99  # another form is taken where it lowers the error to this share
_CALLS = 2  # a call, and what int8 adds to it
_TURNS = 4  # of assigning operators to a side of the roofline


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one class is priced, as an `OpTime` has it."""

    blocks: tuple[int, int] = (1, 1)
    even: int = 0
    roofline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Seconds a call, what int8 adds to it, and the figures and the form of each class.

    Figures are in the order of `FIGURES`. `ratios` are measured / predicted of each graph, by
    a fit that had not seen it.
    """

    call_s: float
    call_int8_s: float
    seconds: dict[Group, tuple[float, ...]]
    forms: dict[Group, Form]
    ratios: tuple[float, ...]


def fit_times(graphs: Sequence[Costs], times_s: Sequence[float]) -> Fit:
    """Fit the seconds of graphs, given as what their operators cost.

    Raises `ValueError` when there are fewer than ten graphs.
    """
    if len(graphs) < 2 * _FOLDS:
        raise ValueError(f"{len(graphs)} graphs are too few to fit; {2 * _FOLDS} are the least")
    table = _Table(graphs, np.asarray(times_s, dtype=np.float64))
    forms = {group: Form() for group in table.groups}
    error = _error(table.left_out(forms))
    for group in table.groups:
        if group[0] not in _PRODUCTS:
            continue
        for change in _CHANGES:
            if "even" in change and group[0] not in _CONVOLUTIONS:
                continue
            tried = {**forms, group: replace(forms[group], **change)}
            found = _error(table.left_out(tried))
            if found < _GAIN * error:
                forms, error = tried, found
    everything = np.ones(len(graphs), dtype=bool)
    weights = table.solve(forms, everything)
    return Fit(
        call_s=float(weights[0]),
        call_int8_s=float(weights[1]),
        seconds=dict(zip(table.groups, _by_group(weights), strict=True)),
        forms=forms,
        ratios=tuple(float(r) for r in table.left_out(forms)),
    )


def conformal(ratios: Sequence[float], cover: float = 0.95) -> tuple[float, float]:
    """Return the range of measured / predicted that holds a new graph with probability `cover`.

    Order statistics of n left-out ratios, the outermost where n is too small for the share (Vovk
    2005; Lei 2018, 1604.04173, section 2.3).
    """
    ranked, n = sorted(ratios), len(ratios)
    rank = min(n, math.ceil((n + 1) * (1 + cover) / 2))
    return ranked[n - rank], ranked[rank - 1]


def _error(ratios: np.ndarray) -> float:
    """Mean error of the predictions, relative to what was measured."""
    return float(np.abs(1 / ratios - 1).mean())


def _by_group(weights: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(map(float, row)) for row in weights[_CALLS:].reshape(-1, len(FIGURES))]


class _Table:
    """The operators of all graphs as columns, and the fits over rows of graphs."""

    def __init__(self, graphs: Sequence[Costs], times: Float[np.ndarray, " graphs"]) -> None:
        self.times, self.count = times, len(graphs)
        self.ops: dict[Group, list[tuple[int, OpCost]]] = {}
        for number, costs in enumerate(graphs):
            for op in costs:
                self.ops.setdefault(group_of(op), []).append((number, op))
        self.groups = sorted(self.ops)
        self.quantized = np.zeros(self.count)
        for (_, width), ops in self.ops.items():
            if width == "int8":
                self.quantized[[number for number, _ in ops]] = 1.0
        self.known: dict[tuple[Group, tuple[int, int], int], tuple[np.ndarray, np.ndarray]] = {}
        self.summed: dict[tuple[Group, tuple[int, int], int], np.ndarray] = {}
        order = np.random.default_rng(0).permutation(self.count)
        self.folds = [order[i::_FOLDS] for i in range(_FOLDS)]

    def left_out(self, forms: dict[Group, Form]) -> Float[np.ndarray, " graphs"]:
        """Return measured / predicted, each graph by a fit without its fold."""
        ratios = np.empty(self.count)
        for fold in self.folds:
            kept = np.ones(self.count, dtype=bool)
            kept[fold] = False
            weights = self.solve(forms, kept)
            ratios[fold] = self.times[fold] / np.maximum(self._predict(forms, weights)[fold], 1e-12)
        return ratios

    def solve(self, forms: dict[Group, Form], kept: np.ndarray) -> Float[np.ndarray, " figures"]:
        """Return the non-negative weights of least relative error over the graphs in `kept`."""
        weights = self._least(self._matrix(forms, None), kept)
        if any(form.roofline for form in forms.values()):
            for _ in range(_TURNS):
                weights = self._least(self._matrix(forms, weights), kept)
        return weights

    def _least(self, matrix: np.ndarray, kept: np.ndarray) -> np.ndarray:
        relative = matrix[kept] / self.times[kept, None]
        size = np.maximum(np.linalg.norm(relative, axis=0), 1e-30)
        found, _ = nnls(relative / size, np.ones(int(kept.sum())), maxiter=50 * len(size))
        return found / size

    def _predict(self, forms: dict[Group, Form], weights: np.ndarray) -> np.ndarray:
        return self._matrix(forms, weights) @ weights

    def _matrix(self, forms: dict[Group, Form], weights: np.ndarray | None) -> np.ndarray:
        """Return a row a graph: 1, whether it has int8 operators, then the `FIGURES` of each class.

        Where the roofline holds, an operator counts on the side that `weights` makes the larger.
        """
        matrix = np.ones((self.count, _CALLS + len(FIGURES) * len(self.groups)))
        matrix[:, 1] = self.quantized
        for place, group in enumerate(self.groups):
            form, first = forms[group], _CALLS + len(FIGURES) * place
            own = slice(first, first + len(FIGURES))
            sides = weights[first : first + 2] if form.roofline and weights is not None else None
            matrix[:, own] = self._sums(group, form, sides)
        return matrix

    def _sums(
        self, group: Group, form: Form, sides: np.ndarray | None
    ) -> Float[np.ndarray, "graphs figures"]:
        """Add up what each graph has of a class; `sides` are the weights of macs and bytes."""
        plain = sides is None or not sides.all()
        key = (group, form.blocks, form.even)
        if plain and key in self.summed:
            return self.summed[key]
        where, rows = self._features(group, form)
        if not plain:
            rows, larger = rows.copy(), (rows[:, :2] * sides).argmax(1)
            rows[np.arange(len(rows)), 1 - larger] = 0.0
        sums = np.zeros((self.count, len(FIGURES)))
        np.add.at(sums, where, rows)
        if plain:
            self.summed[key] = sums
        return sums

    def _features(self, group: Group, form: Form) -> tuple[np.ndarray, np.ndarray]:
        """Return of each operator of a class its graph, and its features."""
        key = (group, form.blocks, form.even)
        if key not in self.known:
            where = np.array([number for number, _ in self.ops[group]])
            rows = np.array(
                [features(op, form.blocks, form.even) for _, op in self.ops[group]],
                dtype=np.float64,
            )
            self.known[key] = (where, rows)
        return self.known[key]
