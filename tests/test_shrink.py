"""Students that average pixels first: the same decision as on small images, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch

from tutelage.devices import load_device
from tutelage.errors import RecipeError
from tutelage.export.artifact import ArtifactMeta, run_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8
from tutelage.pipeline.checking import shrinks_of
from tutelage.pipeline.naming import name_spec
from tutelage.plan import compact
from tutelage.plan.candidate import Candidate, stand_in
from tutelage.plan.compact import _by_turns, structures_of, widest
from tutelage.plan.costs import Costing
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.students.families.convnet import Structure
from tutelage.students.spec import StudentSpec, sliced_from
from tutelage.tasks import find_task

SPEC = {"family": "convnet", "image": [3, 32, 32], "classes": 5, "widths": [4, 6],
        "depths": [1, 1], "shrink": 2}  # fmt: skip


def student(**changes: Any) -> torch.nn.Module:
    return stand_in(StudentSpec.from_json({**SPEC, **changes})).eval()


def images(n: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, 32, 32), dtype=np.float32)


def files(folder: Path, **options: Any) -> tuple[Path, Path]:
    meta = ArtifactMeta(
        task="vision", classes=("a",), shape=(3, 32, 32), mean=(0.0,), std=(1.0,), version="0"
    )
    whole = export_onnx(student(), (3, 32, 32), folder / "float.onnx", meta=meta)
    return whole, quantize_int8(whole, folder / "int8.onnx", images(32), **options)


def test_it_decides_as_the_same_network_on_averaged_pixels():
    shrinking, plain = student(), student(image=[3, 16, 16], shrink=1)
    plain.load_state_dict(shrinking.state_dict())
    pixels = images()
    averaged = pixels.reshape(8, 3, 16, 2, 16, 2).mean((3, 5))
    with torch.no_grad():
        said = shrinking(torch.from_numpy(pixels))
        wanted = plain(torch.from_numpy(averaged))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-5)


def test_the_spec_says_it_only_where_it_does_something():
    spec = StudentSpec.from_json(SPEC)
    assert spec.to_json()["shrink"] == 2
    assert StudentSpec.from_json(spec.to_json()) == spec
    assert "shrink" not in StudentSpec.from_json({**SPEC, "shrink": 1}).to_json()
    with pytest.raises(RecipeError, match="shrink is 3; it must divide both sides"):
        StudentSpec.from_json({**SPEC, "shrink": 3})
    with pytest.raises(RecipeError, match="shrink holds 0"):
        StudentSpec.from_json({**SPEC, "shrink": 0})


def test_a_slice_of_it_shrinks_too():
    whole = student(widths=[8, 12])
    small = sliced_from(whole, StudentSpec.from_json(SPEC), torch.from_numpy(images(32)))
    with torch.no_grad():
        assert small(torch.from_numpy(images())).shape == (8, 5)


def test_the_int8_file_averages_integers(tmp_path):
    whole, small = files(tmp_path)
    want = run_onnx(whole, images())
    assert np.abs(run_onnx(small, images()) - want).max() < 0.03 * np.ptp(want)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "QLinearAveragePool" in run and "AveragePool" not in run
    costs = graph_costs(small)
    assert [(op.op, op.bits, op.read_bytes, op.write_bytes) for op in costs.ops][0] == (
        "pool", 8, 3 * 32 * 32, 3 * 16 * 16,
    )  # fmt: skip
    # the largest moment: the whole image in bytes, and what it shrinks to
    assert costs.peak_activation_bytes == 3 * 32 * 32 + 3 * 16 * 16


def test_a_stem_that_is_left_in_float_reads_unrounded_pixels(tmp_path):
    _, small = files(tmp_path, keep_float=("stem.0",))
    assert [node.op_type for node in onnx.load(small).graph.node][:2] == ["AveragePool", "Conv"]


def shrinks(shape: tuple[int, ...], wanted: Any, task: str = "vision") -> tuple[int, ...]:
    recipe = Recipe.parse(
        {"task": task, "data": {"train": "digits"}, "teacher": {"fit": True},
         "student": {"shrink": wanted}}
    )  # fmt: skip
    material: Any = SimpleNamespace(shape=shape, task=find_task(task))
    return shrinks_of(recipe, material)


def test_which_factors_compete():
    assert shrinks((3, 96, 96), "auto") == (1, 2, 4)
    assert shrinks((1, 28, 28), "auto") == (1, 2), "seven pixels a side are too few"
    assert shrinks((1, 27, 32), "auto") == (1,)
    assert shrinks((1, 27, 30), 3) == (3,)
    assert shrinks((6, 100), 1, "series") == (1,)
    with pytest.raises(RecipeError, match="student.shrink is 4 and the images are 30 x 32"):
        shrinks((1, 30, 32), 4)
    with pytest.raises(RecipeError, match="is for images, and the task is series"):
        shrinks((6, 100), "auto", "series")
    for other in ({"spec": {"family": "convnet"}}, {"source": "a.py:b"}, {"space": "sliced"}):
        with pytest.raises(RecipeError, match="'shrink' is for compact students"):
            Recipe.parse(
                {"data": {"train": "digits"}, "teacher": {"fit": True},
                 "student": {"shrink": 2, **other}}
            )  # fmt: skip


def test_smaller_images_leave_room_for_wider_networks():
    memory = Limit(metric="ram_bytes", value=50_000.0)
    meta = ArtifactMeta(
        task="vision", classes=("a", "b"), shape=(1, 24, 24), mean=(0.0,), std=(1.0,), version="0"
    )
    costing = Costing(
        device=load_device("nucleo-l4r5"), limits=(memory,), precision="float32", meta=meta
    )
    given = {"image": (1, 24, 24), "classes": 2}
    found = {}
    for shrink in (1, 2):
        structure = Structure(block="plain", growth=1.0, depth=1, shrink=shrink)
        best, _ = widest("convnet", structure, costing, given, 100_000)
        assert best is not None and best.spec.knobs.shrink == shrink
        found[shrink] = best.spec.knobs.widths[0]
    assert found[2] > 1.5 * found[1]


def test_candidates_of_each_factor_take_turns():
    def named(shrink: int, macs: float) -> Candidate:
        spec = StudentSpec.from_json({**SPEC, "shrink": shrink})
        figure = Measurement(name="macs", value=macs, unit="MAC", kind="predicted")
        return Candidate(spec=spec, parameters=1, figures=(figure,))

    ranked = [named(*row) for row in ((1, 90.0), (1, 80.0), (1, 70.0), (2, 60.0), (4, 50.0))]
    ranked.append(named(2, 40.0))
    turns = [(c.spec.knobs.shrink, c.figure("macs")) for c in _by_turns(ranked)]
    assert turns == [(1, 90), (2, 60), (4, 50), (1, 80), (2, 40), (1, 70)]
    assert _by_turns(ranked[:3]) == ranked[:3]
    plain = structures_of(("convnet",))
    both = structures_of(("convnet",), (1, 2))
    assert both[: len(plain)] == plain
    assert [structure.shrink for _, structure in both[len(plain) :]] == [2] * len(plain)


def test_a_run_ends_with_a_student_that_shrinks(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "structures_of", lambda *args: structures_of(*args)[:1])
    recipe = job({"student": {"shrink": 2, "candidates": 1}, "distill": {"epochs": 4, "batch": 32}})
    run = recipe.parent / "run"
    said = tiny.cli("run", recipe, "--run", run, "--json")
    assert said.status == 0, said.errors
    spec = json.loads((run / "student/spec.json").read_text())
    assert (spec["shrink"], spec["image"]) == (2, [1, 8, 8])
    assert name_spec(StudentSpec.from_json(spec)).endswith(", shrink 2")
    chosen = run / said.answer["chosen"]
    assert onnx.load(chosen).graph.input[0].type.tensor_type.shape.dim[3].dim_value == 8
    assert "pixels averaged 2 by 2" in (run / "report.html").read_text()
