"""A whole run: what it leaves behind, what it proves, and when it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Finished

import tutelage
from tutelage.export.artifact import run_onnx
from tutelage.pipeline import shipping
from tutelage.pipeline.material import read_material
from tutelage.recipe import Recipe

Job = Callable[..., Path]
KINDS = {"measured", "predicted", "estimated"}
FILES = (
    "recipe.yaml", "run.json", "signals", "plan.json", "checkpoints", "student/spec.json",
    "student/model.safetensors", "artifacts/student-float32.onnx", "artifacts/student-int8.onnx",
    "proof.json", "report.html", "log.jsonl",
)  # fmt: skip


def proof_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "proof.json").read_text())


def test_the_run_directory_holds_what_the_contract_names(finished: Finished) -> None:
    missing = [name for name in FILES if not (finished.run / name).exists()]
    assert missing == []
    assert [p for p in finished.run.rglob("*.tmp")] == []
    assert Recipe.read(finished.run / "recipe.yaml").device == "nucleo-l4r5"


def test_the_student_has_learned(finished: Finished) -> None:
    answer = finished.said.answer
    assert answer["teacher"]["value"] >= 0.95
    assert answer["student"]["value"] >= 0.9


def test_verdicts_and_hashes_agree_with_the_files(finished: Finished) -> None:
    proof = proof_of(finished.run)
    for row in proof["artifacts"]:
        content = (finished.run / row["path"]).read_bytes()
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    chosen = (finished.run / proof["chosen"]).stat().st_size
    verdicts = {row["metric"]: row for row in proof["verdicts"]}
    assert verdicts["storage_bytes"]["value"] == chosen
    assert verdicts["storage_bytes"]["limit"] == 100_000
    for row in verdicts.values():
        assert row["met"] == (row["value"] <= row["limit"])
    assert proof["status"] == "met"
    assert proof["chosen"] == "artifacts/student-int8.onnx"
    assert [row["n"] for row in proof["parity"]] == [1_000, 1_000], "views fill up"


def test_every_figure_has_its_kind(finished: Finished) -> None:
    figures = list(_figures(proof_of(finished.run)))
    figures += _figures(json.loads((finished.run / "plan.json").read_text()))
    assert len(figures) > 20
    assert [f for f in figures if f.get("kind") not in KINDS] == []


def _figures(data: Any) -> Iterator[dict[str, Any]]:
    if isinstance(data, dict):
        if "value" in data and "unit" in data:
            yield data
        for part in data.values():
            yield from _figures(part)
    elif isinstance(data, list):
        for part in data:
            yield from _figures(part)


def test_the_student_rebuilds_in_torch_and_agrees_with_its_onnx(finished: Finished) -> None:
    network = tutelage.load(finished.run / "student")
    inputs = np.random.default_rng(0).standard_normal((40, 1, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(inputs)).numpy()
    found = run_onnx(finished.run / "artifacts/student-float32.onnx", inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


STRANGER = """
import json, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tutelage", "torch", "onnx", "PIL"):
            raise ImportError(name + " is walled off")

sys.meta_path.insert(0, Wall())
import numpy as np, onnxruntime as ort

session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
meta = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
assert meta["layout"] == "NCHW" and meta["task"] == "vision"
pixels = np.load(sys.argv[2])["x"]
assert pixels.dtype == np.uint8
scaled = (pixels * np.float32(meta["scale"]) - meta["mean"]) / meta["std"]
images = scaled.transpose(0, 3, 1, 2).astype(np.float32)
assert list(images.shape[1:]) == meta["shape"]
says = [session.run(None, {meta["input"]: image[None]})[0][0].argmax() for image in images]
print(json.dumps([meta["classes"][i] for i in says]))
"""


def test_the_artifact_runs_with_nothing_but_onnxruntime_and_numpy(
    finished: Finished, tmp_path: Path
) -> None:
    test = read_material(Recipe.read(finished.recipe)).data.test
    np.savez(tmp_path / "raw.npz", x=test.pixels)
    proof = proof_of(finished.run)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, finished.run / proof["chosen"], tmp_path / "raw.npz"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout)
    right = [said == str(label) for said, label in zip(says, test.labels, strict=True)]
    proved = next(f for f in proof["figures"]["student"] if f["name"] == "accuracy_test")
    assert proved["n"] == len(right)
    assert proved["value"] == pytest.approx(sum(right) / len(right))


def test_a_finished_run_is_not_done_again(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    said = tiny.cli("run", finished.recipe, "--run", run, "--json")
    assert said.status == 0
    assert (run / "log.jsonl").read_bytes() == (finished.run / "log.jsonl").read_bytes()
    whole = ("student", "artifacts", "signals", "checkpoints", "teacher", "proof.json", "plan.json")
    assert tiny.hashes(run, *whole) == tiny.hashes(finished.run, *whole)
    for key in ("teacher", "student", "budget", "artifacts"):
        assert said.answer[key] == finished.said.answer[key]


def test_another_recipe_in_the_same_directory_teaches_another_student(job: Job) -> None:
    def student(losses: dict[str, Any]) -> dict[str, str]:
        recipe = job({"distill": {"epochs": 2, "batch": 32, "losses": losses}})
        said = tiny.cli("run", recipe, "--run", recipe.parent / "run")
        assert said.status == 0, said.err
        return tiny.hashes(recipe.parent / "run", "student/model.safetensors")

    first, other = student({"dist": 1.0}), student({"cross_entropy": 1.0})
    assert first != other
    assert student({"dist": 1.0}) == first


def test_the_test_split_is_read_only_at_the_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage import pipeline
    from tutelage.tasks.vision.task import VisionTask

    recipe = job()
    held_out = read_material(Recipe.read(recipe)).data.test.pixels
    batch, prove = VisionTask.batch, pipeline.prove
    early: list[str] = []
    late: list[str] = []
    stage = [early]

    def watched(self: VisionTask, examples: Any, index: Any, **options: Any) -> Any:
        if np.array_equal(examples.pixels, held_out):
            stage[0].append("read")
        return batch(self, examples, index, **options)

    def last(*args: Any) -> Any:
        stage[0] = late
        return prove(*args)

    monkeypatch.setattr(VisionTask, "batch", watched)
    monkeypatch.setattr(pipeline, "prove", last)
    assert tiny.cli("run", recipe, "--run", recipe.parent / "run").status == 0
    assert early == []
    assert late


def _bad_int8(monkeypatch: pytest.MonkeyPatch, *, repairable: bool) -> list[str]:
    """Let int8 lose everything until it is taught on; return the list of lessons given."""
    taught_on: list[str] = []
    lesson = shipping.distill_for_int8

    def spy(*args: Any, **options: Any) -> Any:
        taught_on.append("int8")
        return lesson(*args, **options)

    def loss(self: Any, path: Path) -> float:
        return 0.0 if "int8" not in path.name or (repairable and taught_on) else 0.5

    monkeypatch.setattr(shipping, "distill_for_int8", spy)
    monkeypatch.setattr(shipping.PrecisionCheck, "loss", loss)
    return taught_on


def test_a_bad_int8_file_is_repaired_by_teaching_on(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_on = _bad_int8(monkeypatch, repairable=True)
    recipe = job()
    run = recipe.parent / "run"
    assert tiny.cli("run", recipe, "--run", run).status == 0
    assert taught_on == ["int8"]
    notes = proof_of(run)["notes"]
    assert any("quantization-aware distillation" in note for note in notes)
    assert sorted(p.name for p in (run / "artifacts").iterdir()) == [
        "student-float32.onnx", "student-int8.onnx",
    ]  # fmt: skip


def test_a_bad_int8_file_that_cannot_be_repaired_is_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_on = _bad_int8(monkeypatch, repairable=False)
    recipe = job({"export": {"precision": "int8"}})
    run = recipe.parent / "run"
    said = tiny.cli("run", recipe, "--run", run)
    assert said.status == 2
    assert taught_on == ["int8"]
    assert len(said.errors) == 1
    assert "export.largest_loss" in said.errors[0]
    assert "int8 loses 0.500" in said.errors[0]
    assert [p.name for p in (run / "artifacts").iterdir()] == ["student-float32.onnx"]
    assert not (run / "proof.json").exists()


def test_float32_ships_where_a_bad_int8_file_is_refused_and_either_may(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bad_int8(monkeypatch, repairable=False)
    recipe = job()
    run = recipe.parent / "run"
    said = tiny.cli("run", recipe, "--run", run, "--json")
    assert said.status == 0
    assert said.answer["chosen"] == "artifacts/student-float32.onnx"
    assert [p.name for p in (run / "artifacts").iterdir()] == ["student-float32.onnx"]
    assert any("int8 loses" in note for note in proof_of(run)["notes"])


@pytest.mark.parametrize("student", [tiny.SMALL, {"candidates": 2}], ids=["fixed", "chosen"])
def test_a_budget_that_cannot_be_met_is_an_answer(job: Job, student: dict[str, Any]) -> None:
    recipe = job({"budget": {"storage": "1 kB"}, "student": student})
    said = tiny.cli("run", recipe, "--run", recipe.parent / "run", "--json")
    assert said.status == 3
    assert said.answer["status"] == "infeasible"
    would_do = said.answer["would_do"]
    assert would_do["device"] is None, "a file is as large on every device"
    assert len(said.errors) == 1
    assert "storage" in said.errors[0]
    assert "1 kB" in said.errors[0]
    nearest = "3.0" if "spec" in student else "1.8"  # a slice of the teacher
    assert f"needs {nearest}" in said.errors[0], "the nearest point is named"
    assert "No other known device would do: raise the limit to budget: {storage:" in said.errors[0]
    planned = tiny.cli("plan", recipe, "--json")
    (verdict,) = [row for row in planned.answer["budget"] if row["metric"] == "storage_bytes"]
    assert f"needs {nearest}" in planned.errors[0], "plan and run name the same student"
    assert verdict["value"] <= would_do["limit"]["storage_bytes"]
    again = job({"budget": {"storage": would_do["limit"]["storage_bytes"]}, "student": student})
    assert tiny.cli("plan", again, "--json").answer["status"] == "feasible"


def test_the_best_of_two_candidates_is_chosen(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.plan import compact

    every = compact.structures_of
    monkeypatch.setattr(compact, "structures_of", lambda families, shrinks: every(families)[:2])
    monkeypatch.setattr(compact, "_WIDEST", 8)
    recipe = job({"student": {"candidates": 2}})
    run = recipe.parent / "run"
    assert tiny.cli("run", recipe, "--run", run).status == 0
    plan = json.loads((run / "plan.json").read_text())
    manifest = json.loads((run / "run.json").read_text())
    trials = {name.split("-")[1] for name in manifest["stages"] if name.startswith("trial-")}
    assert len(trials) == len(plan["candidates"]) == 2
    spec = json.loads((run / "student/spec.json").read_text())
    assert [c["spec"] for c in plan["candidates"] if c["chosen"]] == [spec]


def test_a_missed_accuracy_floor_ends_with_4_and_a_report(job: Job) -> None:
    slow = {"epochs": 1, "batch": 32, "rate": 1e-6}
    recipe = job(
        {"distill": slow, "budget": {"accuracy": 0.99}, "export": {"precision": "float32"}}
    )
    run = recipe.parent / "run"
    said = tiny.cli("run", recipe, "--run", run, "--json")
    assert said.status == 4
    assert len(said.errors) == 1
    assert "accuracy" in said.errors[0]
    assert "from its limit of 0.99" in said.errors[0]
    assert "report.html" in said.errors[0]
    assert (run / "report.html").stat().st_size > 1_000
    assert said.answer["status"] == "missed"
    row = next(row for row in said.answer["budget"] if row["metric"] == "accuracy")
    assert not row["met"]
    assert row["hard"]
    validation = next(
        f for f in proof_of(run)["figures"]["student"] if f["name"] == "accuracy_validation"
    )
    assert row["value"] == validation["value"]
    would_do = said.answer["would_do"]
    assert would_do["device"] is None, "a device changes no decision"
    assert 0 <= row["value"] - would_do["limit"]["accuracy"] < 0.001


def test_a_missed_soft_limit_is_told_and_ends_with_0(job: Job) -> None:
    recipe = job({"budget": {"storage": {"limit": "1 kB", "hard": False}}})
    said = tiny.cli("run", recipe, "--run", recipe.parent / "run", "--json")
    assert said.status == 0
    row = next(row for row in said.answer["budget"] if row["metric"] == "storage_bytes")
    assert not row["met"]
    assert not row["hard"]
    assert said.answer["status"] == "met"
