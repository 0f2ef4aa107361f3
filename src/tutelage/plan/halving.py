"""Successive halving: many students are tried briefly, the better quarter of them for longer.

Source: Jamieson and Talwalkar, Non-stochastic best arm identification, 2016; a factor of four as
in Li et al., Hyperband, 2018. Ranked by the metric on validation, since rankings by the loss flip
after a whole distillation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FAR = 0.01  # of the metric: who is further behind after a rung, and by more than chance, is out
_LAST, _FACTOR, _FEWEST_STEPS = 2, 4, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How many students are tried at most, and for how many steps each."""

    students: int
    steps: int


def rungs(students: int, steps: int) -> tuple[Rung, ...]:
    """Return the rungs for so many students; the last tries at most two, for `steps` each.

    Each rung is a quarter of the next, but no less than 30 steps. There are two or more, but for
    one student and where 30 steps are more than half of `steps`. All together take less than 8
    times `steps`, and 3 times of four students: of a tenth of a whole distillation each, less than
    one and a third of one.
    """
    if students < 1:
        raise ValueError(f"{students} students cannot be tried")
    count = max(1, math.ceil(math.log(students / _LAST, _FACTOR) - 1e-9))
    if students == 1 or 2 * _FEWEST_STEPS > steps:
        return (Rung(students=students, steps=steps),)
    return tuple(
        Rung(
            students=min(students, max(_LAST, math.ceil(students / _FACTOR**rung))),
            steps=max(_FEWEST_STEPS, round(steps / _FACTOR ** (count - rung))),
        )
        for rung in range(count + 1)
    )
