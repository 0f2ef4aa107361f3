"""Fidelity of values: how near the artifact's values are to the teacher's, and to the truth.

Covers the distance from the teacher, the share of the teacher's R2 that is kept, and where the two
differ most. Does not cover the error by range of the values, nor how sure a value is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tutelage.audit.metrics import value_metrics
from tutelage.records import Measurement

_RESAMPLES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """Values of student and teacher for the same examples, and the labels, all in one unit."""

    student: Float[np.ndarray, " n"]
    teacher: Float[np.ndarray, " n"]
    labels: Float[np.ndarray, " n"]
    where: str = ""


def value_fidelity(valued: Valued, *, seed: int = 0) -> tuple[Measurement, ...]:
    """Measure `difference` (mean, absolute, in the values' unit), `r2_to_teacher` and `kept`.

    `r2_to_teacher` is the student's R2 with the teacher's values as the truth; it is left out where
    the teacher always says the same. `kept` is the student's R2 as a share of the teacher's, both
    against the labels; it is left out where the teacher's is not above 0. Intervals are 95 %
    percentile bootstraps over the examples, paired for `kept`.
    """
    names = {"mae": "difference", "r2": "r2_to_teacher"}
    against = value_metrics(valued.student, valued.teacher, where=valued.where, seed=seed)
    found = [dataclasses.replace(f, name=names[f.name]) for f in against if f.name in names]
    kept = _kept(valued, seed)
    return (*found, kept) if kept is not None else tuple(found)


def _kept(valued: Valued, seed: int) -> Measurement | None:
    y = valued.labels - valued.labels.mean()
    columns = [(values - valued.labels) ** 2 for values in (valued.student, valued.teacher)]
    rows, n = np.stack([*columns, y, y**2], axis=1), len(y)
    draw = np.random.default_rng(seed)
    resampled = np.array([rows[draw.integers(0, n, n)].mean(0) for _ in range(_RESAMPLES)])
    value = _share(rows.mean(0, keepdims=True))[0]
    if np.isnan(value):
        return None
    low, high = np.nanquantile(_share(resampled), [0.025, 0.975])
    return Measurement(
        name="kept", value=float(value), unit="1", kind="measured", n=n,
        spread=(float(low), float(high)), where=valued.where,
    )  # fmt: skip


def _share(means: Float[np.ndarray, "resamples 4"]) -> Float[np.ndarray, " resamples"]:
    """Return R2 of the student over R2 of the teacher; NaN where the latter is not above 0.

    With variance V and mean squared errors E: (1 - E_s / V) / (1 - E_t / V).
    """
    variance = means[:, 3] - means[:, 2] ** 2
    above = variance - means[:, 1]
    share = np.full(len(means), np.nan)
    return np.divide(variance - means[:, 0], above, out=share, where=above > 0)


def largest_differences(valued: Valued, most: int = 12) -> list[int]:
    """Return the examples on which the two differ most, the furthest apart first."""
    apart = np.abs(valued.student - valued.teacher)
    order = np.argsort(-apart, kind="stable")[:most]
    return [int(i) for i in order if apart[i] > 0]
