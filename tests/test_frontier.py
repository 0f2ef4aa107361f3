"""The frontier of tried students: what none dominates, and what fits each known device."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest

from tutelage.devices import HOST, list_devices, load_device
from tutelage.export.graph import GraphCosts
from tutelage.measure.frontier import (
    AXES,
    Tried,
    choose,
    choose_all,
    costs_on,
    frontier,
    place,
    read_tried,
)
from tutelage.records import Measurement, OpCost, SideFile

BOARD = load_device("nucleo-l4r5")


def counted(scale: float, bits: int = 8) -> GraphCosts:
    size = int(10_000 * scale)
    conv = OpCost(
        name="c", op="conv", bits=bits, macs=40 * size, weight_bytes=size, read_bytes=2_000,
        write_bytes=2_000, output_elements=2_000, kind="QLinearConv", weight_bits=8,
        channels=(8, 16),
    )  # fmt: skip
    return GraphCosts(
        ops=(conv,), macs=40 * size, parameter_bytes=size, peak_activation_bytes=4_000,
        file_bytes=size + 400,
    )  # fmt: skip


def row(scale: float, trial: float | None, taught: float | None = None) -> dict[str, Any]:
    def figure(value: float | None, where: str) -> dict[str, Any] | None:
        if value is None:
            return None
        found = Measurement(
            name="accuracy_validation", value=value, unit="1", kind="measured", n=200, where=where
        )
        return found.to_json()

    widths = [int(8 * scale), int(16 * scale)]
    return {
        "spec": {"family": "convnet", "widths": widths, "depths": [1, 1], "block": "plain"},
        "parameters": int(9_000 * scale),
        "precision": "int8",
        "counted": dataclasses.asdict(counted(scale)),
        "trial": figure(trial, "after 80 steps"),
        "taught": figure(taught, "artifact"),
        "steps": 80,
    }


def tried(*rows: dict[str, Any]) -> tuple[Tried, ...]:
    return read_tried({"format": 1, "rows": list(rows)})


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([], ()),
        ([(0.9, 10.0)], (0,)),
        ([(0.9, 10.0), (0.8, 20.0)], (0,)),
        ([(0.9, 10.0), (0.95, 20.0)], (0, 1)),
        ([(0.95, 20.0), (0.9, 10.0)], (1, 0)),  # cheapest first
        ([(0.9, 10.0), (0.9, 20.0)], (0,)),  # as good, dearer
        ([(0.9, 10.0), (0.8, 10.0)], (0,)),  # as dear, worse
        ([(0.9, 10.0), (0.9, 10.0), (0.8, 10.0)], (0, 1)),  # equal ones stay
        ([(0.9, None), (0.8, 10.0)], (1,)),  # no figure: left out, and dominates nothing
        ([(0.9, None)], ()),
        ([(-3.0, 1.0), (-2.0, 2.0)], (0, 1)),  # R2 may be below zero
    ],
)
def test_frontier_by_hand(points, kept):
    assert frontier(points) == kept


def test_frontier_against_the_definition():
    draw = random.Random(0)
    for _ in range(60):
        points = [(draw.randint(0, 6) / 6, float(draw.randint(1, 6))) for _ in range(12)]
        plain = {
            i
            for i, (v, c) in enumerate(points)
            if not any(w >= v and d <= c and (w, d) != (v, c) for w, d in points)
        }
        found = frontier(points)
        assert set(found) == plain
        assert [points[i][1] for i in found] == sorted(points[i][1] for i in found)


def test_a_full_distillation_stands_before_a_trial():
    short, full = tried(row(1, 0.9), row(2, 0.9, 0.97), row(3, None))
    assert (short.figure.value, short.taught) == (0.9, False)
    assert (full.figure.value, full.taught, full.figure.where) == (0.97, True, "artifact")
    assert short.counted == counted(1)


def test_what_is_no_store_is_told():
    bad = row(1, 0.9)
    bad["trial"]["value"] = float("nan")
    with pytest.raises(ValueError, match="not a finite number"):
        tried(bad)
    with pytest.raises(ValueError, match="format 2"):
        read_tried({"format": 2, "rows": []})
    with pytest.raises(KeyError, match="counted"):
        tried({k: v for k, v in row(1, 0.9).items() if k != "counted"})


def test_students_are_placed_on_a_device():
    placed = place(tried(row(1, 0.9), row(2, 0.85), row(3, 0.95)), BOARD)
    assert [p.frontier for p in placed] == [AXES, (), AXES]
    costs = placed[0].costs
    assert costs["storage_bytes"].value == 10_400 and costs["storage_bytes"].kind == "predicted"
    assert costs["energy_j"].kind == "estimated"


def test_files_beside_the_model_count():
    (student,) = tried(row(1, 0.9))
    beside = (SideFile(name="tokenizer.json", bytes=600),)
    assert costs_on(student, BOARD, beside)["storage_bytes"].value == 11_000


def test_a_device_without_a_figure_draws_no_frontier_of_it():
    powerless = BOARD.model_copy(update={"active_power_w": None})
    (placed,) = place(tried(row(1, 0.9)), powerless)
    assert placed.frontier == ("storage_bytes", "latency_s") and "energy_j" not in placed.costs


def test_the_best_that_fits_is_chosen_and_the_cheaper_of_equals():
    # the board has 2 MB of flash: 300 times 10 kB are too many
    students = tried(row(300, 0.99), row(2, 0.95), row(1, 0.95), row(3, 0.9))
    choice = choose(students, BOARD)
    assert choice.best is not None and choice.best.tried is students[2]
    assert choice.reason == ""
    without = choose(students[:1], BOARD)
    assert without.best is None and without.reason == "too little storage for each of them"


def test_limits_missed_by_turns_and_precisions_that_a_device_lacks():
    (wide,) = tried(row(1, 0.9))
    greedy = dataclasses.replace(
        wide, counted=dataclasses.replace(wide.counted, peak_activation_bytes=10**9)
    )
    (large,) = tried(row(300, 0.9))
    assert choose([greedy, large], BOARD).reason == "none keeps both of its limits"
    assert choose([greedy], BOARD).reason == "too little memory for each of them"
    only8 = BOARD.model_copy(update={"precisions": ("int8",)})
    assert choose([dataclasses.replace(wide, precision="float32")], only8).reason == (
        "none was tried in int8"
    )


def test_every_known_device_gets_an_answer_but_this_machine():
    found = choose_all(tried(row(1, 0.9), row(60, 0.95), row(2_000, 0.97)))
    assert [c.device.name for c in found] == [n for n in list_devices() if n != HOST]
    assert all((c.best is None) == bool(c.reason) for c in found)
    chosen = {c.device.name: c.best.tried.figure.value for c in found if c.best is not None}
    assert chosen["raspberry-pi-5"] == 0.97
    assert len(set(chosen.values())) > 1, "small boards take smaller students"
    assert list(itertools.islice(chosen, 1)) == ["browser"]
