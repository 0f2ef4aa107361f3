"""Which student tap learns from which teacher tap."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import RecipeError
from tutelage.pairing import by_hand, find_pairing, linear_cka, match, similarity


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cka_by_hand():
    a = torch.tensor([[1.0], [2.0], [3.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    # Centred: a = -1, 0, 1; b = (0, -1), (-1, 2), (1, -1). b'a = (1, 0): cross = 1. |a'a| = 2.
    # b'b = [[2, -3], [-3, 6]]: norm = sqrt(4 + 9 + 9 + 36) = sqrt(58).
    assert linear_cka(a, b) == pytest.approx(1 / (2 * 58**0.5), rel=1e-9)


def test_cka_is_one_for_itself_and_symmetric():
    a, b = random(50, 6), random(50, 3, seed=1)
    assert linear_cka(a, a) == pytest.approx(1.0)
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a))
    assert 0 < linear_cka(a, b) < 1


def test_cka_sees_neither_rotation_nor_scale_nor_offset():
    a, b = random(40, 5), random(40, 4, seed=1)
    turn, _ = torch.linalg.qr(random(5, 5, seed=2))
    assert linear_cka(3.0 * a @ turn + 7.0, 0.1 * b - 2.0) == pytest.approx(linear_cka(a, b))
    stretched = a * torch.tensor([100.0, 1, 1, 1, 1])
    assert linear_cka(stretched, b) != pytest.approx(linear_cka(a, b), rel=1e-2)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(5, 2), random(5, 2)),
        (random(1, 3), random(1, 2)),
        (torch.full((5, 2), float("nan")), random(5, 2)),
        (torch.zeros(5, 2), torch.zeros(5, 2)),
    ],
)
def test_what_says_nothing_is_like_nothing(a, b):
    assert linear_cka(a, b) == 0.0 == linear_cka(b, a)


@given(st.integers(2, 30), st.integers(1, 5), st.floats(1e-4, 1e4), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_cka_lies_between_0_and_1(n, width, scale, seed):
    a = random(n, width, seed=seed) * scale
    for b in (a, random(n, 3, seed=seed + 100).half()):
        assert 0.0 <= linear_cka(a, b) <= 1.0


def test_a_table_has_a_row_for_each_student_tap():
    mine, theirs = [random(9, 2), random(9, 3)], [random(9, 2), random(9, 4), random(9, 5)]
    table = similarity(mine, theirs)
    assert [len(row) for row in table] == [3, 3]
    assert table[1][2] == linear_cka(mine[1], theirs[2])


tables = st.integers(1, 5).flatmap(
    lambda columns: st.lists(
        st.lists(st.floats(0, 1, width=16), min_size=columns, max_size=columns),
        min_size=1,
        max_size=5,
    )
)


def allowed(rows: int, columns: int):
    """Yield every way to give each row a column, in order: strictly so where columns suffice."""
    choose = itertools.combinations if columns >= rows else _with_repeats
    return choose(range(columns), rows)


def _with_repeats(columns, rows):
    return itertools.combinations_with_replacement(columns, rows)


@given(tables)
def test_the_match_is_the_best_there_is(table):
    pairs = match(table)
    assert [row for row, _ in pairs] == list(range(len(table)))
    columns = tuple(column for _, column in pairs)
    options = list(allowed(len(table), len(table[0])))
    assert columns in options
    total = sum(table[i][j] for i, j in pairs)
    best = max(sum(table[i][j] for i, j in enumerate(option)) for option in options)
    assert total == pytest.approx(best)


def test_the_order_is_kept_even_where_the_other_is_more_alike():
    assert match([[0.1, 0.9], [0.9, 0.1]]) == ((0, 0), (1, 1))
    assert match([[0.0, 1.0], [0.0, 1.0], [0.9, 1.0]]) == ((0, 1), (1, 1), (2, 1))
    assert match([[0.2, 0.9, 0.3], [0.1, 0.2, 0.4]]) == ((0, 1), (1, 2))


@pytest.mark.parametrize("table", [[], [[]], [[], []]])
def test_nothing_is_matched_with_nothing(table):
    assert match(table) == ()


STUDENT, TEACHER = ("stages.0", "stages.1"), ("layer1", "layer2", "layer3")


def test_pairs_by_hand_may_cross_and_share():
    named = [("stages.1", "layer1"), ("stages.0", "layer1")]
    assert by_hand(named, STUDENT, TEACHER) == ((1, 0), (0, 0))
    assert by_hand([], STUDENT, TEACHER) == ()


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ([("stage.0", "layer1")], "the student has no tap 'stage.0'. Did you mean 'stages.0'?"),
        ([("stages.0", "layer4")], "the teacher has no tap 'layer4'. Did you mean 'layer"),
        ([("layer1", "stages.0")], "the student has no tap 'layer1'. Known: stages.0, stages.1."),
        ([("stages.0", "layer1"), ("stages.0", "layer2")], "a student tap stands twice"),
    ],
)
def test_a_wrong_pair_is_refused(named, what):
    with pytest.raises(RecipeError) as caught:
        by_hand(named, STUDENT, TEACHER)
    assert str(caught.value).startswith("distill.pairs: ") and what in str(caught.value)


def test_a_network_without_taps_says_so():
    with pytest.raises(RecipeError, match="the teacher has no tap 'x'. It has none"):
        by_hand([("stages.0", "x")], STUDENT, ())


def test_a_pairing_tells_how_it_was_found():
    teacher = [random(60, 4, seed=i) for i in range(3)]
    student = [teacher[0] @ random(4, 3, seed=7), teacher[2] @ random(4, 5, seed=8)]
    found = find_pairing(student, teacher, STUDENT, TEACHER)
    assert found.pairs == ((0, 0), (1, 2)) and found.by == "linear CKA"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["pairs"] == [[0, 0], [1, 2]]
    hand = find_pairing(student, teacher, STUDENT, TEACHER, [("stages.0", "layer3")])
    assert hand.pairs == ((0, 2),) and hand.by == "hand" and hand.similarity == found.similarity


def test_pairing_keeps_no_graph():
    student = [random(8, 3).requires_grad_()]
    find_pairing(student, [random(8, 2)], ("a",), ("b",))
    assert student[0].grad_fn is None and student[0].grad is None
