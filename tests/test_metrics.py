"""Metrics by class and of values: worked by hand, against scikit-learn, and their intervals."""

import math
import time

import numpy as np
import pytest
from sklearn import metrics as reference

from tutelage.audit import metrics
from tutelage.audit.metrics import class_metrics, value_metrics
from tutelage.errors import DataError
from tutelage.report.figures import label, show


def hot(decisions, classes):
    return np.eye(classes, dtype=np.float32)[np.asarray(decisions)]


def of_classes(decisions, labels, classes, **options):
    found = class_metrics(hot(decisions, classes), np.asarray(labels), **options)
    return {m.name: m for m in found}


def of_values(predicted, wanted, **options):
    return {
        m.name: m for m in value_metrics(np.asarray(predicted), np.asarray(wanted), **options)
    }  # fmt: skip


def interval(m):
    assert m.spread is not None
    return m.spread


def some(n=400, classes=5, seed=0, right=0.8):
    draw = np.random.default_rng(seed)
    shares = np.linspace(1, 4, classes)
    labels = draw.choice(classes, n, p=shares / shares.sum())
    decisions = np.where(draw.random(n) < right, labels, draw.integers(0, classes, n))
    return decisions, labels


def test_by_hand():
    # Class 0: 2 of 3 found, 1 taken wrongly; class 1: 1 of 1 found, 1 taken wrongly; 2 of 2... 1.
    found = of_classes([0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 2, 2], 3, where="here")
    assert found["balanced_accuracy"].value == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert found["macro_f1"].value == pytest.approx((4 / 6 + 2 / 3 + 2 / 3) / 3)
    for m in found.values():
        assert (m.n, m.unit, m.kind, m.where) == (6, "1", "measured", "here")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_as_scikit_learn(classes, seed):
    decisions, labels = some(classes=classes, seed=seed)
    found = of_classes(decisions, labels, classes)
    present = np.unique(labels)
    want = reference.f1_score(labels, decisions, average="macro", labels=present)
    assert found["macro_f1"].value == pytest.approx(want)
    if len(present) == classes:
        assert found["macro_f1"].value == pytest.approx(
            reference.f1_score(labels, decisions, average="macro")
        )
    want = reference.recall_score(labels, decisions, average="macro", labels=present)
    assert found["balanced_accuracy"].value == pytest.approx(want)
    if set(decisions) <= set(present):
        want = reference.balanced_accuracy_score(labels, decisions)
        assert found["balanced_accuracy"].value == pytest.approx(want)


def test_classes_without_examples_are_left_out():
    found = of_classes([0, 1, 3], [0, 1, 1], 4)
    assert found["balanced_accuracy"].value == pytest.approx((1 + 1 / 2) / 2)
    assert found["macro_f1"].value == pytest.approx((1 + 2 / 3) / 2)
    decisions, labels = some()
    assert of_classes(decisions, labels, 5) == of_classes(decisions, labels, 9)


def test_all_right_and_all_wrong_have_no_width():
    for decisions, value in (([0, 1, 2, 2], 1.0), ([1, 2, 0, 0], 0.0)):
        for m in of_classes(decisions, [0, 1, 2, 2], 3).values():
            assert (m.value, m.spread) == (value, (value, value))
    (f1, balanced) = class_metrics(hot([0], 2), np.array([0]))
    assert f1.spread == balanced.spread == (1.0, 1.0)


def test_logits_of_any_size_and_kind_decide():
    logits = np.array([[-np.inf, 0.0], [1e4, -1e4], [0.0, 0.0]], np.float32)
    assert [m.value for m in class_metrics(logits, np.array([1, 0, 0], np.int32))] == [1.0, 1.0]
    assert class_metrics(logits.astype(np.float16), np.array([1, 0, 0], np.uint8))


def plain(decisions, labels):
    """Macro F1 and balanced accuracy as they are written in books."""
    seen = np.unique(labels)
    both = [((labels == c) & (decisions == c)).sum() for c in seen]
    held = [(labels == c).sum() for c in seen]
    taken = [(decisions == c).sum() for c in seen]
    f1 = [2 * b / (h + t) for b, h, t in zip(both, held, taken, strict=True)]
    return np.mean(f1), np.mean([b / h for b, h in zip(both, held, strict=True)])


@pytest.mark.parametrize("cost", [0, 10**9], ids=["multinomial", "examples drawn"])
@pytest.mark.parametrize("n", [60, 400])
def test_intervals_are_those_of_the_plain_bootstrap(n, cost, monkeypatch):
    # many resamples, so that the two agree far closer than the intervals are wide
    monkeypatch.setattr(metrics, "_CELL_COST", cost)
    monkeypatch.setattr(metrics, "_RESAMPLES", 20_000)
    decisions, labels = some(n=n)
    draw = np.random.default_rng(9)
    picks = (draw.integers(0, n, n) for _ in range(5_000))
    values = [plain(decisions[pick], labels[pick]) for pick in picks]
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    for i, m in enumerate(of_classes(decisions, labels, 5).values()):
        found = interval(m)
        assert found == pytest.approx((low[i], high[i]), abs=0.05 * (high[i] - low[i]))
        assert found[0] < m.value < found[1]


@pytest.mark.parametrize("cost", [0, 10**9], ids=["multinomial", "examples drawn"])
def test_every_resample_is_measured_as_if_written_out(cost, monkeypatch):
    monkeypatch.setattr(metrics, "_CELL_COST", cost)
    decisions, labels = some(n=12)  # so few that classes go missing
    cells, counts = np.unique(labels * 5 + decisions, return_counts=True)
    block = np.concatenate(list(metrics._resampled(counts, 0)))
    assert block.shape == (1_000, len(cells)) and (block.sum(1) == 12).all()
    rows = [np.repeat(cells, row) for row in block]
    want = [plain(row % 5, row // 5) for row in rows]
    assert metrics._by_class(block, cells, 5) == pytest.approx(np.array(want))


def test_blocks_change_no_figure(monkeypatch):
    decisions, labels = some()
    whole = of_classes(decisions, labels, 5)
    monkeypatch.setattr(metrics, "_BLOCK", 1_000)
    assert of_classes(decisions, labels, 5) == whole


def test_intervals_repeat_and_follow_the_seed():
    decisions, labels = some()
    assert of_classes(decisions, labels, 5) == of_classes(decisions, labels, 5)
    other = of_classes(decisions, labels, 5, seed=1)["macro_f1"]
    assert other.spread != of_classes(decisions, labels, 5)["macro_f1"].spread


@pytest.mark.parametrize(("classes", "right"), [(10, 0.9), (1_000, 0.8), (1_000, 0.0)])
def test_a_hundred_thousand_examples_take_seconds(classes, right):
    decisions, labels = some(n=100_000, classes=classes, right=right)
    logits = hot(decisions, classes)
    start = time.process_time()
    class_metrics(logits, labels)
    assert time.process_time() - start < 15  # about 2 on an idle core


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "no examples"),
        (np.zeros((2, 0)), np.zeros(2, int), "no examples"),
        (np.zeros((2, 3)), np.zeros(3, int), r"\(2, 3\) and labels of shape \(3,\)"),
        (np.zeros(3), np.zeros(3, int), "do not belong together"),
        (np.zeros((2, 3)), np.array([0, 3]), "from 0 to 3, but the logits are of 3 classes"),
        (np.zeros((2, 3)), np.array([-1, 0]), "from -1 to 0"),
        (np.array([[0, np.nan], [1, 2]]), np.array([0, 1]), "1 of 2 examples .* not numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, labels, words):
    with pytest.raises(DataError, match=words) as caught:
        class_metrics(logits, labels, where="test")
    assert "(test); " in str(caught.value) and "\n" not in str(caught.value)


def test_values_by_hand():
    found = of_values([1.0, 2.0, 5.0], [1.0, 3.0, 3.0], where="here")
    assert found["mae"].value == pytest.approx(1.0)
    assert found["rmse"].value == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"].value == pytest.approx(1 - 5 / (8 / 3))
    assert [m.name for m in found.values()] == ["mae", "rmse", "r2"]
    for m in found.values():
        assert (m.n, m.unit, m.kind, m.where) == (3, "1", "measured", "here")


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_values_as_scikit_learn(offset):
    draw = np.random.default_rng(3)
    wanted = draw.normal(size=500) + offset
    predicted = wanted + 0.5 * draw.normal(size=500)
    found = of_values(predicted, wanted)
    assert found["mae"].value == pytest.approx(reference.mean_absolute_error(wanted, predicted))
    want = reference.root_mean_squared_error(wanted, predicted)
    assert found["rmse"].value == pytest.approx(want)
    assert found["r2"].value == pytest.approx(reference.r2_score(wanted, predicted))
    values = []
    for _ in range(1_000):
        pick = draw.integers(0, 500, 500)
        error, target = (predicted - wanted)[pick], wanted[pick]
        values.append(
            (np.abs(error).mean(), math.sqrt((error**2).mean()), 1 - error.var() / target.var())
        )
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    for i, m in enumerate(found.values()):
        ends = interval(m)
        assert ends == pytest.approx((low[i], high[i]), abs=0.15 * (high[i] - low[i]))
        assert ends[0] < m.value < ends[1]


def test_values_that_do_not_vary_have_no_r2():
    for value in (0.1, 0.0, 1e9):
        assert list(of_values([1.0, 2.0, 3.0], [value] * 3)) == ["mae", "rmse"]
    assert list(of_values([1.0], [1.5])) == ["mae", "rmse"]
    found = of_values([1.0, 2.0], [1.0, 2.5])  # half of the resamples hold one value twice
    assert all(math.isfinite(v) for m in found.values() for v in (m.value, *interval(m)))
    assert of_values(np.arange(4, dtype=np.float32), np.arange(4))["r2"].spread == (1.0, 1.0)


@pytest.mark.parametrize(
    ("predicted", "wanted", "words"),
    [
        ([], [], "no examples"),
        ([1.0, 2.0], [1.0], "do not belong together"),
        ([1.0, math.nan], [1.0, 2.0], "1 of 2 predicted values are not finite"),
        ([1.0, 2.0], [math.inf, -math.inf], "2 of 2 wanted values are not finite"),
    ],
)
def test_values_that_cannot_be_measured_are_refused(predicted, wanted, words):
    with pytest.raises(DataError, match=words) as caught:
        of_values(predicted, wanted, where="test")
    assert "(test); " in str(caught.value) and "\n" not in str(caught.value)


def test_a_hundred_thousand_values_take_seconds():
    wanted = np.random.default_rng(0).normal(size=100_000)
    start = time.process_time()
    value_metrics(wanted * 0.9, wanted)
    assert time.process_time() - start < 15


def test_the_report_can_print_them():
    decisions, labels = some()
    f1, balanced = class_metrics(hot(decisions, 5), labels)
    assert label(f1.name) == "Macro F1" and label("macro_f1_test") == "Macro F1, test"
    assert label("balanced_accuracy_validation") == "Balanced accuracy, validation"
    assert label(balanced.name) == "Balanced accuracy"
    assert show(f1).text == f"{100 * f1.value:.1f} %" and show(f1).spread.endswith(" %")
    assert [label(name) for name in ("mae", "rmse", "r2", "r2_test")] == [
        "Mean absolute error",
        "Root mean squared error",
        "R²",
        "R², test",
    ]
    assert label("accuracy_test") == "Accuracy, test"
