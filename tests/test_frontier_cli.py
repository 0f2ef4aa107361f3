"""`tutelage plan --frontier`: its tables, its JSON, and what it says before anything was tried."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
from conftest import Finished
from test_frontier import row

from tutelage.devices import HOST, list_devices
from tutelage.export.graph import GraphCosts
from tutelage.pipeline import feasible
from tutelage.plan.scores import Score, Scores
from tutelage.records import Measurement
from tutelage.students.spec import StudentSpec


def stored(path: Path) -> Scores:
    found = Scores(path=path, lesson="x")
    for width, scale, value, taught in ((4, 1, 0.9, None), (6, 2, 0.85, None), (8, 80, 0.95, 0.97)):
        data = row(scale, value, taught)
        knobs = {"family": "convnet", "image": [1, 8, 8], "classes": 3, "widths": [width, 8],
                 "depths": [1, 1]}  # fmt: skip
        spec = StudentSpec.from_json(knobs)
        found.rows[str(width), "int8"] = Score(
            spec=spec,
            parameters=data["parameters"],
            precision="int8",
            counted=GraphCosts.from_json(data["counted"]),
            trial=Measurement.from_json(data["trial"]),
            taught=None if taught is None else Measurement.from_json(data["taught"]),
        )
    return found


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    monkeypatch.setattr(feasible, "scores_of", lambda *_: stored(path))


def test_before_a_run_it_says_what_to_do(finished: Finished, tmp_path: Path) -> None:
    said = tiny.cli("plan", finished.recipe, "--run", tmp_path / "none", "--frontier")
    assert said.status == 2
    assert len(said.errors) == 1 and "tutelage run RECIPE --run" in said.errors[0]
    assert "no student was tried yet" in said.errors[0]


@pytest.mark.usefixtures("tried")
def test_the_answer_holds_the_frontier_and_every_device(finished: Finished) -> None:
    answer = tiny.cli("plan", finished.recipe, "--frontier", "--json").answer
    assert answer["status"] == "feasible", "the rest of the plan's answer is there too"
    found = answer["frontier"]
    assert (found["metric"], found["tried"]) == ("accuracy_validation", 3)
    assert [s["from"] for s in found["students"]] == ["trial", "taught"]
    for student in found["students"]:
        assert student["on"] == ["storage_bytes", "latency_s", "energy_j"]
        assert {f["name"] for f in student["figures"]} >= {*student["on"], "ram_bytes", "macs"}
        assert all(f["kind"] in ("predicted", "estimated") for f in student["figures"])
    assert list(answer["devices"]) == [n for n in list_devices() if n != HOST]
    assert all((d["student"] is None) == bool(d["reason"]) for d in answer["devices"].values())
    assert "frontier" not in tiny.cli("plan", finished.recipe, "--json").answer


@pytest.mark.usefixtures("tried")
def test_the_tables_fit_80_columns(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = tiny.cli("plan", finished.recipe, "--frontier")
    assert said.status == 0
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "the frontier, 2 of 3 students tried" in lines[0]
    shown = said.out
    assert "97.00% t" in shown and "90.00%" in shown and "predicted" in shown
    for name in list_devices():
        assert (f" {name} " in shown) == (name != HOST)


def test_students_without_a_figure_are_not_tried(finished: Finished, monkeypatch, tmp_path) -> None:
    store = stored(tmp_path / "scores.json")
    store.rows = {k: dataclasses.replace(r, trial=None, taught=None) for k, r in store.rows.items()}
    monkeypatch.setattr(feasible, "scores_of", lambda *_: store)
    assert tiny.cli("plan", finished.recipe, "--frontier").status == 2
