"""Fidelity: how faithfully the artifact decides as the teacher does, apart from being right.

Covers agreement, divergence, calibration, accuracy kept and lost by class, and examples where the
two differ. Does not cover robustness to altered inputs, nor privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tutelage.records import Measurement

_BINS = 15
_RESAMPLES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Logits of student and teacher for the same examples, and their labels if there are any."""

    student: Float[np.ndarray, "n classes"]
    teacher: Float[np.ndarray, "n classes"]
    labels: Int[np.ndarray, " n"] | None
    where: str = ""


def probabilities(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Return the softmax in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=1, keepdims=True)


def fidelity(decided: Decided, *, seed: int = 0) -> tuple[Measurement, ...]:
    """Measure agreement, KL(teacher || student), calibration errors and accuracy kept.

    Intervals are 95 % percentile bootstraps over the examples (paired for `kept`).
    """
    p, q = probabilities(decided.teacher), probabilities(decided.student)
    same = (p.argmax(1) == q.argmax(1)).astype(np.float64)
    divergence = (p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(1)
    n, where = len(p), decided.where
    found = [
        _mean("agreement", same, "1", where, seed),
        _mean("kl", divergence, "1", where, seed),
    ]
    if decided.labels is None:
        return tuple(found)
    for who, probs in (("student", q), ("teacher", p)):
        value = calibration_error(probs, decided.labels)
        found.append(
            Measurement(
                name=f"calibration_error_{who}", value=value, unit="1", kind="measured", n=n,
                where=where,
            )
        )  # fmt: skip
    return (*found, _kept(p, q, decided.labels, where, seed))


def calibration_error(
    probs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> float:
    """Return the expected calibration error over 15 equal bins (Guo et al. 2017, equation 3)."""
    return float(
        sum(
            row["n"] * abs(row["accuracy"] - row["confidence"])
            for row in reliability(probs, labels)
        )
        / len(labels)
    )


def reliability(
    probs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and count of each bin that holds examples."""
    confidence, right = probs.max(1), probs.argmax(1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return [
        {
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
            "n": int((bins == b).sum()),
        }
        for b in range(_BINS)
        if (bins == b).any()
    ]


def by_class(decided: Decided, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return each class's accuracy under teacher and student."""
    assert decided.labels is not None
    teacher, student = decided.teacher.argmax(1), decided.student.argmax(1)
    rows = []
    for number, name in enumerate(classes):
        mine = decided.labels == number
        if mine.any():
            rows.append(
                {
                    "name": name,
                    "n": int(mine.sum()),
                    "teacher": float((teacher[mine] == number).mean()),
                    "student": float((student[mine] == number).mean()),
                }
            )
    return rows


def differences(decided: Decided, most: int = 12) -> list[int]:
    """Return the examples where the two differ, the teacher's surest first."""
    p = probabilities(decided.teacher)
    differ = np.flatnonzero(p.argmax(1) != decided.student.argmax(1))
    return [int(i) for i in differ[np.argsort(-p[differ].max(1), kind="stable")][:most]]


def _mean(name: str, values: np.ndarray, unit: str, where: str, seed: int) -> Measurement:
    means = _resampled(values[:, None], seed)[:, 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Measurement(
        name=name, value=float(values.mean()), unit=unit, kind="measured", n=len(values),
        spread=(float(low), float(high)), where=where,
    )  # fmt: skip


def _kept(p: np.ndarray, q: np.ndarray, labels: np.ndarray, where: str, seed: int) -> Measurement:
    teacher, student = (p.argmax(1) == labels), (q.argmax(1) == labels)
    means = _resampled(np.stack([student, teacher], 1), seed)
    low, high = np.quantile(means[:, 0] / np.maximum(means[:, 1], 1e-9), [0.025, 0.975])
    value = float(student.mean() / max(teacher.mean(), 1e-9))
    return Measurement(
        name="kept", value=value, unit="1", kind="measured", n=len(labels),
        spread=(float(low), float(high)), where=where,
    )  # fmt: skip


def _resampled(values: Float[np.ndarray, "n k"], seed: int) -> Float[np.ndarray, "resamples k"]:
    """Return column means of resampled rows, one resample at a time: memory stays O(n)."""
    draw, n = np.random.default_rng(seed), len(values)
    return np.array([values[draw.integers(0, n, n)].mean(0) for _ in range(_RESAMPLES)])
