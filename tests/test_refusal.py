"""Budgets that cannot be met: what binds, the nearest point, and the device that would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from tutelage.devices import load_device
from tutelage.errors import InfeasibleError
from tutelage.pipeline.material import read_material
from tutelage.pipeline.planning import budget_of, costing_of
from tutelage.plan.candidate import stand_in, weigh
from tutelage.plan.compact import candidates
from tutelage.plan.costs import Costing
from tutelage.plan.refusal import advice, infeasible, shortfall, what_would_do
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement, SideFile, Verdict, WouldDo
from tutelage.students.spec import StudentSpec


def costing(folder: Path, device: str, budget: dict[str, object], side: int = 8) -> Costing:
    tiny.write_data(folder / "data.npz", count=60, shape=(side, side, 1))
    changes = {"device": device, "budget": budget, "augment": {}}
    recipe = Recipe.read(tiny.write_recipe(folder, changes))
    material = read_material(recipe)
    profile = load_device(recipe.device)
    return costing_of(recipe, material, profile, budget_of(recipe, profile, 1_000_000))


def small(side: int = 8) -> StudentSpec:
    knobs = {**tiny.SMALL["spec"], "image": [1, side, side], "classes": 3}
    return StudentSpec.from_json(knobs)


def refused(asked: Costing, side: int = 8) -> tuple[str, WouldDo]:
    candidate = weigh(small(side), asked)
    assert candidate.missed
    found = shortfall([candidate], [stand_in(candidate.spec)], asked)
    return str(infeasible(found, asked.device, given=True)), found.would_do


def test_a_limit_on_time_names_the_first_device_that_is_fast_enough(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-g0b1", {"latency": "0.2 ms"})
    line, would_do = refused(asked)
    assert would_do.device is not None
    quicker = replace(asked, device=load_device(would_do.device))
    assert not weigh(small(), quicker).missed
    assert f"device: {would_do.device}; or raise the limit to budget: {{latency: " in line
    (limit,) = would_do.limits
    assert not weigh(small(), replace(asked, limits=(limit,))).missed
    for name in ("esp32-s3", "disco-f746"):  # smaller than the named one, and too slow or equal
        device = load_device(name)
        if device.limits.free("ram_bytes") < quicker.device.limits.free("ram_bytes"):
            assert weigh(small(), replace(asked, device=device)).missed


def test_where_the_device_itself_is_too_small_only_another_would_do(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-g0b1", {}, side=160)
    line, would_do = refused(asked, side=160)
    assert "memory is limited to 128 kB and it needs" in line
    assert would_do.limits == ()
    need = next(
        f.value for f in weigh(small(160), asked).figures if f.name == "peak_activation_bytes"
    )
    assert would_do.device is not None
    chosen = load_device(would_do.device).limits.free("ram_bytes")
    assert need < chosen < 1e6, "a microcontroller will do; no larger machine is named"
    assert load_device("disco-f746").limits.free("ram_bytes") < chosen, "288 kB are just too few"
    assert "leave student: out" in line


def test_what_no_device_can_do_is_said(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-l4r5", {"latency": "1 ns", "storage": "10 B"})
    line, would_do = refused(asked)
    assert would_do.device is None
    assert "No other known device would do: raise the limit to budget: {latency: " in line
    assert {limit.metric for limit in would_do.limits} == {"latency_s", "storage_bytes"}


def test_nothing_is_proposed_that_a_device_has_no_figure_for(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-l4r5", {"energy": "1 uJ"})
    _, would_do = refused(asked)
    device = would_do.device
    assert device is None or load_device(device).active_power_w is not None


@pytest.mark.parametrize(
    ("metric", "value", "rounded"),
    [
        ("storage_bytes", 6212.0, 6300.0),  # up to two digits
        ("storage_bytes", 6300.0, 6300.0),
        ("latency_s", 0.00301, 0.0031),
        ("accuracy", 0.93789, 0.937),  # down to three decimals
    ],
)
def test_the_value_that_would_do_is_rounded_away_from_the_limit(
    metric: str, value: float, rounded: float
) -> None:
    device = load_device("raspberry-pi-4")
    limit = Limit(metric=metric, value=0.99 if metric == "accuracy" else 1e-6)  # type: ignore[arg-type]
    figure = Measurement(name=metric, value=value, unit="1", kind="measured")
    verdict = Verdict(limit=limit, figure=figure)
    found = what_would_do([], [verdict], [limit], device, "int8", beside=())
    assert found.device is None
    assert [x.value for x in found.limits] == [pytest.approx(rounded, rel=1e-12)]


def test_a_device_that_has_no_room_for_the_files_beside_is_not_proposed(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-g0b1", {"latency": "0.2 ms"})
    _, alone = refused(asked)
    assert alone.device is not None
    room = load_device(alone.device).limits.free("storage_bytes")
    _, found = refused(replace(asked, beside=(SideFile(name="tokenizer.json", bytes=int(room)),)))
    assert found.device is not None
    assert load_device(found.device).limits.free("storage_bytes") > room


def test_the_nearest_of_several_is_the_one_least_over(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-l4r5", {"storage": "1 kB"})
    narrow = weigh(small(), asked)
    spec = replace(small(), knobs=replace(small().knobs, widths=(16, 32)))
    wide = weigh(spec, asked)
    found = shortfall([wide, narrow], [stand_in(spec), stand_in(narrow.spec)], asked)
    assert found.parameters == narrow.parameters < wide.parameters


def test_a_teacher_too_small_for_a_student_is_not_blamed_on_the_budget(tmp_path: Path) -> None:
    asked = costing(tmp_path, "nucleo-l4r5", {"storage": "100 kB"})
    with pytest.raises(InfeasibleError, match="half of the teacher's") as caught:
        candidates(
            asked, families=("convnet",), given={"image": (1, 8, 8), "classes": 3},
            most_parameters=10, count=1,
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_the_words_when_nothing_helps() -> None:
    assert advice(WouldDo(device=None)).startswith("No known device would do")
    assert advice(WouldDo.from_json({"device": "x", "limit": {}})) == "This would do: device: x"
