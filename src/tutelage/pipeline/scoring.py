"""The figure by which decisions are judged: accuracy, or agreement where there are no labels."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from tutelage.records import Measurement
from tutelage.tasks import accuracy


def score(
    logits: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"] | None,
    teacher: Float[np.ndarray, "n classes"],
    *,
    split: str,
    where: str,
) -> Measurement:
    """Measure `accuracy_SPLIT` against the labels, or `agreement_SPLIT` with the teacher's logits.

    Both are shares of 1, with Wilson's interval.
    """
    metric, wanted = ("agreement", teacher.argmax(1)) if labels is None else ("accuracy", labels)
    figure = accuracy(logits.argmax(1), wanted, where=where)
    return dataclasses.replace(figure, name=f"{metric}_{split}")
