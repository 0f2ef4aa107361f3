"""float16 in whole runs: asked for by name, taken where int8 is refused, refused itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from tutelage.pipeline import shipping

Job = Callable[..., Path]
WIDE = {"spec": {"family": "convnet", "widths": [8, 16], "depths": [1, 1]}}
PI = {"device": "raspberry-pi-4", "budget": {"storage": "20 kB"}, "student": WIDE}


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each precision is made to lose on validation; nothing, unless a test says so."""
    lost: dict[str, float] = {}

    def loss(self: Any, path: Path) -> float:
        return next((lost[name] for name in lost if name in path.name), 0.0)

    monkeypatch.setattr(shipping.PrecisionCheck, "loss", loss)
    monkeypatch.setattr(shipping, "distill_for_int8", lambda *args, **options: [])
    return lost


def test_it_ships_where_int8_is_refused_and_is_planned_where_it_is_asked_for(
    job: Job, losses: dict[str, float]
) -> None:
    losses["int8"] = 0.5
    recipe = job({**PI, "distill": {"epochs": 2, "batch": 32}})
    run = recipe.parent / "run"
    answer = tiny.cli("run", recipe, "--run", run, "--json").answer
    assert answer["chosen"] == "artifacts/student-float16.onnx"
    sizes = {row["precision"]: row["bytes"] for row in answer["artifacts"]}
    assert list(sizes) == ["float32", "float16"]
    assert sizes["float32"] > 20_000 > sizes["float16"]
    assert answer["status"] == "met"
    proof = json.loads((run / "proof.json").read_text())
    assert [row["artifact"] for row in proof["parity"]][1] == "student-float16.onnx"
    assert any(note.startswith("int8 was refused: ") for note in proof["notes"])
    assert "in float16 and computed with in float32" in proof["artifacts"][1]["notes"][0]
    assert "student-float16.onnx" in (run / "report.html").read_text()

    job({**PI, "distill": {"epochs": 2, "batch": 32}, "export": {"precision": "float16"}})
    answer = tiny.cli("run", recipe, "--run", run, "--json").answer
    assert answer["chosen"] == "artifacts/student-float16.onnx"
    plan = json.loads((run / "plan.json").read_text())["candidates"][0]
    figures = {row["name"]: row["value"] for row in plan["figures"]}
    assert figures["storage_bytes"] == pytest.approx(sizes["float16"], abs=100)

    losses["float16"] = 0.25  # a larger one: the files are made again
    job({**PI, "distill": {"epochs": 2, "batch": 32},
         "export": {"precision": "float16", "largest_loss": 0.02}})  # fmt: skip
    said = tiny.cli("run", recipe, "--run", run)
    assert said.status == 2
    assert "float16 loses 0.250 of the accuracy" in said.errors[0]
    assert [p.name for p in (run / "artifacts").iterdir()] == ["student-float32.onnx"]


def test_a_device_that_reads_weights_from_flash_refuses_it(job: Job) -> None:
    recipe = job({"export": {"precision": "float16"}, "device": "nucleo-h7a3"})
    said = tiny.cli("run", recipe, "--run", recipe.parent / "run")
    assert said.status == 2
    assert said.errors[0].startswith("error: export.precision: nucleo-h7a3 reads weights")
    said = tiny.cli("plan", recipe, "--run", recipe.parent / "run")
    assert said.status == 2
