"""Losses that look inside transformers, worked out by hand and against plain numpy loops."""

import math

import numpy as np
import pytest
import torch

from tutelage.errors import RecipeError, TeacherError
from tutelage.losses import LOSSES, Objective, Term
from tutelage.types import Reading

NAMES = ("hidden", "attention_scores", "relations")


def value(name, student, teacher, keep, **options) -> float:
    tensors = (torch.as_tensor(x) for x in (student, teacher))
    return LOSSES[name](*tensors, torch.tensor(keep), **options).mean().item()


def drawn(name, seed=0, tokens=6):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"hidden": ((2, tokens, 4), (2, tokens, 4)),
              "attention_scores": ((2, tokens, tokens), (2, tokens, tokens)),
              "relations": ((2, 3, tokens, 8), (2, 3, tokens, 12))}[name]  # fmt: skip
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]


def test_hidden_by_hand():
    # 1^2 + 2^2 away, of a teacher whose square is 3^2 + 4^2; the pad is far off
    student, teacher = [[[2.0, 4.0], [9.0, 9.0]]], [[[3.0, 4.0], [0.0, 0.0]]]
    assert value("hidden", student, teacher, [[True, False]]) == pytest.approx(1 / 25)
    assert value("hidden", student, teacher, [[True, True]]) == pytest.approx((1 + 162) / 25)
    silent = [[[0.0, 0.0], [0.0, 0.0]]]
    assert value("hidden", silent, teacher, [[True, False]]) == pytest.approx(1.0)


def test_attention_scores_by_hand():
    # Rows differ by (1, -1) and (2, 0), which centred is (1, -1): both 1 a place.
    student = [[[1.0, 2.0, 50.0], [2.0, 3.0, 50.0], [50.0, 50.0, 50.0]]]
    teacher = [[[0.0, 3.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]]
    keep = [[True, True, False]]
    assert value("attention_scores", student, teacher, keep) == pytest.approx(1.0)


def test_what_is_added_to_a_row_of_scores_does_not_count():
    student, teacher = drawn("attention_scores")
    keep = [[True] * 6, [True] * 4 + [False] * 2]
    moved = student + torch.arange(6.0)[:, None]
    got = value("attention_scores", moved, teacher, keep)
    assert got == pytest.approx(value("attention_scores", student, teacher, keep))


def test_relations_by_hand():
    """Two tokens of one number: the teacher's rows are (3/4, 1/4) and uniform, the student's even.

    Queries tell; keys and values say the same in both.
    """
    root = math.sqrt(math.log(3))
    teacher = torch.zeros(1, 3, 2, 1, dtype=torch.float64)
    teacher[0, 0, 0, 0] = root  # products: log 3, 0 in the first row, 0, 0 in the second
    student = torch.zeros(1, 3, 2, 1, dtype=torch.float64)
    row = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    keep = [[True, True]]
    assert value("relations", student, teacher, keep, heads=1.0) == pytest.approx(row / 6)
    # One token alone has no relations to get wrong.
    assert value("relations", student, teacher, [[True, False]], heads=1.0) == 0


def plain_relations(student, teacher, lengths, heads):
    total = []
    for b, n in enumerate(lengths):
        rows = []
        for kind in range(3):
            for h in range(heads):
                found = []
                for x in (student, teacher):
                    size = x.shape[3] // heads
                    part = x[b, kind, :n, h * size : (h + 1) * size].numpy()
                    raw = np.exp(part @ part.T / np.sqrt(size))
                    found.append(raw / raw.sum(1, keepdims=True))
                rows += list((found[1] * np.log(found[1] / found[0])).sum(1))
        total.append(np.mean(rows))
    return np.mean(total)


@pytest.mark.parametrize("heads", [1.0, 2.0, 4.0])
def test_relations_are_those_of_plain_loops(heads):
    student, teacher = drawn("relations")
    keep = [[True] * 6, [True] * 3 + [False] * 3]
    want = plain_relations(student, teacher, (6, 3), int(heads))
    assert value("relations", student, teacher, keep, heads=heads) == pytest.approx(want)


@pytest.mark.parametrize("name", NAMES)
def test_pads_count_for_nothing(name):
    student, teacher = drawn(name)
    keep = torch.tensor([[True] * 4 + [False] * 2] * 2)
    axes = (1, 2) if name == "attention_scores" else (student.ndim - 2,)
    short = [student, teacher]
    for axis in axes:
        short = [x.narrow(axis, 0, 4) for x in short]
    want = LOSSES[name](*short, keep[:, :4])
    for axis in axes:
        for x in (student, teacher):
            x.narrow(axis, 4, 2).fill_(1e3)
    student.requires_grad_()
    got = LOSSES[name](student, teacher, keep)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    for axis in axes:
        assert (student.grad.narrow(axis, 4, 2) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_text_without_tokens_is_zero(name):
    student, teacher = drawn(name)
    student.requires_grad_()
    got = LOSSES[name](student, teacher, torch.zeros(2, 6, dtype=torch.bool))
    got.sum().backward()
    assert (got == 0).all() and (student.grad == 0).all()


@pytest.mark.parametrize(("heads", "says"), [(0, "1 or more"), (2.5, "whole"), ("x", "finite")])
def test_a_wrong_number_of_heads_is_refused(heads, says):
    with pytest.raises(RecipeError, match=says):
        LOSSES["relations"].checked({"heads": heads})


def test_heads_that_do_not_divide_name_what_does():
    with pytest.raises(RecipeError, match=r"5 heads do not divide 8 .*heads: 4"):
        LOSSES["relations"](*drawn("relations"), torch.ones(2, 6, dtype=torch.bool), heads=5.0)


def test_different_tokens_are_refused():
    def said(tokens):
        return Reading(decision=torch.zeros(2, 3), relations=(torch.zeros(2, 3, tokens, 4),))

    with pytest.raises(TeacherError, match="student has 6 tokens where the teacher has 5"):
        Objective((Term(name="relations"),))(said(6), said(5), None)
