"""What a file loses: on validation, and on training examples besides where that is small."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tutelage.audit.metrics import class_score
from tutelage.pipeline import cost_of_precision as cost
from tutelage.teach.signals import SignalCache, Split


class Signals(SignalCache):
    """Decisions of a teacher that calls every example class 1."""

    def __init__(self):
        pass

    def read(self, index, view):
        assert view == 0
        return SimpleNamespace(decision=torch.eye(2)[torch.ones(len(index), dtype=torch.int64)])


def split(count):
    return Split(
        name="x", count=count, content="", batch=lambda index, view: SimpleNamespace(index=index)
    )


def material(held, train, monkeypatch, flips):
    """Return material whose float32 file is right everywhere, and int8 but for `flips` of train."""
    decides = "classes"

    def said(path, part):
        index = part.batch(torch.arange(part.count), 0).index.numpy()
        labels = held if part.count == len(held) and part.name != "training" else train[index]
        right = np.where(labels >= 0, labels, 1)
        if path == "int8" and part.name == "training":
            right = np.where(np.isin(index, flips), 1 - right, right)
        return np.eye(2, dtype=np.float32)[right]

    monkeypatch.setattr(cost, "artifact_decisions", said)
    return SimpleNamespace(
        train=split(len(train)), validation=split(len(held)), outputs=2, metric="accuracy",
        decides=decides, said=lambda decision: decision.argmax(1),
        data=SimpleNamespace(
            train=SimpleNamespace(labels=train), validation=SimpleNamespace(labels=held)
        ),
    )  # fmt: skip


EXPORT = SimpleNamespace(largest_loss=0.01)
RECIPE = SimpleNamespace(metric="accuracy", export=EXPORT)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_small_validation_is_filled_up_with_labelled_training_examples(monkeypatch, metric):
    train = np.arange(400) % 2
    train[:40] = -1  # without a label: none is asked about
    found = material(np.array([0, 1, 0, 1]), train, monkeypatch, flips=[0, 50, 51, 52])
    taught = SimpleNamespace(train=Signals())
    check = cost.PrecisionCheck(
        SimpleNamespace(metric=metric, export=EXPORT), found, taught, "float32"
    )
    assert check.where == "validation and 360 training examples"
    assert check.base == 1.0
    if metric == "accuracy":
        assert check.loss("int8") == pytest.approx(3 / 364)
    else:
        wanted = np.concatenate([[0, 1, 0, 1], train[40:]])
        answers = wanted.copy()
        answers[4 + 10 : 4 + 13] = 1 - answers[4 + 10 : 4 + 13]
        assert check.loss("int8") == pytest.approx(1 - class_score(metric, answers, wanted))


def test_at_most_a_thousand_are_asked_about_spread_over_all(monkeypatch):
    train = np.arange(5_000) % 2
    found = material(np.zeros(200, np.int64), train, monkeypatch, flips=[])
    check = cost.PrecisionCheck(RECIPE, found, SimpleNamespace(train=Signals()), "float32")
    part, labels = check.parts[1]
    assert part.count == len(labels) == 800
    index = part.batch(torch.arange(800), 0).index
    assert index[0] == 0 and index[-1] == 4_999 and len(index.unique()) == 800
    assert (labels == train[index.numpy()]).all()


def test_a_large_validation_does_alone(monkeypatch):
    found = material(np.zeros(1_000, np.int64), np.arange(50) % 2, monkeypatch, flips=[3])
    check = cost.PrecisionCheck(RECIPE, found, SimpleNamespace(train=Signals()), "float32")
    assert check.where == "validation" and check.loss("int8") == 0.0


def test_without_labels_the_teacher_says_what_is_right(monkeypatch):
    found = material(np.array([1, 1]), np.full(30, -1), monkeypatch, flips=[4])
    found.data.validation.labels = None
    taught = SimpleNamespace(train=Signals(), validation_decision=torch.eye(2)[[1, 1]])
    check = cost.PrecisionCheck(RECIPE, found, taught, "float32")
    assert check.where == "validation and 30 training examples"
    assert check.loss("int8") == pytest.approx(1 / 32)


@pytest.mark.parametrize(("count", "flips", "kept"), [(90, 1, True), (90, 2, False), (30, 1, True)])
def test_one_example_may_always_turn(monkeypatch, count, flips, kept):
    held, train = np.arange(10) % 2, np.arange(count) % 2
    found = material(held, train, monkeypatch, flips=list(range(flips)))
    check = cost.PrecisionCheck(RECIPE, found, SimpleNamespace(train=Signals()), "float32")
    assert (check.loss("int8") <= check.most) is kept


def test_of_a_large_validation_the_recipe_decides(monkeypatch):
    found = material(np.zeros(1_000, np.int64), np.arange(50) % 2, monkeypatch, flips=[])
    check = cost.PrecisionCheck(RECIPE, found, SimpleNamespace(train=Signals()), "float32")
    assert check.most == pytest.approx(0.01)


def test_examples_that_come_as_they_like_are_not_asked_about(monkeypatch):
    found = material(np.array([0, 1]), np.arange(30) % 2, monkeypatch, flips=[4])
    check = cost.PrecisionCheck(RECIPE, found, SimpleNamespace(train=object()), "float32")
    assert check.where == "validation" and check.loss("int8") == 0.0
