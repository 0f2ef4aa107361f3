"""The sliced space: the teacher with fewer channels, heads and layers, inside the limits.

Covers teachers of the families that can be sliced (see `students.spec.Family.slicing`): a slice of
one is again of its family, and `spec.json` rebuilds it. Foreign networks are of the family `graph`
where they can be traced; it does not cover others, whose slices no spec can name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from tutelage.errors import InfeasibleError
from tutelage.plan.candidate import Candidate, weigh
from tutelage.plan.costs import Costing
from tutelage.plan.uneven import uneven_slices
from tutelage.students.slices.narrowing import Narrowed
from tutelage.students.spec import FAMILIES, StudentSpec


def sliced(
    costing: Costing, *, whole: StudentSpec, most_parameters: int, count: int,
    scores: Callable[[StudentSpec], Narrowed] | None = None,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Return up to `count` slices of the teacher that keep every hard limit.

    `whole` is the teacher's own spec. For each of its depths, down to one block a stage or one
    layer, the widths are the largest share of the teacher's that fits, the same everywhere; the
    most able come first. Where `scores` say of a depth what narrowing each stage alone does, half
    of the places, and all but two, go to slices of these depths that are chosen by them
    (`plan.uneven`). Which weights slices take over is not decided here. Raises `InfeasibleError`
    where nothing fits.
    """
    found = [(spec, widest_slice(spec, costing, most_parameters)[0]) for spec in depths(whole)]
    fit = [(spec, even) for spec, even in found if even is not None]
    if not fit:
        raise InfeasibleError(
            "no slice of the teacher, however narrow, keeps the limits. Choose student.space: "
            "compact, or raise the budget"
        )
    fit.sort(key=lambda pair: -pair[1].figure("macs"))
    if scores is None:
        return tuple(even for _, even in fit[:count])
    fit = fit[: max(2, count // 2)]
    chosen = [even for _, even in fit]
    further = [_uneven(spec, even, costing, most_parameters, scores) for spec, even in fit]
    while len(chosen) < count and (more := [c for slices in further for c in islice(slices, 1)]):
        chosen += more
    return tuple(chosen[:count])


def _uneven(
    spec: StudentSpec, even: Candidate, costing: Costing, most_parameters: int,
    scores: Callable[[StudentSpec], Narrowed],
) -> Iterator[Candidate]:  # fmt: skip
    """Yield the slices of a depth that go by scores; the teacher whole needs none."""
    if even.spec != spec:
        yield from uneven_slices(spec, scores(spec), costing, most_parameters, even)


def depths(whole: StudentSpec) -> tuple[StudentSpec, ...]:
    """Return the teacher at each depth to consider, its own first."""
    slicing = FAMILIES[whole.family].slicing
    assert slicing is not None
    return tuple(
        StudentSpec(family=whole.family, knobs=knobs) for knobs in slicing.shallower(whole.knobs)
    )


def widest_slice(
    spec: StudentSpec, costing: Costing, most_parameters: int
) -> tuple[Candidate | None, Candidate]:
    """Bisect the share of channels; cost grows with it. Return the widest that fits, and the least.

    None is the widest where not even the narrowest fits.
    """
    slicing = FAMILIES[spec.family].slicing
    assert slicing is not None
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
        return None, at(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low), at(1)
