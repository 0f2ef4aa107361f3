"""Fidelity: figures worked by hand on tables small enough to read."""

import math

import numpy as np
import pytest

from tutelage.audit.fidelity import (
    Decided,
    by_class,
    calibration_error,
    differences,
    fidelity,
    probabilities,
    reliability,
)


def logits(*rows):
    return np.log(np.array(rows, dtype=np.float64))


# Teacher and student decide alike on the first and last of four examples.
TEACHER = logits([0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7])
STUDENT = logits([0.5 + 1e-9, 0.5 - 1e-9], [0.2, 0.8], [0.7, 0.3], [0.3, 0.7])
LABELS = np.array([0, 0, 1, 0])
SMALL = Decided(student=STUDENT, teacher=TEACHER, labels=LABELS, where="here")


def figures(decided, **options):
    return {figure.name: figure for figure in fidelity(decided, **options)}


def random_pair(n=400, classes=5, seed=0):
    draw = np.random.default_rng(seed)
    teacher = draw.normal(size=(n, classes)) * 3
    student = teacher + draw.normal(size=(n, classes))
    labels = np.where(draw.random(n) < 0.9, teacher.argmax(1), draw.integers(0, classes, n))
    return Decided(student=student, teacher=teacher, labels=labels)


def test_probabilities_survive_large_logits():
    found = probabilities(np.array([[1000.0, 1000.0], [-1e4, 0.0]], np.float32))
    assert found.tolist() == [[0.5, 0.5], [0.0, 1.0]] and found.dtype == np.float64


def test_agreement_by_hand():
    found = figures(SMALL)["agreement"]
    assert found.value == 0.5
    assert (found.n, found.unit, found.kind, found.where) == (4, "1", "measured", "here")


def test_divergence_by_hand():
    want = (
        0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
        + 0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8)
        + 0.1 * math.log(0.1 / 0.7) + 0.9 * math.log(0.9 / 0.3)
    ) / 4  # fmt: skip
    assert figures(SMALL)["kl"].value == pytest.approx(want, rel=1e-6)


def test_divergence_is_finite_where_the_student_rules_a_class_out():
    sure = Decided(
        student=np.array([[0.0, -1e4]]), teacher=np.array([[-1e4, 0.0]]), labels=None
    )  # fmt: skip
    assert 20 < figures(sure)["kl"].value < 30


def test_kept_is_the_ratio_of_accuracies():
    # The teacher is right on 0, 1, 2; the student on 0 alone.
    assert figures(SMALL)["kept"].value == pytest.approx((1 / 4) / (3 / 4))


def test_calibration_by_hand():
    # Confidences 0.95 and 0.95 (one right), 0.55 (right), 0.72 (wrong): bins 14, 8 and 10 of 15.
    probs = np.array([[0.95, 0.05], [0.05, 0.95], [0.55, 0.45], [0.28, 0.72]])
    labels = np.array([0, 0, 0, 0])
    want = (2 * abs(0.5 - 0.95) + 1 * abs(1 - 0.55) + 1 * abs(0 - 0.72)) / 4
    assert calibration_error(probs, labels) == pytest.approx(want)
    rows = reliability(probs, labels)
    assert [row["n"] for row in rows] == [1, 1, 2]
    assert [row["confidence"] for row in rows] == pytest.approx([0.55, 0.72, 0.95])
    assert [row["accuracy"] for row in rows] == [1.0, 0.0, 0.5]


def test_a_confidence_of_one_falls_in_the_last_bin():
    probs = np.array([[1.0, 0.0], [0.96, 0.04]])
    rows = reliability(probs, np.array([0, 0]))
    assert [row["n"] for row in rows] == [2]
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([1])) == 1.0


def test_calibration_is_reported_for_both():
    found = figures(SMALL)
    for who, table in (("student", STUDENT), ("teacher", TEACHER)):
        want = calibration_error(probabilities(table), LABELS)
        assert found[f"calibration_error_{who}"].value == want


def test_a_student_that_is_the_teacher_loses_nothing():
    pair = random_pair()
    found = figures(Decided(student=pair.teacher, teacher=pair.teacher, labels=pair.labels))
    assert (found["agreement"].value, found["kl"].value, found["kept"].value) == (1.0, 0.0, 1.0)
    assert found["agreement"].spread == found["kept"].spread == (1.0, 1.0)


def test_without_labels_only_the_two_are_compared():
    found = figures(Decided(student=STUDENT, teacher=TEACHER, labels=None))
    assert list(found) == ["agreement", "kl"]


def test_intervals_hold_the_value_shrink_and_repeat():
    pair = random_pair()
    found, again = figures(pair), figures(pair)
    for name in ("agreement", "kl", "kept"):
        low, high = found[name].spread
        assert low < found[name].value < high
        assert found[name] == again[name]
    assert figures(pair, seed=1)["kl"].spread != found["kl"].spread
    wide = found["agreement"].spread
    more = figures(random_pair(n=4_000))["agreement"].spread
    assert more[1] - more[0] < 0.5 * (wide[1] - wide[0])
    # For a share, the bootstrap is near the normal interval.
    share, n = found["agreement"].value, found["agreement"].n
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    assert wide == pytest.approx((share - half, share + half), abs=0.25 * half)


def test_kept_is_resampled_in_pairs():
    """A student right and wrong with its teacher keeps all in every resample."""
    draw = np.random.default_rng(0)
    teacher = draw.normal(size=(200, 3))
    found = figures(Decided(student=teacher * 2, teacher=teacher, labels=draw.integers(0, 3, 200)))
    assert found["kept"].spread == (1.0, 1.0)


def test_a_teacher_that_is_never_right_breaks_nothing():
    found = figures(Decided(student=STUDENT[:1], teacher=TEACHER[:1], labels=np.array([1])))
    assert math.isfinite(found["kept"].value)


def test_by_class_by_hand():
    rows = by_class(SMALL, ("cat", "dog", "emu"))
    assert rows == [
        {"name": "cat", "n": 3, "teacher": pytest.approx(2 / 3), "student": pytest.approx(1 / 3)},
        {"name": "dog", "n": 1, "teacher": 1.0, "student": 0.0},
    ]


def test_differences_are_sorted_by_how_sure_the_teacher_was():
    assert differences(SMALL) == [2, 1]
    assert differences(SMALL, most=1) == [2]
    tied = Decided(student=STUDENT[[1, 1, 0]], teacher=TEACHER[[1, 1, 0]], labels=None)
    assert differences(tied) == [0, 1]
    assert differences(Decided(student=TEACHER, teacher=TEACHER, labels=None)) == []
