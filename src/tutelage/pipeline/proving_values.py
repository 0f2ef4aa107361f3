"""What the proof says of decisions that are values: fidelity, a cloud of points, differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.audit.values import Valued, largest_differences, value_fidelity
from tutelage.pipeline.material import Material

_POINTS = 400


def compared_values(
    material: Material, student: np.ndarray, teacher: np.ndarray, where: str, seed: int
) -> dict[str, Any]:
    """Return the proof's parts that set student beside teacher on the test split.

    `student` and `teacher` are outputs `[n, 1]`; all that is returned is in the user's unit.
    """
    valued = Valued(
        student=material.said(student), teacher=material.said(teacher),
        labels=material.data.test.labels, where=where,
    )  # fmt: skip
    return {
        "fidelity": [f.to_json() for f in value_fidelity(valued, seed=seed)],
        "points": _points(valued),
        "differences": [_difference(valued, material, i) for i in largest_differences(valued)],
    }


def _points(valued: Valued) -> list[dict[str, float]]:
    """Return some 400 examples spread evenly over the range of the labels, as they rank."""
    order, count = np.argsort(valued.labels, kind="stable"), len(valued.labels)
    chosen = order[np.unique(np.linspace(0, count - 1, min(count, _POINTS)).round().astype(int))]
    return [{who: float(getattr(valued, name)[i]) for who, name in _NAMES.items()} for i in chosen]


_NAMES = {"label": "labels", "teacher": "teacher", "student": "student"}


def _difference(valued: Valued, material: Material, i: int) -> dict[str, Any]:
    shown = material.task.show(material.data.test, i)
    kind = "image" if shown.startswith("data:image/png;base64,") else "text"
    return {kind: shown, **{who: float(getattr(valued, name)[i]) for who, name in _NAMES.items()}}
