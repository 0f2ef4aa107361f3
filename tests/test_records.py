"""Facts: limits, verdicts and margins, and their plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.records import Artifact, Limit, Measurement, OpCost, Verdict


def figure(value, **changes):
    given = {"name": "x", "value": value, "unit": "B", "kind": "measured", **changes}
    return Measurement(**given)


@pytest.mark.parametrize(
    ("metric", "limit", "value", "met", "margin"),
    [
        ("storage_bytes", 100.0, 60.0, True, 0.4),
        ("storage_bytes", 100.0, 100.0, True, 0.0),
        ("storage_bytes", 100.0, 100.1, False, -0.001),
        ("latency_s", 0.002, 0.003, False, -0.5),
        ("energy_j", 0.005, 0.0, True, 1.0),
        ("ram_bytes", 64.0, math.inf, False, -math.inf),
        ("accuracy", 0.9, 0.99, True, 0.1),
        ("accuracy", 0.9, 0.9, True, 0.0),
        ("accuracy", 0.9, 0.45, False, -0.5),
        ("accuracy", 0.9, 0.0, False, -1.0),
    ],
)
def test_limits_and_margins(metric, limit, value, met, margin):
    line = Limit(metric=metric, value=limit)
    assert line.met_by(value) is met
    assert line.margin(value) == pytest.approx(margin)


@pytest.mark.parametrize("metric", ["storage_bytes", "accuracy"])
def test_nan_keeps_no_limit(metric):
    assert not Limit(metric=metric, value=0.5).met_by(math.nan)
    assert not Limit(metric=metric, value=math.nan).met_by(0.5)
    assert math.isnan(Limit(metric=metric, value=0.5).margin(math.nan))
    assert not Verdict(limit=Limit(metric=metric, value=0.5), figure=figure(math.nan)).met


@given(
    st.sampled_from(["storage_bytes", "latency_s", "accuracy"]),
    st.floats(1e-6, 1e9),
    st.floats(0, 1e9),
)
def test_the_sign_of_the_margin_is_the_verdict(metric, limit, value):
    line = Limit(metric=metric, value=limit)
    assert line.met_by(value) == (line.margin(value) >= 0)


def test_a_verdict_is_flat_and_plain():
    verdict = Verdict(
        limit=Limit(metric="energy_j", value=0.004, hard=False, source="device x"),
        figure=figure(0.003, unit="J", kind="estimated", where="x, cost model"),
    )
    row = verdict.to_json()
    assert row.pop("margin") == pytest.approx(0.25)
    assert row == {
        "metric": "energy_j", "limit": 0.004, "hard": False, "source": "device x",
        "value": 0.003, "kind": "estimated", "where": "x, cost model", "met": True,
    }  # fmt: skip


floats = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Measurement,
        name=st.text(max_size=5),
        value=floats,
        unit=st.sampled_from(["s", "B", "J", "W", "MAC", "1"]),
        kind=st.sampled_from(["measured", "predicted", "estimated"]),
        n=st.integers(1, 10**6),
        spread=st.none() | st.tuples(floats, floats),
        where=st.text(max_size=5),
    )
)
def test_a_measurement_comes_back_from_json(measurement):
    text = json.dumps(measurement.to_json(), allow_nan=False)
    assert Measurement.from_json(json.loads(text)) == measurement


@pytest.mark.parametrize("notes", [(), ("a", "b")])
def test_an_artifact_comes_back_from_json(notes):
    artifact = Artifact(
        path="artifacts/s.onnx", runtime="onnx", precision="int8", bytes=5, sha256="ab", notes=notes
    )
    assert Artifact.from_json(json.loads(json.dumps(artifact.to_json()))) == artifact


def test_facts_cannot_be_changed_or_given_by_position():
    for kind in (Measurement, Limit, Verdict, Artifact, OpCost):
        assert kind.__dataclass_params__.frozen and "__slots__" in vars(kind)
        with pytest.raises(TypeError):
            kind(*range(len(dataclasses.fields(kind))))
    with pytest.raises(dataclasses.FrozenInstanceError):
        figure(1.0).value = 2.0


@pytest.mark.parametrize("missing", ["unit", "kind"])
def test_a_figure_without_unit_or_kind_does_not_exist(missing):
    row = figure(1.0).to_json()
    del row[missing]
    with pytest.raises(TypeError):
        Measurement.from_json(row)
