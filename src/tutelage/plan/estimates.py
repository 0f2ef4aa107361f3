"""How good a student would be that was never tried, estimated from those that were.

The error after a short distillation falls about as a power of parameters, of operations and of
steps; the exponents are fitted to the stored trials of one precision. Does not know structures: two
networks of equal size and operations get the same estimate, and the interval, made of what the fit
gets wrong of students that it was not shown, says how much that hides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import lsq_linear
from scipy.stats import t as student_t

from tutelage.export.graph import GraphCosts
from tutelage.plan.scores import Score
from tutelage.records import Measurement

FEWEST = 4  # students: a level, two exponents, and one to be wrong about
_STEEPEST = 1.0  # the error halves, at best, when size, operations or steps double
_LEAST_ERROR = 1e-3  # below it counts say nothing: a validation split has thousands at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """The fitted law `log e = level - a log parameters - b log MACs - c log steps`.

    `misfit` is the root mean square error in log e of students left out of the fit, `tried` how
    many there were, `steps` how long the longest were tried: for as long estimates hold.
    """

    name: str
    level: float
    exponents: tuple[float, float, float]
    misfit: float
    tried: int
    steps: int

    def of(self, parameters: int, counted: GraphCosts) -> Measurement:
        """Return the estimate with its 95 % interval."""
        size = _row(parameters, counted.macs, self.steps)
        log_error = self.level - float(np.dot(self.exponents, size))
        wide = float(student_t.ppf(0.975, self.tried - 1)) * self.misfit
        low, value, high = (max(0.0, 1 - math.exp(log_error + k * wide)) for k in (1, 0, -1))
        return Measurement(
            name=self.name,
            value=value,
            unit="1",
            kind="estimated",
            n=self.tried,
            spread=(low, high),
            where=f"by size and operations, from {self.tried} students that were tried",
        )


def estimator(scores: Sequence[Score]) -> Estimator | None:
    """Fit the law to the trials; None where fewer than `FEWEST` students were tried."""
    figures = [(s, s.trial) for s in scores if s.trial is not None]
    if len(figures) < FEWEST:
        return None
    sizes = np.array([_row(s.parameters, s.counted.macs, s.steps) for s, _ in figures])
    errors = np.log([max(_LEAST_ERROR, 1 - trial.value) for _, trial in figures])
    level, exponents = _fit(sizes, errors)
    missed = []
    for i in range(len(figures)):
        rest = np.arange(len(figures)) != i
        without, slopes = _fit(sizes[rest], errors[rest])
        missed.append(without - float(np.dot(slopes, sizes[i])) - errors[i])
    return Estimator(
        name=figures[0][1].name,
        level=level,
        exponents=exponents,
        misfit=float(np.sqrt(np.mean(np.square(missed)))),
        tried=len(figures),
        steps=max(score.steps for score, _ in figures),
    )


def _row(parameters: int, macs: int, steps: int) -> tuple[float, float, float]:
    return math.log(max(1, parameters)), math.log(max(1, macs)), math.log(max(1, steps))


def _fit(
    sizes: Float[np.ndarray, "n 3"], errors: Float[np.ndarray, " n"]
) -> tuple[float, tuple[float, float, float]]:
    columns = np.column_stack([np.ones(len(errors)), -sizes])
    bounds = ([-np.inf, 0.0, 0.0, 0.0], [np.inf, _STEEPEST, _STEEPEST, _STEEPEST])
    level, a, b, c = lsq_linear(columns, errors, bounds=bounds).x
    return float(level), (float(a), float(b), float(c))
