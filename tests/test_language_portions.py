"""How the text of all teaching is shared out among its steps."""

from types import SimpleNamespace

import numpy as np
import pytest

from tutelage.pipeline.language.portions import portions
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.report.training import training


def shared(steps, *, sequences=4_000, length=100, batch=8, behind=0, epochs=None, tokens=400_000):
    recipe = Recipe.parse(
        {
            "task": "causal_lm",
            "data": {"train": "texts.jsonl"},
            "teacher": {"source": "teacher"},
            "distill": {"batch": batch, **({"epochs": epochs} if epochs else {})},
            "language": {"tokens": tokens},
        }
    )

    class Rows:
        learned = np.ones((sequences, length), bool)

        def __len__(self):
            return sequences

    material = SimpleNamespace(taught=Rows())
    return portions(recipe, material, steps, behind=behind)


def test_all_steps_together_take_the_tokens_once_and_none_twice():
    one, two = shared(2)
    assert one.pieces == two.pieces == 12
    assert (one.first, two.first) == (0, one.count)
    assert (one.count, two.count) == (4, 8)  # the last learns from twice as much


def test_what_was_learned_before_comes_before():
    assert [p.first for p in shared(3, behind=5)] == [5, 8, 11]


@pytest.mark.parametrize(("tokens", "count"), [(400_000, 12), (800_000, 12), (4_000_000, 10)])
def test_a_lesson_is_validated_some_dozen_times(tokens, count):
    (one,) = shared(1, tokens=tokens)
    assert one.count == count
    assert one.count / one.pieces == pytest.approx(tokens / 400_000, rel=0.01)


def test_short_lessons_are_not_cut_finely():
    (one,) = shared(1, sequences=80, tokens=8_000)
    assert (one.pieces, one.count) == (1, 1)
    assert [(p.pieces, p.count) for p in shared(2, sequences=80, tokens=8_000)] == [(3, 1), (3, 2)]


def test_little_text_is_passed_until_the_tokens_are_learned():
    (one,) = shared(1, sequences=80, tokens=80_000)
    assert (one.pieces, one.count) == (1, 10)


def test_named_epochs_are_those_of_each_step():
    one, two = shared(2, epochs=3, sequences=80, tokens=8_000)
    assert one.pieces == 1
    assert (one.count, two.count) == (3, 3)
    assert two.first == 3


def test_the_report_draws_perplexity_over_tokens():
    figure = Measurement(
        name="perplexity_validation", value=31.05, unit="1", kind="measured", where="file"
    )
    taught = {
        "tokens": [1_000, 2_000], "perplexity": [62.5, 40.25], "epochs": 2,
        "bound": "2,000 tokens in 1 step", "history": {"loss": [4.0, 3.0], "best_epoch": 1},
    }  # fmt: skip
    found = training(taught, {}, {"figures": {"teacher": [figure.to_json()]}})
    curve = found.curves[-1]
    assert "40.2" in curve.alt and "2,000 tokens" in curve.alt and "31" in curve.alt
    assert curve.title == (("Validation perplexity by tokens learned", "measured"),)
    assert found.curves[0].alt == "The loss goes from 4 to 3 in 2,000 tokens"
    assert {"2,000 tokens in 1 step", "weights after 2,000 tokens"} <= set(found.facts)
