"""When a teacher is remarked on as hardly better than guessing."""

from __future__ import annotations

import numpy as np
import pytest

from tutelage.pipeline.teaching import suspicion


def labels(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("right", "counts", "remarked"),
    [
        (0.98, (50, 50), False),  # two classes: twice chance is more than anyone can have
        (0.56, (50, 50), False),  # chance 0.5, so the bar is 0.55
        (0.54, (50, 50), True),
        (0.90, (90, 10), True),  # the commonest class alone gives as much; the bar is 0.91
        (0.92, (90, 10), False),
        (0.18, (10,) * 10, True),  # chance 0.1, the bar 0.19
        (0.20, (10,) * 10, False),
        (1.00, (7,), False),  # one class in validation: all right is all that can be asked
    ],
)
def test_a_teacher_near_the_commonest_label_is_remarked_on(
    right: float, counts: tuple[int, ...], remarked: bool
) -> None:
    assert bool(suspicion(right, labels(*counts))) == remarked


def test_the_remark_names_both_shares_and_what_to_look_at() -> None:
    (line,) = suspicion(0.62, labels(60, 40))
    assert "right on 62% of validation" in line
    assert "the commonest class is 60% of it" in line
    assert "teacher.mean, teacher.std" in line
