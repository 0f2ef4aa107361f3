"""One width for each stage, by an integer program: scores and costs in, widths out.

Minimises the sum over stages of what narrowing each alone was found to do, within limits whose
costs are sums over stages and pairs of neighbouring ones. What is no such sum (peak memory), or not
quite, is for the caller to check, who cuts off what fails and asks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from tutelage.errors import StudentError

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint

_MOST_WIDTHS = 12  # of a stage, beside those that were scored: pairs are as many squared
_LEAST_OF_EVEN = 2 / 3
_SOLVER_S = 60.0

Chosen = tuple[int, ...]
Cut = tuple[tuple[bool, ...], ...]
"""For each stage the widths that must not be taken in all stages at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The widths that a stage may take, ascending, and how far each moves the decision, in nats."""

    widths: tuple[int, ...]
    moved: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A figure as `fixed` + what each stage's width adds + what neighbours add; at most `limit`.

    `alone[i][k]` is of the k-th width of stage i, `joint[i][k, l]` of it and the l-th of the next.
    """

    fixed: float
    alone: tuple[Float[np.ndarray, " k"], ...]
    joint: tuple[Float[np.ndarray, "k l"], ...]
    limit: float


def stages_of(
    scored: Sequence[Sequence[int]], moved: Sequence[Sequence[float]],
    sizes: Sequence[Sequence[int]], even: Chosen,
) -> tuple[Stage, ...]:  # fmt: skip
    """Return stages with widths between the scored ones too, evenly picked from `sizes`.

    Between two scored widths the score is taken to go along a line. `even` are the widths of the
    slice with one share; those under two thirds of them are left out. Scores level off where a
    decision is no better than chance, so that to narrow on seems free, and it is not once taught.
    """
    found = []
    for known, scores, able, one in zip(scored, moved, sizes, even, strict=True):
        between = [n for n in able if n > known[0]]
        every = -(-len(between) // _MOST_WIDTHS) or 1
        wide = {n for n in (*known, *between[::every]) if n >= _LEAST_OF_EVEN * one}
        widths = tuple(sorted({*wide, one}))
        found.append(Stage(widths=widths, moved=tuple(np.interp(widths, known, scores).tolist())))
    return tuple(found)


def fitted(stages: Sequence[Stage], weighed: Mapping[Chosen, float], limit: float) -> Cost:
    """Fit a figure of weighed networks (widths to figure) by a polynomial in the widths.

    figure = a + sum_i (b_i w_i + c_i w_i^2) + sum_i d_i w_i w_(i+1), as weights, operations and
    activations of convolutions are; least squares of relative errors, those near the limit first.
    """
    widths = np.array(list(weighed), float)
    values = np.array(list(weighed.values()))
    count = len(stages)
    unit = np.array([stage.widths[-1] for stage in stages], float)
    scaled = widths / unit
    terms = np.column_stack(
        [np.ones(len(widths)), scaled, scaled**2, scaled[:, :-1] * scaled[:, 1:]]
    )
    weight = 1 / (values + 0.1 * abs(limit) + np.finfo(float).tiny)
    weight = weight / (0.1 + np.abs(values - limit) / abs(limit))
    a = np.linalg.lstsq(terms * weight[:, None], values * weight)[0]
    each = [np.array(stage.widths) / most for stage, most in zip(stages, unit, strict=True)]
    return Cost(
        fixed=float(a[0]),
        alone=tuple(a[1 + i] * w + a[1 + count + i] * w**2 for i, w in enumerate(each)),
        joint=tuple(
            a[1 + 2 * count + i] * np.outer(each[i], each[i + 1]) for i in range(count - 1)
        ),
        limit=limit,
    )


def cut_off(
    stages: Sequence[Stage], widths: Chosen, what: Literal["as wide", "as narrow"],
    among: Sequence[int] | None = None,
) -> Cut:  # fmt: skip
    """Return the cut of all that is as wide as `widths` in every stage, or as narrow.

    Only stages `among` these count, where they are given.
    """
    wide, counts = what == "as wide", range(len(stages)) if among is None else among
    return tuple(
        tuple(i not in counts or (w >= here if wide else w <= here) for w in stage.widths)
        for i, (stage, here) in enumerate(zip(stages, widths, strict=True))
    )


def choose(stages: Sequence[Stage], costs: Sequence[Cost], cuts: Sequence[Cut]) -> Chosen | None:
    """Return the widths that move the decision least within all costs and cuts; None if none do.

    Each width of a stage is a binary variable, exactly one of which is 1; each pair of neighbouring
    widths a variable between 0 and 1 that their sums bind to the product of the two, so that costs
    of pairs are linear. Raises `StudentError` where the solver ends without an answer.
    """
    from scipy.optimize import Bounds, milp

    sizes = [len(stage.widths) for stage in stages]
    scores = np.concatenate([stage.moved for stage in stages])
    pairs = sum(k * n for k, n in zip(sizes, sizes[1:], strict=False))
    objective = np.concatenate([scores / max(np.abs(scores).max(), 1e-12), np.zeros(pairs)])
    found: Any = milp(
        objective,
        integrality=np.concatenate([np.ones(sum(sizes)), np.zeros(pairs)]),
        bounds=Bounds(0, 1),
        constraints=[_one_each(sizes, pairs), *_within(costs, cuts, pairs)],
        options={"mip_rel_gap": 0.0, "time_limit": _SOLVER_S},
    )
    if found.x is None:
        if found.status == 2:
            return None
        raise StudentError(
            f"the integer program of widths ended without an answer ({found.message}); choose "
            "student.space: compact"
        )
    starts = np.cumsum([0, *sizes])
    return tuple(
        stage.widths[int(np.argmax(found.x[start : start + size]))]
        for stage, start, size in zip(stages, starts, sizes, strict=False)
    )


def _one_each(sizes: Sequence[int], pairs: int) -> LinearConstraint:
    """Bind the variables: one width a stage, and pairs to the two widths that they are of."""
    from scipy.optimize import LinearConstraint

    starts = np.cumsum([0, *sizes])
    one = np.zeros((len(sizes), starts[-1] + pairs))
    for i, row in enumerate(one):
        row[starts[i] : starts[i + 1]] = 1
    parts, column = [one], starts[-1]
    for i, (here, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        both = np.zeros((here + after, one.shape[1]))
        both[:, starts[i] : starts[i + 2]] = -np.eye(here + after)
        both[:here, column : column + here * after] = np.kron(np.eye(here), np.ones(after))
        both[here:, column : column + here * after] = np.kron(np.ones(here), np.eye(after))
        parts.append(both)
        column += here * after
    rows = np.concatenate(parts)
    right: Any = np.concatenate([np.ones(len(sizes)), np.zeros(len(rows) - len(sizes))])
    return LinearConstraint(rows, right, right)


def _within(costs: Sequence[Cost], cuts: Sequence[Cut], pairs: int) -> list[LinearConstraint]:
    from scipy.optimize import LinearConstraint

    found = []
    for cost in costs:
        row = np.concatenate([*cost.alone, *(part.ravel() for part in cost.joint)])
        found.append((row / abs(cost.limit), (cost.limit - cost.fixed) / abs(cost.limit)))
    for cut in cuts:
        row = np.concatenate([np.concatenate(cut).astype(float), np.zeros(pairs)])
        found.append((row, len(cut) - 1))
    return [LinearConstraint(row[None], -np.inf, most) for row, most in found]
