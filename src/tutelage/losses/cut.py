"""Readings cut to some of their examples: masked ones, or those with a label."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from tutelage.types import Reading


def labelled_only(
    student: Reading, teacher: Reading | None, labels: Tensor | None
) -> tuple[Reading, Reading | None, Tensor | None]:
    """Cut to the examples that have a label, and put labels beside the student's decision."""
    if labels is None:
        return student, teacher, None
    device = student.decision.device
    known = labels >= 0
    if labels.is_floating_point() or bool(known.all()):  # values have no number for 'none'
        return student, teacher, labels.to(device)
    mask = known.to(device)
    cut = None if teacher is None else selected(teacher, mask)
    return selected(student, mask), cut, labels[known].to(device)


def selected(reading: Reading, mask: Bool[Tensor, " batch"]) -> Reading:
    """Return the reading of the examples where `mask` is true."""
    return reading.changed(lambda x: x[mask] if x.numel() else x)
