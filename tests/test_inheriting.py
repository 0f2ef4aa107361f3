"""Students that start with a slice of the teacher, or of a student taught before in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tutelage.files import read_tensors

WIDE = {"family": "convnet", "widths": [6, 8], "depths": [2, 1]}
NARROW = {"family": "convnet", "widths": [4, 6], "depths": [1, 1]}
OTHER = {"family": "convnet", "widths": [6, 8], "depths": [1, 1], "block": "depthwise"}


def job(folder: Path, spec: dict[str, Any], **changes: Any) -> Path:
    if not (folder / "data.npz").exists():
        tiny.write_data(folder / "data.npz")
    student = {"spec": spec, **{k: changes.pop(k) for k in ("start", "further") if k in changes}}
    return tiny.write_recipe(folder, {"student": student, **changes})


def run(folder: Path, spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Run one recipe in `folder/run`; return what its distillation found."""
    recipe = job(folder, spec, **changes)
    said = tiny.cli("run", recipe, "--run", folder / "run")
    assert said.status == 0, said.errors
    return stages(folder)["distill"]["result"]


def stages(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run/run.json").read_text())["stages"]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(path)[0]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose run taught the wide student, then the narrow one."""
    folder = tmp_path_factory.mktemp("nearest")
    assert "start" not in run(folder, WIDE), "nothing was taught before"
    run(folder, NARROW)
    return folder


def norms_are_of(weights: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> bool:
    """Say whether the stem's norm holds some of the whole's means, in spreads.

    Fitting leaves them as they were, and scaling filters scales both.
    """
    own, there = (
        w["stem.1.running_mean"] / w["stem.1.running_var"].sqrt() for w in (weights, whole)
    )
    nearest = (own[:, None] - there).abs().min(dim=1).values
    return len(own) < len(there) and bool((nearest < 1e-4).all())


def test_a_second_student_starts_from_the_first(taught: Path) -> None:
    found = stages(taught)
    assert "6-8" in found["distill"]["result"]["start"][0]
    kept = {n: s["result"]["spec"] for n, s in found.items() if n.startswith("taught-")}
    assert [spec["widths"] for spec in kept.values()] == [[6, 8], [4, 6]]
    wide = next(name for name, spec in kept.items() if spec["widths"] == [6, 8])
    whole = tensors(taught / "run/taught" / wide.removeprefix("taught-") / "model.safetensors")
    (slice_,) = (taught / "run/starts").glob("*.safetensors")
    head = tensors(slice_)["head.weight"]
    assert head.shape == (3, 6) and norms_are_of(tensors(slice_), whole)


LONG = {"epochs": 8, "batch": 32}


@pytest.fixture(scope="module")
def taught_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose run taught the wide student for eight epochs."""
    folder = tmp_path_factory.mktemp("long")
    assert run(folder, WIDE, distill=LONG)["epochs"] == 8
    return folder


@pytest.mark.parametrize(
    ("narrow", "changes", "epochs"),
    [([5, 8], {}, 2), ([2, 2], {}, 4), ([5, 8], {"further": 3}, 3), ([5, 8], {"start": "fresh"}, 8)]
)  # fmt: skip
def test_what_is_part_of_a_taught_student_is_taught_for_less(
    taught_long: Path, tmp_path: Path, narrow: list[int], changes: dict[str, Any], epochs: int
) -> None:
    shutil.copytree(taught_long, tmp_path / "copy")
    result = run(tmp_path / "copy", {**WIDE, "widths": narrow}, distill=LONG, **changes)
    assert result["epochs"] == epochs
    assert ("start" in result) == (epochs != 8)
    gently = "start" in result and narrow == [5, 8]
    assert result["rate"] == pytest.approx(0.01 / 3 if gently else 0.01)


def test_what_was_deleted_is_no_start(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/run/taught")
    narrow = {"family": "convnet", "widths": [4, 4], "depths": [1, 1]}
    assert "start" not in run(tmp_path / "copy", narrow)


def test_what_another_lesson_taught_is_no_start(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "copy")
    result = run(tmp_path / "copy", NARROW, distill={"epochs": 4, "batch": 32})
    assert "start" not in result


def test_what_none_holds_starts_fresh(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "copy")
    assert "start" not in run(tmp_path / "copy", OTHER)


def test_going_back_teaches_nothing_again(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "copy")
    folder = tmp_path / "copy"
    (first,) = [s for n, s in stages(folder).items()
                if n.startswith("taught-") and s["result"]["spec"]["widths"] == [6, 8]]  # fmt: skip
    recipe = job(folder, WIDE)
    said = tiny.cli("run", recipe, "--run", folder / "run")
    assert "it was taught before in this run" in said.err
    assert stages(folder)["distill"]["result"] == first["result"]["result"]
    for name, digest in first["files"].items():
        student = tiny.hashes(folder / "run", f"student/{name.rpartition('/')[2]}")
        assert list(student.values()) == [digest]


def test_a_kept_student_that_was_altered_is_told(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "copy")
    folder = tmp_path / "copy"
    for path in (folder / "run/taught").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    said = tiny.cli("run", job(folder, WIDE), "--run", folder / "run")
    assert said.status == 5 or said.status == 2
    assert len(said.errors) == 1 and "was altered since" in said.errors[0]


def test_a_student_starts_from_the_teacher_where_it_is_part_of_it(tmp_path: Path) -> None:
    result = run(tmp_path, WIDE, start="teacher")
    assert result["start"] == [
        "the weights of the teacher, of the channels and blocks that stay, fitted to it"
    ]
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert [c["space"] for c in plan["candidates"]] == ["sliced"]
    whole = tensors(tmp_path / "run/teacher/model.safetensors")
    (path,) = (tmp_path / "run/starts").glob("*.safetensors")
    assert norms_are_of(tensors(path), whole)


def test_a_student_that_is_no_part_of_the_teacher_starts_fresh_and_it_is_said(
    tmp_path: Path,
) -> None:
    recipe = job(tmp_path, OTHER, start="teacher")
    said = tiny.cli("run", recipe, "--run", tmp_path / "run")
    assert said.status == 0
    assert "1 of 1 start fresh; they are no part of the teacher" in said.err
    assert "start" not in stages(tmp_path)["distill"]["result"]
