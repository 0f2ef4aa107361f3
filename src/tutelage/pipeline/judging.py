"""What decisions are judged by: accuracy or agreement of classes, R2 and the errors of values."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from tutelage.audit.metrics import class_metrics, value_metrics
from tutelage.pipeline.material import Material
from tutelage.records import Measurement
from tutelage.tasks import accuracy


def split_figures(
    material: Material, split: str, decision: Float[np.ndarray, "n k"], where: str, *,
    teacher: Float[np.ndarray, "n k"] | None = None,
) -> list[Measurement]:  # fmt: skip
    """Measure the decisions about one split; names end in the split's.

    Without labels it is agreement with the `teacher`, or nothing where that is not given. Of the
    test split, classes have macro F1 and balanced accuracy too; of values R2 comes first.
    """
    labels = getattr(material.data, split).labels
    if labels is None:
        if teacher is None:
            return []
        same = accuracy(material.said(decision), material.said(teacher), where=where)
        figures = [dataclasses.replace(same, name="agreement")]
    elif material.decides == "values":
        found = value_metrics(material.said(decision), labels, where=where)
        figures = sorted(found, key=lambda figure: figure.name != material.metric)
    else:
        figures = [accuracy(material.said(decision), labels, where=where)]
        if split == "test":
            figures += class_metrics(decision, labels, where=where)
    return [dataclasses.replace(figure, name=f"{figure.name}_{split}") for figure in figures]


def validation_figure(material: Material, value: float, where: str) -> Measurement:
    """Return the figure that training ended with; R2 has no interval without its examples."""
    n = material.validation.count
    return Measurement(
        name=f"{material.metric}_validation", value=value, unit="1", kind="measured", n=n,
        spread=material.interval(value, n), where=where,
    )  # fmt: skip
