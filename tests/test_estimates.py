"""How good an untried student would be, estimated from those that were tried."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from test_frontier import counted

from tutelage.plan.estimates import FEWEST, Estimator, estimator
from tutelage.plan.scores import Score
from tutelage.records import Measurement
from tutelage.students.spec import StudentSpec

SPEC = StudentSpec.from_json(
    {"family": "convnet", "image": [1, 8, 8], "classes": 3, "widths": [4], "depths": [1]}
)


def score(scale: float, value: float, steps: int = 240) -> Score:
    figure = Measurement(
        name="accuracy_validation", value=value, unit="1", kind="measured", where="a test"
    )
    return Score(
        spec=SPEC, parameters=int(9_000 * scale), precision="int8", counted=counted(scale),
        trial=figure, steps=steps,
    )  # fmt: skip


def law(scale: float, steps: int = 240) -> float:
    return 1 - 0.2 * scale**-0.5 * (steps / 240) ** -0.3


def fitted(scores: list[Score]) -> Estimator:
    found = estimator(scores)
    assert found is not None
    return found


def estimate(found: Estimator, scale: float) -> Measurement:
    return found.of(int(9_000 * scale), counted(scale))


def test_a_power_law_is_found_again_beyond_what_was_tried() -> None:
    found = fitted([score(s, law(s)) for s in (0.5, 1, 2, 4, 8)])
    for scale in (0.25, 3.0, 32.0):
        figure = estimate(found, scale)
        assert figure.value == pytest.approx(law(scale), abs=1e-3)
        assert figure.kind == "estimated"
        assert figure.n == 5
        assert figure.spread is not None
        assert figure.spread[1] - figure.spread[0] < 5e-3


def test_trials_of_other_lengths_count_with_their_length() -> None:
    rows = [score(s, law(s, 80), 80) for s in (0.5, 1, 2, 4)]
    rows += [score(s, law(s, 240), 240) for s in (2, 4)]
    assert estimate(fitted(rows), 1.0).value == pytest.approx(law(1.0, 240), abs=1e-3)


def test_the_interval_holds_what_noisy_trials_hide() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        rows = [
            score(s, 1 - (1 - law(s)) * math.exp(random.normal(0, 0.2)))
            for s in 2.0 ** random.uniform(-2, 3, 8)
        ]
        truth = 1 - (1 - law(1.5)) * math.exp(random.normal(0, 0.2))
        spread = estimate(fitted(rows), 1.5).spread
        assert spread is not None
        inside += spread[0] <= truth <= spread[1]
    assert inside >= 180


def test_more_never_counts_as_worse() -> None:
    found = fitted([score(s, 0.9 - 0.02 * s) for s in (1, 2, 3, 4)])
    assert estimate(found, 8.0).value >= estimate(found, 1.0).value


def test_what_has_no_error_left_stays_a_figure() -> None:
    figure = estimate(fitted([score(s, 1.0) for s in (1, 2, 3, 4)]), 1e-4)
    assert figure.spread is not None
    assert 0 <= figure.spread[0] <= figure.value <= figure.spread[1] <= 1


def test_too_few_students_give_no_estimate() -> None:
    rows = [score(s, law(s)) for s in (1, 2, 4)]
    untried = dataclasses.replace(rows[0], trial=None)
    assert len(rows) == FEWEST - 1
    assert estimator([*rows, untried]) is None
    assert estimator([]) is None
