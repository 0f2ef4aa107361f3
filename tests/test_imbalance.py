"""Rare classes: the note, the metric that chooses, and losses in which classes count alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Finished
from torch import Tensor, nn

from tutelage.audit.metrics import METRICS, class_metrics, class_score
from tutelage.errors import DataError, RecipeError
from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.checking import check_recipe
from tutelage.pipeline.imbalance import inverse_frequency
from tutelage.pipeline.lessons import distill_inputs, metric_inputs
from tutelage.pipeline.material import read_material
from tutelage.recipe import Recipe
from tutelage.tasks.splits import rare_classes
from tutelage.teach.signals import Split
from tutelage.train.distill import Distillation
from tutelage.types import Batch, Reading

LABELS = np.array([0] * 6 + [1] * 3 + [2])
DECIDED = np.array([0] * 6 + [1, 0, 0] + [0])


def test_scores_by_hand() -> None:
    # class 0: recall 6/6, precision 6/9, F1 12/15; class 1: 1/3, 1/1, 2/4; class 2: 0
    assert class_score("accuracy", DECIDED, LABELS) == pytest.approx(0.7)
    assert class_score("balanced_accuracy", DECIDED, LABELS) == pytest.approx((1 + 1 / 3) / 3)
    assert class_score("macro_f1", DECIDED, LABELS) == pytest.approx((0.8 + 0.5) / 3)
    with pytest.raises(DataError, match="no examples"):
        class_score("macro_f1", DECIDED[:0], LABELS[:0])


def test_scores_are_those_of_the_proof() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.standard_normal((200, 7)), random.integers(0, 5, 200)
    proof = {m.name: m.value for m in class_metrics(logits, labels)}
    for name in METRICS[1:]:
        assert class_score(name, logits.argmax(1), labels) == pytest.approx(proof[name])


def test_the_note_names_the_rarest_and_the_commonest_class() -> None:
    labels = np.repeat([0, 1, 2], [5, 60, 35])
    (note,) = rare_classes(labels, ("ill", "well", "unsure"), "accuracy")
    assert "'ill' has 5 training examples where 'well' has 60" in note
    assert "always saying 'well' has 60% of it" in note and "metric: macro_f1" in note
    (short,) = rare_classes(labels, ("ill", "well", "unsure"), "macro_f1")
    assert "misleads" not in short
    assert rare_classes(np.repeat([0, 1], [6, 60]), ("ill", "well"), "accuracy") == ()
    assert rare_classes(None, (), "accuracy") == ()


def test_weights_by_hand() -> None:
    assert inverse_frequency(np.array([6, 3, 1])) == pytest.approx((10 / 18, 10 / 9, 10 / 3))
    assert inverse_frequency(np.array([3, 0, 1])) == pytest.approx((4 / 6, 0.0, 2.0))
    weights = np.array(inverse_frequency(np.array([6, 3, 1])))
    assert weights[LABELS].mean() == pytest.approx(1.0)


def test_only_losses_that_read_labels_are_weighed() -> None:
    decision = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    labels, teacher = torch.tensor([0, 1, 1]), Reading(decision=torch.flip(decision, (1,)))
    terms = tuple(Term(name=name, weight=1.0) for name in ("cross_entropy", "kl"))
    plain = Objective(terms)(Reading(decision=decision), teacher, labels).parts
    weighed = Objective(terms, class_weights=(0.5, 1.25))
    parts = weighed(Reading(decision=decision), teacher, labels).parts
    each = -decision.log_softmax(1)[torch.arange(3), labels]
    by_hand = (0.5 * each[0] + 1.25 * each[1] + 1.25 * each[2]) / 3
    assert float(parts["cross_entropy"]) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(parts["kl"]) == float(plain["kl"])
    masked = weighed(Reading(decision=decision), teacher, labels, torch.tensor([0, 1, 1]).bool())
    assert float(masked.parts["cross_entropy"]) == pytest.approx(float(1.25 * each[1:].mean()))


class _Says(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def lesson(metric: str, weights: tuple[float, ...] | None = None) -> Distillation:
    said = torch.eye(3)[torch.from_numpy(DECIDED)]

    def batch(index: Tensor, view: int) -> Batch:
        labels = torch.from_numpy(LABELS)[index]
        return Batch(inputs=said[index], labels=labels, index=index, view=view)

    split = Split(name="validation", count=len(LABELS), content="c", batch=batch)
    objective = Objective((Term(name="cross_entropy", weight=1.0),), class_weights=weights)
    return Distillation(
        _Says(), objective, split, split, classes=3, views=1, batch=2, seed=0, metric=metric
    )


def test_validation_is_judged_by_the_metric() -> None:
    for metric in METRICS:
        made = lesson(metric)
        with torch.inference_mode():
            assert made.evaluate((made.student,)) == class_score(metric, DECIDED, LABELS)
    assert len({lesson(metric).key for metric in METRICS}) == 3, "a checkpoint is of one metric"
    assert lesson("accuracy").key != lesson("accuracy", (1.0, 1.0, 1.0)).key


def test_recipes_that_do_not_use_it_keep_their_hashes() -> None:
    made = Recipe.parse(tiny.recipe())
    assert metric_inputs(made) == []
    (part,) = distill_inputs(made)
    assert "balance_classes" not in part and "checkpoint" not in part
    other = Recipe.parse(
        {**tiny.recipe({"distill": {"balance_classes": True}}), "metric": "macro_f1"}
    )
    part, metric = distill_inputs(other)
    assert part["balance_classes"] is True and metric == "macro_f1"


def test_balance_without_labels_read_is_refused(finished: Finished) -> None:
    made = Recipe.read(finished.recipe)
    distill = made.distill.model_copy(update={"balance_classes": True})
    with pytest.raises(RecipeError, match="add cross_entropy to distill.losses") as caught:
        check_recipe(made.model_copy(update={"distill": distill}), read_material(made))
    assert "'dist' reads none" in str(caught.value)


def test_a_whole_run_is_chosen_and_headed_by_the_metric(
    job: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    distill: dict[str, Any] = {"epochs": 4, "batch": 32, "losses": {"dist": 1, "cross_entropy": 1}}
    recipe = job({"metric": "macro_f1", "distill": {**distill, "balance_classes": True}})
    x, y = tiny.images(600)
    kept = (y != 2) | (np.arange(600) % 75 < 3)  # the third class is rare
    np.savez(recipe.parent / "data.npz", x=x[kept], y=y[kept])
    run = recipe.parent / "run"
    said = tiny.cli("run", recipe, "--run", run, "--json")
    assert said.status == 0, said.err
    assert "where '0' has" in said.err
    proof = json.loads((run / "proof.json").read_text())
    figures = {f["name"]: f["value"] for f in proof["figures"]["student"]}
    assert said.answer["student"]["metric"] == "macro_f1"
    assert said.answer["student"]["value"] == figures["macro_f1_test"]
    assert {f"{name}_test" for name in METRICS} <= figures.keys(), "all three are measured"
    page = (run / "report.html").read_text()
    assert "Test macro F1" in page and "Validation macro F1 by epoch" in page
