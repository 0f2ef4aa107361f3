"""Successive halving: many students are tried briefly, the better third of them for longer.

Source: Jamieson and Talwalkar, Non-stochastic best arm identification, 2016; a factor of three as
in Li et al., Hyperband, 2018. Ranked by the metric on validation, since rankings by the loss flip
after a whole distillation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LAST, _FACTOR, _FEWEST_STEPS = 4, 3, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How many students are tried, and for how many steps each."""

    students: int
    steps: int


def rungs(students: int, steps: int) -> tuple[Rung, ...]:
    """Return the rungs for so many students; the last tries at most four, for `steps` each.

    Whatever the number, all rungs together take less than 12 times `steps`: at `steps` of 15 % of a
    whole distillation, less than two of these.
    """
    if students < 1:
        raise ValueError(f"{students} students cannot be tried")
    count = 0 if students <= _LAST else math.ceil(math.log(students / _LAST, _FACTOR) - 1e-9)
    return tuple(
        Rung(
            students=min(students, math.ceil(students / _FACTOR**rung)),
            steps=max(min(steps, _FEWEST_STEPS), round(steps / _FACTOR ** (count - rung))),
        )
        for rung in range(count + 1)
    )
