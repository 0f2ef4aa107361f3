"""The elastic space: cuts of one student that was taught once for all widths, inside the limits."""

from __future__ import annotations

from itertools import islice

from tutelage.plan.candidate import Candidate, stand_in, weigh
from tutelage.plan.costs import Costing
from tutelage.plan.refusal import infeasible, shortfall
from tutelage.plan.sliced import widest_slice
from tutelage.plan.uneven import uneven_slices
from tutelage.students.slices.narrowing import Narrowed
from tutelage.students.spec import StudentSpec


def cuts(
    costing: Costing, *, whole: StudentSpec, least: StudentSpec, count: int, scores: Narrowed
) -> tuple[Candidate, ...]:
    """Return up to `count` cuts of the elastic student that keep every hard limit.

    `whole` is its own spec, `least` the narrowest that was taught, and `scores` say what narrowing
    each stage alone does. First comes the widest cut with one share of all widths, then those with
    a width for each stage (`plan.uneven`). Raises `InfeasibleError` where not even `least` fits.
    """
    even = fitting_cut(whole, least, costing)
    if even.spec == whole:
        return (even,)
    uneven = (
        candidate
        for candidate in uneven_slices(whole, scores, costing, _whole(whole, costing), even)
        if within(candidate.spec, least)
    )
    return (even, *islice(uneven, count - 1))


def fitting_cut(whole: StudentSpec, least: StudentSpec, costing: Costing) -> Candidate:
    """Return the widest cut that fits; raises `InfeasibleError` where not even `least` does."""
    even = widest_cut(whole, least, costing)
    if even.missed:
        networks = [stand_in(least)]
        raise infeasible(shortfall([even], networks, costing), costing.device, given=False)
    return even


def widest_cut(whole: StudentSpec, least: StudentSpec, costing: Costing) -> Candidate:
    """Return the widest cut with one share of all widths that fits; `least` where none does."""
    even = widest_slice(whole, costing, _whole(whole, costing))[0]
    return even if even is not None and within(even.spec, least) else weigh(least, costing)


def _whole(whole: StudentSpec, costing: Costing) -> int:
    return weigh(whole, costing).parameters


def within(spec: StudentSpec, least: StudentSpec) -> bool:
    """Say whether a cut is as wide in every stage as the narrowest that was taught."""
    return all(w >= n for w, n in zip(spec.knobs.widths, least.knobs.widths, strict=True))
