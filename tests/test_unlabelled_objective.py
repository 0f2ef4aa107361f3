"""Losses that read labels count labelled examples alone; all else counts all."""

import math

import pytest
import torch

from tutelage.errors import RecipeError
from tutelage.losses import LOSSES, Objective, Term
from tutelage.losses.objective import check_terms, reads_labels
from tutelage.types import Reading

STUDENT = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, -2.0]], requires_grad=True)
TEACHER = Reading(decision=torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]]))
BOTH = (Term(name="cross_entropy", weight=1.0), Term(name="kl", weight=2.0))


def value(objective, labels, student=STUDENT):
    return objective(Reading(decision=student), TEACHER, torch.tensor(labels))


def test_cross_entropy_is_the_mean_over_the_labelled_by_hand():
    # p = 1/2 for class 0 of the first; p = 3/4 and 1/4 in the second, whose label is 1.
    found = value(Objective(BOTH), [0, 1, -1])
    by_hand = (math.log(2) + math.log(4)) / 2
    assert float(found.parts["cross_entropy"]) == pytest.approx(by_hand, rel=1e-6)
    whole = value(Objective(BOTH[1:]), [0, 1, 0])
    assert float(found.parts["kl"]) == float(whole.parts["kl"])  # all three examples
    assert float(found.total.detach()) == pytest.approx(by_hand + 2 * float(whole.parts["kl"]))


@pytest.mark.parametrize(
    "name", [n for n in LOSSES if reads_labels(LOSSES[n]) and LOSSES[n].decides != "values"]
)
def test_an_unlabelled_example_moves_neither_value_nor_gradient(name):
    objective = Objective((Term(name=name, weight=1.0),))

    def read(third):
        logits = torch.stack([*STUDENT.detach()[:2], torch.tensor(third)]).requires_grad_()
        student = Reading(decision=logits, trajectory=(logits * 2,))
        total = objective(student, TEACHER, torch.tensor([0, 1, -1])).total
        total.backward()
        return float(total.detach()), logits.grad

    (one, slope), (other, _) = read([5.0, -2.0]), read([math.nan, 1e4])
    assert one == other and math.isfinite(one)
    assert slope[:2].abs().sum() > 0 and not slope[2].any()


def test_a_batch_without_labels_adds_nothing_and_still_trains():
    found = value(Objective(BOTH[:1]), [-1, -1, -1])
    assert float(found.total.detach()) == 0 and float(found.parts["cross_entropy"]) == 0
    STUDENT.grad = None
    found.total.backward()
    assert not STUDENT.grad.any()


def test_a_step_without_labels_does_not_count_in_the_balance():
    terms = (Term(name="kl", weight=1.0), Term(name="cross_entropy"))
    objective, same = Objective(terms).train(), Objective(terms).train()
    for labels in ([0, 1, 1], [-1, -1, -1], [0, -1, -1]):
        value(objective, labels)
    for labels in ([0, 1, 1], [0, -1, -1]):
        value(same, labels)
    assert objective.weights() == same.weights() and int(objective.steps) == 2


def test_the_whole_batch_is_as_before_to_the_last_bit():
    labels = torch.tensor([0, 1, 1])
    found = value(Objective(BOTH), labels.tolist())
    plain = torch.nn.functional.cross_entropy(STUDENT, labels, reduction="none").mean()
    assert float(found.parts["cross_entropy"]) == float(plain.detach())


def test_a_loss_of_labels_is_refused_where_nothing_is_labelled():
    with pytest.raises(RecipeError, match="'cross_entropy' reads labels, but the data has none"):
        check_terms(BOTH, labelled=False)
    check_terms(BOTH[1:], labelled=False)
    check_terms(BOTH)
