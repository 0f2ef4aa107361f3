"""Perplexity, divergence and degeneration: by hand, against plain sums, and their intervals."""

import math

import numpy as np
import pytest
from text_samples import refused

from tutelage.audit.language import TokenScores, degeneration, joined, scored, token_metrics
from tutelage.tasks import wilson_interval
from tutelage.tasks.causal_lm.generated import Reply


def by_name(found):
    return {m.name: m for m in found}


def some_scores(n=400, documents=20, seed=0):
    draw = np.random.default_rng(seed)
    student, teacher = draw.normal(0, 2, (2, n, 11))
    targets, owner = draw.integers(0, 11, n), draw.integers(0, documents, n)
    return student, teacher, targets, owner


def test_scores_by_hand():
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    found = scored(np.log(q) + 7, np.log(p) - 3, np.array([1]), np.array([0]))
    np.testing.assert_allclose(found.student, [math.log(0.5)])
    np.testing.assert_allclose(found.teacher, [math.log(0.25)])
    np.testing.assert_allclose(found.kl, [0.25 * math.log(2)])  # ½ ln 2 - ¼ ln 2
    assert found.same.tolist() == [False]
    same = scored(np.log(p) + 1e4, np.log(p), np.array([0]), np.array([0]))
    np.testing.assert_allclose(same.kl, [0], atol=1e-9)
    assert same.same.tolist() == [True]


def test_tokens_that_the_teacher_rules_out_cost_nothing():
    p, q = np.array([[0.0, 1.0, -np.inf]]), np.array([[0.0, 1.0, 2.0]])
    found = scored(q, p, np.array([1]), np.array([0]))
    assert np.isfinite(found.kl).all() and found.kl[0] > 0


def test_figures_by_hand():
    scores = TokenScores(
        student=np.log([0.5, 0.25, 0.125]), teacher=np.log([0.5, 0.5, 0.5]),
        kl=np.array([0.1, 0.2, 0.6]), same=np.array([True, False, True]),
        document=np.array([4, 4, 9]), where="cpu",
    )  # fmt: skip
    found = by_name(token_metrics(scores))
    assert {k: round(m.value, 9) for k, m in found.items()} == {
        "perplexity": 4.0, "perplexity_teacher": 2.0, "perplexity_ratio": 2.0,
        "kl_a_token": 0.3, "agreement_greedy": round(2 / 3, 9),
    }  # fmt: skip
    assert all((m.n, m.unit, m.kind, m.where) == (2, "1", "measured", "cpu")
               for m in found.values())  # fmt: skip
    # either document drawn twice, or both: means between those of one alone
    low, high = found["perplexity"].spread
    assert low == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.25)) / 2))
    assert high == pytest.approx(8.0)


def test_batches_joined_are_as_one():
    student, teacher, targets, owner = some_scores()
    whole = scored(student, teacher, targets, owner)
    parts = [scored(student[a:b], teacher[a:b], targets[a:b], owner[a:b])
             for a, b in ((0, 7), (7, 300), (300, 400))]  # fmt: skip
    assert token_metrics(joined(parts)) == token_metrics(whole)
    assert token_metrics(whole, seed=1) != token_metrics(whole)
    alone = TokenScores(student=whole.student, document=owner)
    assert [m.name for m in token_metrics(joined([alone]))] == ["perplexity"]


def test_intervals_are_over_documents_and_not_over_tokens():
    draw = np.random.default_rng(0)
    owner = np.repeat(np.arange(40), 50)
    level = draw.normal(-3, 0.5, 40)  # the tokens of a document are alike
    scores = TokenScores(student=level[owner] + draw.normal(0, 0.01, 2_000), document=owner)
    low, high = token_metrics(scores)[0].spread
    wanted = 2 * 1.96 * level.std() / math.sqrt(40)
    assert math.log(high / low) == pytest.approx(wanted, rel=0.15)
    each = TokenScores(student=scores.student, document=np.arange(2_000))
    low, high = token_metrics(each)[0].spread
    assert math.log(high / low) < wanted / 5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw, hits = np.random.default_rng(3), 0
    for trial in range(25):
        sizes = draw.integers(5, 40, 60)
        owner = np.repeat(np.arange(60), sizes)
        level = draw.normal(-2, 0.4, 60)
        scores = TokenScores(student=level[owner], document=owner)
        low, high = token_metrics(scores, seed=trial)[0].spread
        hits += low <= math.exp(2) <= high
    assert 21 <= hits  # 24 on average


def test_the_ratio_is_paired():
    student, teacher, targets, owner = some_scores()
    held = scored(student, student + 0.01 * teacher, targets, owner)
    found = by_name(token_metrics(held))
    width = {k: m.spread[1] / m.spread[0] for k, m in found.items()}
    assert width["perplexity_ratio"] < 1.01 < 1.1 < width["perplexity"]


def test_degeneration_by_hand():
    replies = [
        Reply(text="", tokens=(1, 2, 3, 4, 1, 2, 3, 4), ended=False),  # 1 of 5 4-grams came before
        Reply(text="", tokens=(1, 2, 5), ended=True),
        Reply(text="", tokens=(), ended=True),
    ]
    found = by_name(degeneration(replies, where="cpu"))
    assert found["repeated_4grams"].value == pytest.approx(0.2 / 3)
    # (1,2) (2,3) (3,4) (4,1) and (2,5), of nine pairs
    assert found["distinct_2"].value == pytest.approx(5 / 9) and found["distinct_2"].spread is None
    assert found["answer_tokens"].value == pytest.approx(11 / 3)
    assert found["ended"].value == pytest.approx(2 / 3)
    assert found["ended"].spread == wilson_interval(2 / 3, 3)
    assert found["answer_tokens"].spread[0] < 11 / 3 < found["answer_tokens"].spread[1]
    assert all((m.n, m.where) == (3, "cpu") for m in found.values())


def test_a_model_in_a_circle_is_seen():
    draw = np.random.default_rng(0)
    healthy = [Reply(text="", tokens=tuple(draw.integers(0, 999, 40).tolist())) for _ in range(20)]
    circling = [Reply(text="", tokens=(7, 8) * 20, ended=False) for _ in range(20)]
    good, bad = by_name(degeneration(healthy)), by_name(degeneration(circling))
    assert good["repeated_4grams"].spread[1] < 0.01 < 0.9 < bad["repeated_4grams"].spread[0]
    assert good["distinct_2"].value > 0.9 > 0.01 > bad["distinct_2"].value
    assert bad["ended"].value == 0 and bad["ended"].spread[1] < 0.2


def test_bad_scores_are_refused_in_one_line():
    one = np.zeros(3)
    refused("no tokens to measure", token_metrics, TokenScores(student=one[:0], document=one[:0]))
    refused("no tokens to measure", joined, [])
    refused("no answers to measure", degeneration, [])
    refused("'kl' has shape (2,), not (3,) (cpu)", token_metrics,
            TokenScores(student=one, document=one, kl=one[:2], where="cpu"))  # fmt: skip
    refused("1 of 3 tokens have a 'teacher' that is not finite", token_metrics,
            TokenScores(student=one, document=one, teacher=np.array([0, -np.inf, 0])))  # fmt: skip
