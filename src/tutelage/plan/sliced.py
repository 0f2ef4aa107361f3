"""The sliced space: the teacher with fewer channels, heads and layers, inside the limits.

Covers teachers of the families that can be sliced (see `students.spec.Family.slicing`): a slice of
one is again of its family, and `spec.json` rebuilds it. It does not cover foreign networks, whose
slices no spec can name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from tutelage.errors import InfeasibleError
from tutelage.plan.candidate import Candidate, weigh
from tutelage.plan.costs import Costing
from tutelage.students.slice import Slicing
from tutelage.students.spec import FAMILIES, StudentSpec, sliced_from


def sliced(
    costing: Costing,
    *,
    teacher: nn.Module,
    spec: StudentSpec,
    inputs: Shaped[Tensor, "b ..."],
    most_parameters: int,
    count: int,
) -> tuple[Candidate, ...]:
    """Return up to `count` slices of the teacher that keep every hard limit, most able first.

    `spec` is the teacher's own. For each of its depths, down to one block a stage or one layer, the
    widths are the largest share of the teacher's that fits, the same everywhere. Each holds the
    weights that it takes over; `inputs` choose them. Raises `InfeasibleError` where nothing fits.
    """
    slicing = FAMILIES[spec.family].slicing
    assert slicing is not None
    found = [
        widest_slice(
            StudentSpec(family=spec.family, knobs=knobs), slicing, costing, most_parameters
        )
        for knobs in slicing.shallower(spec.knobs)
    ]
    fit = sorted((c for c in found if c is not None), key=lambda c: -c.figure("macs"))
    if not fit:
        raise InfeasibleError(
            "no slice of the teacher, however narrow, keeps the limits. Choose student.space: "
            "compact, or raise the budget"
        )
    return tuple(
        dataclasses.replace(c, weights=dict(sliced_from(teacher, c.spec, inputs).state_dict()))
        for c in fit[:count]
    )


def widest_slice(
    spec: StudentSpec, slicing: Slicing, costing: Costing, most_parameters: int
) -> Candidate | None:
    """Bisect the share of channels; cost grows with it. Return the widest that fits, or None."""
    known: dict[int, Candidate] = {}
    most = slicing.steps(spec.knobs)

    def at(step: int) -> Candidate:
        if step not in known:
            knobs: Any = slicing.narrower(spec.knobs, min(1.0, step / most))
            known[step] = weigh(StudentSpec(family=spec.family, knobs=knobs), costing)
        return known[step]

    def fits(step: int) -> bool:
        return not at(step).missed and at(step).parameters <= most_parameters

    low, high = 1, most + 1
    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low)
