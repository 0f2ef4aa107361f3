"""The compact space: for each structure of a family, the widest network inside the limits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from tutelage.errors import InfeasibleError
from tutelage.plan.candidate import Candidate, stand_in, weigh
from tutelage.plan.costs import Costing
from tutelage.plan.refusal import infeasible, shortfall
from tutelage.students.spec import FAMILIES, StudentSpec

_NARROWEST, _WIDEST = 4, 96


def candidates(
    costing: Costing,
    *,
    families: Sequence[str],
    given: dict[str, Any],
    most_parameters: int,
    count: int,
    seed: int = 0,
    shrinks: Sequence[int] = (1,),
) -> tuple[Candidate, ...]:
    """Return up to `count` candidates that keep every hard limit, the most able first.

    Each structure of each family is widened by bisection until a limit binds; ability is guessed by
    operations, and decided later by short distillations. A `count` above the families' own
    structures is filled with structures drawn at random. `given` holds the knobs that the data
    decides. Where there are several `shrinks` (see `structures_of`), they take turns. Raises
    `InfeasibleError` when not even the narrowest network fits, naming the limit that binds and what
    would do.
    """
    found = []
    narrowest = []
    own = structures_of(families, shrinks)
    for family, structure in [*own, *drawn_structures(families, count - len(own), seed)]:
        best, smallest = widest(family, structure, costing, given, most_parameters)
        narrowest.append(smallest)
        if best is not None:
            found.append(best)
    if not found:
        _refuse(narrowest, costing, most_parameters)
    distinct = {str(c.spec.to_json()): c for c in found}.values()
    return tuple(_by_turns(sorted(distinct, key=lambda c: -c.figure("macs")))[:count])


def structures_of(
    families: Sequence[str], shrinks: Sequence[int] = (1,)
) -> list[tuple[str, Any]]:  # fmt: skip
    """Return every structure of these families, with the family's name.

    Each comes with every one of `shrinks`: squares of how many pixels a side are averaged first.
    """
    known = [(name, structure) for name in families for structure in FAMILIES[name].structures]
    return [
        (name, structure if shrink == 1 else dataclasses.replace(structure, shrink=shrink))
        for shrink in shrinks
        for name, structure in known
    ]


def _by_turns(ranked: list[Candidate]) -> list[Candidate]:
    """Order ranked candidates so that those of each shrink, best first, take turns."""
    seen: Counter[int] = Counter()
    turns = []
    for candidate in ranked:
        shrink = getattr(candidate.spec.knobs, "shrink", 1)
        turns.append(seen[shrink])
        seen[shrink] += 1
    order = sorted(range(len(ranked)), key=lambda i: turns[i])  # stable: by rank within a turn
    return [ranked[i] for i in order]


def drawn_structures(families: Sequence[str], count: int, seed: int) -> list[tuple[str, Any]]:
    """Return `count` structures drawn at random; none where no family can draw."""
    drawing = [(name, FAMILIES[name].drawn) for name in families]
    able = [(name, drawn) for name, drawn in drawing if drawn is not None]
    random = np.random.default_rng([seed, 11])
    found = []
    for number in range(count if able else 0):
        name, drawn = able[number % len(able)]
        found.append((name, drawn(random)))
    return found


def widest(
    family: str, structure: Any, costing: Costing, given: dict[str, Any], most_parameters: int
) -> tuple[Candidate | None, Candidate]:
    """Bisect the base width; cost grows with it. Return the widest that fits, and the narrowest."""
    known: dict[int, Candidate] = {}
    sized = FAMILIES[family].sized
    assert sized is not None  # a family with structures can size them

    def at(width: int) -> Candidate:
        if width not in known:
            knobs = sized(structure, width, given)
            known[width] = weigh(StudentSpec(family=family, knobs=knobs), costing)
        return known[width]

    def fits(width: int) -> bool:
        candidate = at(width)
        return not candidate.missed and candidate.parameters <= most_parameters

    low, high = _NARROWEST, _WIDEST
    if not fits(low):
        return None, at(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low), at(_NARROWEST)


def _refuse(narrowest: Sequence[Candidate], costing: Costing, most_parameters: int) -> NoReturn:
    if any(not c.missed for c in narrowest):
        least = min(c.parameters for c in narrowest if not c.missed)
        raise InfeasibleError(
            f"the smallest student has {least:,} parameters, and at most {most_parameters:,}, half "
            "of the teacher's, are worth a student: ship the teacher, or give student.spec"
        )
    networks = (stand_in(candidate.spec) for candidate in narrowest)
    raise infeasible(shortfall(narrowest, networks, costing), costing.device, given=False)
