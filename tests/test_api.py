"""The same from Python: the whole pipeline, one's own student, the single steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Finished
from torch import Tensor, nn

import tutelage
from tutelage.errors import DataError, RecipeError, TutelageError
from tutelage.losses import LOSSES
from tutelage.losses.objective import INSIDE

PUBLIC = {
    "Device", "Recipe", "Result", "TutelageError", "audit", "distill", "export", "fit", "load",
    "measure", "plan",
}  # fmt: skip
PARTS: dict[str, Any] = {"augment": {"views": 2}, "threads": 1}


class Net(nn.Module):
    """Two blocks that end in maps of different width, and a head."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.early = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.ReLU())
        self.head = nn.Linear(2 * width, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.early(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def teacher(finished: Finished) -> nn.Module:
    return tutelage.load(finished.run / "teacher")


def test_at_most_twelve_names_are_public() -> None:
    assert set(tutelage.__all__) == PUBLIC == set(dir(tutelage))
    assert len(PUBLIC) <= 12
    for name in PUBLIC:
        assert callable(getattr(tutelage, name))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        tutelage.distil  # noqa: B018


PACKAGES = (
    "import tutelage.export.artifact, tutelage.plan, tutelage.audit.fidelity, tutelage.measure"
)


@pytest.mark.parametrize("first", ["", PACKAGES])
def test_a_package_with_a_public_name_does_not_hide_it(first: str) -> None:
    code = f"""
import sys, tutelage
assert "torch" not in sys.modules and "numpy" not in sys.modules
{first}
for name in ("plan", "export", "measure", "audit"):
    for _ in range(2):
        try:
            getattr(tutelage, name)()
        except TypeError as error:
            assert "required positional argument" in str(error), error
from tutelage import export
import tutelage.export.parity as parity
assert callable(export) and parity.__name__ == "tutelage.export.parity"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fit_takes_a_module_and_arrays(teacher: nn.Module, quick: None, tmp_path: Path) -> None:
    def fit() -> tutelage.Result:
        return tutelage.fit(
            teacher, tiny.images(), device="nucleo-l4r5", budget={"storage": "100 kB"},
            run=tmp_path / "run", student=tiny.SMALL, distill={"epochs": 4, "batch": 32},
            data={"validation": 0.2}, **PARTS,
        )  # fmt: skip

    result = fit()
    assert result.met
    assert result.artifact.is_file()
    assert result.figure("student", "accuracy_test").value > 0.6
    assert result.figure("teacher", "parameters").value > 1_000
    with pytest.raises(KeyError, match="no figure 'speed'"):
        result.figure("student", "speed")
    assert result.to_json()["status"] == "met"
    before = tiny.hashes(tmp_path / "run", "student", "artifacts")
    again = fit()
    assert tiny.hashes(tmp_path / "run", "student", "artifacts") == before
    for name, tensor in again.student.state_dict().items():
        assert torch.equal(tensor, result.student.state_dict()[name])


def test_fit_trains_a_teacher_where_there_is_none(quick: None, tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz")
    result = tutelage.fit(
        "fit", tmp_path / "data.npz", device="nucleo-l4r5", run=tmp_path / "run",
        teacher={"epochs": 1, "width": 8}, student=tiny.SMALL,
        distill={"epochs": 1, "batch": 32}, export={"precision": "float32"}, **PARTS,
    )  # fmt: skip
    assert (tmp_path / "run/teacher/model.safetensors").is_file()
    assert result.artifact.name == "student-float32.onnx"


USUAL = [n for n in LOSSES if LOSSES[n].reads not in INSIDE and LOSSES[n].decides != "values"]


@pytest.mark.parametrize("name", USUAL)
def test_every_loss_teaches(teacher: nn.Module, name: str) -> None:
    student = Net(4)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    taught = tutelage.distill(
        teacher, student, tiny.images(90), losses={name: 1.0}, epochs=1,
        distill={"batch": 16}, **PARTS,
    )  # fmt: skip
    assert taught.student is student
    assert any(not torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())
    assert np.isfinite(taught.history["loss"]).all()
    assert set(taught.weights) == {name}
    assert taught.validation.kind == "measured"
    assert taught.history["parts"][0].keys() == {name}


def test_losses_together_are_balanced_and_taps_paired(teacher: nn.Module) -> None:
    losses = {"dist": 1.0, "trajectory": "auto", "features": "auto", "attention": "auto"}
    parts = {
        **PARTS,
        "distill": {"batch": 16, "pairs": [["early", "stages.0"], ["late", "stages.1"]]},
    }
    taught = tutelage.distill(
        teacher, Net(4), tiny.images(150), losses=losses, epochs=3,
        student={"taps": ["early", "late"]}, **parts,
    )  # fmt: skip
    assert set(taught.weights) == set(losses)
    assert taught.weights["dist"] == 1.0
    assert all(weight > 0 for weight in taught.weights.values())
    assert taught.pairing is not None
    assert taught.pairing["pairs"] == [[0, 0], [1, 1]]


def test_distill_learns_what_the_teacher_says_and_goes_on(
    teacher: nn.Module, tmp_path: Path
) -> None:
    def distill() -> tuple[nn.Module, Any]:
        student = Net(8)
        taught = tutelage.distill(
            teacher, student, tiny.images(), epochs=12, run=tmp_path / "run",
            data={"validation": 0.2}, distill={"batch": 16}, **PARTS,
        )  # fmt: skip
        return student, taught

    student, taught = distill()
    assert taught.validation.value > 0.8
    again, same = distill()
    assert same.history == taught.history
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name])


def test_distill_refuses_what_cannot_be(teacher: nn.Module) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'dist'"):
        tutelage.distill(teacher, Net(4), tiny.images(), losses={"dst": 1.0})
    with pytest.raises(RecipeError, match="unknown key 'epoch'"):
        tutelage.distill(teacher, Net(4), tiny.images(), epoch=1)
    with pytest.raises(TutelageError, match="does not exist"):
        tutelage.distill(teacher, Net(4), "missing.npz")
    with pytest.raises(DataError, match="one class only"):
        tutelage.distill(teacher, Net(4), (tiny.images()[0], np.zeros(300, np.int64)))


def test_plan_says_what_would_fit(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz")
    recipe = tutelage.Recipe.read(tiny.write_recipe(tmp_path))
    answer = tutelage.plan(recipe)
    assert answer["status"] == "feasible"
    assert answer["candidates"][0]["spec"]["widths"] == (4, 8)


def test_export_measure_and_audit(finished: Finished, tmp_path: Path) -> None:
    network = tutelage.load(finished.run / "student")
    meta: dict[str, Any] = {
        "shape": (1, 8, 8), "classes": ("a", "b", "c"), "mean": (0.4,), "std": (0.3,),
    }  # fmt: skip
    inputs = np.random.default_rng(0).standard_normal((64, 1, 8, 8), dtype=np.float32)
    whole = tutelage.export(network, tmp_path / "float.onnx", **meta)
    small = tutelage.export(network, tmp_path / "int8.onnx", calibration=inputs, **meta)

    from tutelage.export.artifact import read_meta, run_onnx

    assert read_meta(small).classes == ("a", "b", "c")
    with torch.inference_mode():
        logits = network(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(run_onnx(whole, inputs), logits, rtol=1e-4, atol=1e-4)

    half = tutelage.export(network, tmp_path / "float16.onnx", float16=True, **meta)
    assert half.stat().st_size < 0.8 * whole.stat().st_size
    np.testing.assert_allclose(run_onnx(half, inputs), logits, rtol=1e-2, atol=1e-2)
    with pytest.raises(RecipeError, match="give one of them"):
        tutelage.export(network, half, float16=True, calibration=inputs, **meta)

    figures = {f.name: f for f in tutelage.measure(small, device="nucleo-l4r5")}
    assert figures["storage_bytes"].value == small.stat().st_size
    assert all(f.kind in ("measured", "predicted", "estimated") for f in figures.values())

    said = {f.name: f.value for f in tutelage.audit(run_onnx(small, inputs), logits)}
    assert 0.8 < said["agreement"] <= 1.0
    same = {f.name: f.value for f in tutelage.audit(logits, logits)}
    assert same["agreement"] == 1.0
    with pytest.raises(DataError, match="same examples and classes"):
        tutelage.audit(logits, logits[:5])


def test_load_rebuilds_without_pickle(finished: Finished, tmp_path: Path) -> None:
    network = tutelage.load(finished.run / "student")
    assert not network.training
    with pytest.raises(TutelageError, match="spec.json"):
        tutelage.load(tmp_path)
