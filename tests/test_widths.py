"""The integer program of widths, against trying every choice, and what is fitted and cut off."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tutelage.errors import StudentError
from tutelage.plan.widths import Cost, Stage, choose, cut_off, fitted, stages_of


def instance(seed: int, stages: int = 3):
    """Return stages with random scores, and two random costs, each met by some of the choices."""
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 5, stages)
    found = tuple(
        Stage(widths=tuple(range(2, 2 * n + 2, 2)), moved=tuple(random.random(n))) for n in sizes
    )
    costs = []
    for share in random.uniform(0.2, 0.9, 2):
        cost = Cost(
            fixed=float(random.random()),
            alone=tuple(random.random(n) for n in sizes),
            joint=tuple(
                random.random((n, k)) - 0.3 for n, k in zip(sizes, sizes[1:], strict=False)
            ),
            limit=0.0,
        )
        limit = float(np.quantile([spent(cost, found, w) for w in every(found)], share))
        costs.append(replace(cost, limit=limit))
    return found, costs


def every(stages):
    return list(itertools.product(*(stage.widths for stage in stages)))


def places(stages, widths):
    return [stage.widths.index(w) for stage, w in zip(stages, widths, strict=True)]


def spent(cost: Cost, stages, widths) -> float:
    at = places(stages, widths)
    return (
        cost.fixed
        + sum(float(part[k]) for part, k in zip(cost.alone, at, strict=True))
        + sum(float(part[k, n]) for part, k, n in zip(cost.joint, at, at[1:], strict=False))
    )


def moved(stages, widths) -> float:
    pairs = zip(stages, places(stages, widths), strict=True)
    return sum(stage.moved[k] for stage, k in pairs)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_program_chooses_what_trying_every_choice_does(stages: int) -> None:
    free = 0
    for seed in range(8):
        found, costs = instance(seed, stages)
        fit = [w for w in every(found) if all(spent(c, found, w) <= c.limit for c in costs)]
        best = min(fit, key=lambda w: moved(found, w)) if fit else None
        assert choose(found, costs, []) == best, seed
        free += best == min(every(found), key=lambda w: moved(found, w))
    assert free < 8  # the costs did bind


def test_cuts_leave_the_next_best_that_is_wider_somewhere() -> None:
    found, costs = instance(3)
    fit = [w for w in every(found) if all(spent(c, found, w) <= c.limit for c in costs)]
    cuts, seen = [], []
    while (widths := choose(found, costs, cuts)) is not None:
        rest = [w for w in fit if all(_wider_somewhere(w, old) for old in seen)]
        assert widths == min(rest, key=lambda w: moved(found, w))
        seen.append(widths)
        cuts.append(cut_off(found, widths, "as narrow"))
    assert len(seen) > 1 and not [w for w in fit if all(_wider_somewhere(w, s) for s in seen)]


def _wider_somewhere(widths: tuple[int, ...], than: tuple[int, ...]) -> bool:
    return any(a > b for a, b in zip(widths, than, strict=True))


def test_what_is_cut_off_is_all_that_is_as_wide() -> None:
    stages = tuple(Stage(widths=(2, 4, 6), moved=(3.0, 2.0, 1.0)) for _ in range(2))
    assert cut_off(stages, (4, 6), "as wide") == ((False, True, True), (False, False, True))
    assert cut_off(stages, (4, 6), "as narrow") == ((True, True, False), (True, True, True))
    assert cut_off(stages, (4, 6), "as wide", [0]) == ((False, True, True), (True, True, True))
    assert choose(stages, [], [cut_off(stages, (4, 2), "as wide", [0])]) == (2, 6)
    assert choose(stages, [], [cut_off(stages, (2, 2), "as wide")]) is None


def test_nothing_within_the_limit_is_none_and_no_answer_is_said(monkeypatch) -> None:
    stages, (cost, _) = instance(0)
    dear = replace(cost, fixed=99.0)
    assert choose(stages, [dear], []) is None
    late = SimpleNamespace(x=None, status=1, message="Time limit reached.")
    monkeypatch.setattr("scipy.optimize.milp", lambda *_, **__: late)
    with pytest.raises(StudentError, match=r"Time limit reached.* student.space: compact"):
        choose(stages, [cost], [])


def test_a_fit_to_a_few_networks_gives_the_weights_of_all() -> None:
    """Two convolutions a stage, a strided one and a shortcut before each but the first."""

    def weights(w: tuple[int, ...]) -> float:
        inside = sum(3 * 9 * n * n + 8 * n for n in w)
        return inside + sum(10 * a * b for a, b in zip(w, w[1:], strict=False)) + 9 * w[0] + 10

    stages = tuple(
        Stage(widths=tuple(range(2, n, 2)), moved=(0.0,) * (n // 2 - 1)) for n in (9, 18)
    )
    known = [(2, 2), (4, 8), (8, 16), (8, 2), (4, 2), (2, 16), (2, 8)]
    cost = fitted(stages, {w: weights(w) for w in known}, 3_000.0)
    for widths in every(stages):
        assert spent(cost, stages, widths) == pytest.approx(weights(widths), rel=1e-6)


def test_widths_between_scored_ones_go_along_a_line() -> None:
    (stage,) = stages_of([[4, 8]], [[0.5, 0.1]], [(2, 4, 6, 8)], (2,))
    assert stage == Stage(widths=(2, 4, 6, 8), moved=pytest.approx((0.5, 0.5, 0.3, 0.1)))
    many = tuple(range(2, 1_002, 2))
    (stage,) = stages_of([[100, 240, 1_000]], [[0.5, 0.3, 0.1]], [many], (330,))
    assert {240, 330, 1_000} <= set(stage.widths) <= set(many) and len(stage.widths) < 18
    assert min(stage.widths) >= 220  # two thirds of the even width
