"""Successive halving: many students are tried briefly, the better quarter of them for longer.

Source: Jamieson and Talwalkar, Non-stochastic best arm identification, 2016; a factor of four as
in Li et al., Hyperband, 2018. Ranked by the metric on validation, since rankings by the loss flip
after a whole distillation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FAR = 0.01  # of the metric: who is further behind after a rung, and by more than chance, is out
_FACTOR = 4
_LAST, _FEWEST_STEPS = 4, 50
_LAST_BEGUN, _FEWEST_STEPS_BEGUN = 2, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How many students are tried at most, and for how many steps each."""

    students: int
    steps: int


def rungs(students: int, steps: int, *, begun: bool = False) -> tuple[Rung, ...]:
    """Return the rungs for so many students; the last tries at most four, for `steps` each.

    Each rung is a quarter of the next, but no less than 50 steps. Where some have `begun` with the
    teacher's weights a few steps tell which of those are good, and fresh ones are far behind: the
    last rung then tries at most two, and there is one before it, of no less than 30 steps, unless
    that is more than half of `steps`. All rungs together take less than 16 times `steps`, and 3
    times of four students that have begun.
    """
    if students < 1:
        raise ValueError(f"{students} students cannot be tried")
    last, fewest = (_LAST_BEGUN, _FEWEST_STEPS_BEGUN) if begun else (_LAST, _FEWEST_STEPS)
    count = max(0, math.ceil(math.log(students / last, _FACTOR) - 1e-9))
    if begun and students > 1:
        count = max(1, count) if 2 * fewest <= steps else 0
    return tuple(
        Rung(
            students=max(min(students, last), math.ceil(students / _FACTOR**rung)),
            steps=max(min(steps, fewest), round(steps / _FACTOR ** (count - rung))),
        )
        for rung in range(count + 1)
    )
