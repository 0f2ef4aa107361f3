"""Figures and student specs as words."""

from __future__ import annotations

import pytest

from tutelage.report import candidates, comparison, figures, overview, training


@pytest.mark.parametrize(
    ("name", "value", "unit", "text"),
    [
        ("accuracy_test", 0.98878, "1", "98.9 %"),
        ("accuracy_test", 0.9997, "1", "99.97 %"),
        ("accuracy_test", 1.0, "1", "100 %"),
        ("calibration_error_student", 0.0003, "1", "0.03 %"),
        ("parameters", 696554.0, "1", "696,554"),
        ("kl", 0.0412, "1", "0.0412"),
        ("latency_noise_floor", 0.03634, "1", "3.6 %"),
        ("storage_bytes", 24312, "B", "24.3 kB"),
        ("latency_p50_s", 0.00021, "s", "210 µs"),
        ("energy_j", float("nan"), "J", "unknown"),
    ],
)
def test_figures_as_text(name, value, unit, text):
    assert figures.quantity(name, value, unit) == text


def test_intervals_ratios_points_and_kinds():
    m = figures.made("accuracy_test", 0.9778, n=360)
    assert (m.text, m.kind, m.hint) == ("97.8 %", "measured", "measured, 360 readings")
    data = {"name": "latency_p50_s", "value": 0.02, "unit": "s", "kind": "predicted", "n": 1}
    shown = figures.read_figure({**data, "spread": [0.0171, 0.0242], "where": "board"})
    assert shown.spread == "17.1 to 24.2 ms"
    assert shown.hint == "predicted, 95 % interval 17.1 to 24.2 ms: board"
    wide = figures.read_figure({**data, "spread": [0.0009, 0.0242], "where": ""})
    assert wide.spread == "900 µs to 24.2 ms"
    assert figures.ratio(2792.0, 24.312) == "115×" and figures.ratio(20.0, 10.0) == "2×"
    assert figures.points(-0.0553) == "−5.5" and figures.points(0.0001) == "±0"
    assert figures.weakest(["measured", "estimated", "predicted"]) == "estimated"


def test_spec_of_another_family_is_still_described():
    assert overview.describe({"family": "own", "layers": 3}) == "family own, layers 3"
    assert overview.describe({}) == "unknown"


def test_a_figure_that_is_about_the_same_is_not_called_less():
    def change(teacher: float, student: float) -> str:
        both = {"teacher": teacher, "student": student}
        given = {
            who: [{"name": "storage_bytes", "value": x, "unit": "B", "kind": "measured"}]
            for who, x in both.items()
        }
        (row,) = comparison.comparison({"figures": given})
        assert row.change is not None
        return row.change.text

    assert change(40_000, 40_000) == change(43_700, 45_100) == "about the same"
    assert (change(60_000, 40_000), change(40_000, 60_000)) == ("1.5× less", "1.5× more")


def test_the_last_value_of_a_loss_is_that_of_the_last_epoch_that_had_it():
    history = {"loss": [4.0, 2.0], "parts": [{"a": 1.0, "b": 3.0}, {"a": 2.0}]}
    found = training.training({"weights": {"a": 1.0, "b": 1.0}, "history": history}, {})
    assert found is not None
    assert [row.last.text for row in found.losses if row.last] == ["2", "3"]


def test_where_a_student_comes_from_follows_what_it_is():
    spec = {"family": "decoder", "layers": 2}
    row = {
        "spec": spec, "space": "sliced", "parameters": 9, "figures": [], "fits": True,
        "missed": [], "trial": None, "chosen": True,
    }  # fmt: skip
    found = candidates.candidates({"candidates": [row], "space": "sliced", "limits": []})
    assert found is not None and found.rows[0].detail == "sliced from the teacher"


def test_slices_of_a_language_model_are_told_in_words_with_the_form_of_their_file():
    spec = {
        "family": "decoder", "kind": "llama", "layers": 30, "hidden": 576, "inner": 1408,
        "groups": 3, "vocabulary": 15943,
    }  # fmt: skip
    row = {
        "spec": spec, "space": "sliced", "precision": "q5_1", "parameters": 9, "figures": [],
        "fits": True, "missed": [], "trial": None, "chosen": True,
    }  # fmt: skip
    found = candidates.candidates({"candidates": [row], "space": "sliced", "limits": []})
    assert found is not None
    assert found.rows[0].what.replace("\u00a0", " ") == "30 layers, 1,408 units"
    assert found.rows[0].detail == (
        "llama, 3 groups, 576 numbers a token, knows 15,943 tokens, q5_1, sliced from the teacher"
    )
