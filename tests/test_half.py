"""float16 storage: half the bytes, the same operators, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tutelage.devices import HOST, load_device
from tutelage.devices.cost import predict_latency, predict_ram
from tutelage.errors import ExportError
from tutelage.export.artifact import ArtifactMeta, read_meta, run_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.half import write_float16
from tutelage.export.onnx_float import export_onnx
from tutelage.measure.costs import graph_figures
from tutelage.pipeline.proving import Weighed, _choose, verdicts
from tutelage.plan.candidate import stand_in
from tutelage.plan.costs import Costing, cost_of
from tutelage.recipe import Recipe
from tutelage.records import Artifact, Limit, Measurement
from tutelage.students.spec import StudentSpec

CONV = {"family": "convnet", "image": [1, 12, 12], "classes": 5, "widths": [16, 24],
        "depths": [1, 1]}  # fmt: skip
GRU = {"family": "gru", "channels": 3, "length": 20, "classes": 4, "hidden": 24}
TEXT = {"family": "encoder", "vocabulary": 900, "length": 16, "classes": 3, "hidden": 32,
        "layers": 1, "heads": 2, "inner": 64}  # fmt: skip
CASES = [(CONV, (1, 12, 12), "float32"), (GRU, (3, 20), "float32"), (TEXT, (16,), "int64")]


def meta_for(shape: tuple[int, ...], dtype: Any) -> ArtifactMeta:
    names = {"mean": (0.0,), "std": (1.0,), "version": "0", "classes": ("a", "b")}
    return ArtifactMeta(task="vision", shape=shape, dtype=dtype, **names)


def files(folder: Path, spec: dict, shape: tuple[int, ...], dtype: Any) -> tuple[Path, Path]:
    """Return the float32 and the float16 file of one untrained network."""
    network, whole = stand_in(StudentSpec.from_json(spec)), folder / "float.onnx"
    export_onnx(network, shape, whole, meta=meta_for(shape, dtype))
    assert write_float16(whole, folder / "half.onnx") == ()
    return whole, folder / "half.onnx"


def inputs_for(shape: tuple[int, ...], dtype: str, n: int = 8) -> np.ndarray:
    random = np.random.default_rng(0)
    if dtype == "int64":
        return random.integers(1, 900, (n, *shape))
    return random.standard_normal((n, *shape), dtype=np.float32)


def operators(path: Path) -> Counter[str]:
    """Return the operators that onnxruntime really runs, by their kind."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def rounded(path: Path) -> bytes:
    """Return the float32 file with every large weight rounded to float16, the naive way."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.dtype == np.float32 and weight.size >= 32:
            near = weight.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(near, tensor.name))
    return model.SerializeToString()


@pytest.mark.parametrize(("spec", "shape", "dtype"), CASES, ids=["conv", "gru", "text"])
def test_it_computes_with_rounded_weights_and_runs_the_same_operators(tmp_path, spec, shape, dtype):
    whole, half = files(tmp_path, spec, shape, dtype)
    inputs = inputs_for(shape, dtype)
    (tmp_path / "naive.onnx").write_bytes(rounded(whole))
    said = run_onnx(half, inputs)
    np.testing.assert_allclose(said, run_onnx(tmp_path / "naive.onnx", inputs), atol=1e-6)
    assert np.abs(said - run_onnx(whole, inputs)).max() > 1e-6, "nothing was rounded"
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert read_meta(half) == read_meta(whole)
    # of texts, the rows that are looked up become float32 at every call
    lookups = {"Cast": 1} if dtype == "int64" else {}
    assert operators(half) == operators(whole) + Counter(lookups)


@pytest.mark.parametrize(("spec", "shape", "dtype"), CASES, ids=["conv", "gru", "text"])
def test_it_costs_what_runs_and_not_what_is_stored(tmp_path, spec, shape, dtype):
    whole, half = (graph_costs(p) for p in files(tmp_path, spec, shape, dtype))
    table = spec["vocabulary"] * spec["hidden"] if dtype == "int64" else 0
    assert half.macs == whole.macs
    assert half.parameter_bytes == whole.parameter_bytes - 2 * table
    assert half.file_bytes < 0.6 * whole.file_bytes
    pi = load_device("raspberry-pi-4")
    times = [predict_latency(c.ops, pi).value for c in (whole, half)]
    assert times[1] == pytest.approx(times[0], rel=0.05 if table else 1e-12)
    if not table:
        assert [dataclasses.replace(op, name="") for op in half.ops] == [
            dataclasses.replace(op, name="") for op in whole.ops
        ]
        memory = [
            predict_ram(c.peak_activation_bytes, pi, c.parameter_bytes) for c in (whole, half)
        ]
        assert memory[0].value == memory[1].value


def test_the_planner_counts_the_file_that_ships(tmp_path):
    pi = load_device("raspberry-pi-4")
    network = stand_in(StudentSpec.from_json(CONV))
    costing = Costing(
        device=pi, limits=(), precision="float16", meta=meta_for((1, 12, 12), "float32")
    )
    planned = {f.name: f.value for f in cost_of(network, costing)[1]}
    _, half = files(tmp_path, CONV, (1, 12, 12), "float32")
    assert planned == {f.name: f.value for f in graph_figures(half, pi)}


def product(folder: Path, *weights: np.ndarray) -> Path:
    """Write a chain of MatMul with these weights."""
    nodes = [
        helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"layer.{i}")
        for i in range(len(weights))
    ]
    ends = (("x0", weights[0].shape[0]), (f"x{len(weights)}", weights[-1].shape[1]))
    said = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, side]) for n, side in ends]
    stored = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", said[:1], said[1:], stored)
    opset = [helper.make_opsetid("", 18)]
    path = folder / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def stored_types(path: Path) -> list[str]:
    return sorted(numpy_helper.to_array(t).dtype.name for t in onnx.load(path).graph.initializer)


def test_weights_that_float16_cannot_hold_stay_float32(tmp_path):
    fits, large, small = np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32) * 2, None
    fits[0, 0], large[0, 0] = 65_504, 65_505
    small = np.ones((8, 3), np.float32)
    path = product(tmp_path, fits, large, small)
    half = tmp_path / "half.onnx"
    assert write_float16(path, half) == ("layer.1",)
    assert stored_types(half) == ["float16", "float32", "float32"], "24 numbers save nothing"
    x = np.full((1, 8), 1e-3, np.float32)
    np.testing.assert_allclose(run_onnx(half, x), run_onnx(path, x), rtol=1e-6)
    broken = product(tmp_path, np.full((8, 8), np.nan, np.float32))
    assert write_float16(broken, half) == ("layer.0",)
    assert stored_types(half) == ["float32"]


def test_a_table_that_is_also_a_matrix_is_stored_once(tmp_path):
    table = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("MatMul", ["rows", "flipped"], ["y"]),
        helper.make_node("Transpose", ["table"], ["flipped"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [nodes[0], nodes[2], nodes[1]], "g", [info("x", TensorProto.INT64, [1, 4])],
        [info("y", TensorProto.FLOAT, [1, 4, 64])], [numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "tied.onnx")
    write_float16(tmp_path / "tied.onnx", tmp_path / "half.onnx")
    assert stored_types(tmp_path / "half.onnx") == ["float16"]
    ids = np.array([[1, 5, 63, 0]])
    near = table.astype(np.float16).astype(np.float32)
    said = run_onnx(tmp_path / "half.onnx", ids)
    np.testing.assert_allclose(said[0], near[ids[0]] @ near.T, rtol=1e-5, atol=1e-5)
    # the table stays for the lookup, and is held whole in float32 for the product
    assert graph_costs(tmp_path / "half.onnx").parameter_bytes == 64 * 8 * (2 + 4)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"none\.onnx"):
        write_float16(tmp_path / "none.onnx", tmp_path / "half.onnx")


def test_which_devices_run_it():
    runs = {n: load_device(n).runs("float16") for n in ("raspberry-pi-4", HOST, "galaxy-s24")}
    assert runs == {"raspberry-pi-4": True, HOST: True, "galaxy-s24": True}
    board = load_device("nucleo-h7a3")  # knows float32, and reads weights in flash
    assert board.runs("float32") and not board.runs("float16")
    assert not load_device("raspberry-pi-4").runs("int4")


STORAGE = (Limit(metric="storage_bytes", value=100.0), Limit(metric="latency_s", value=1.0))


def weighed(precision: str, size: float, seconds: float) -> Weighed:
    found = tuple(
        Measurement(name=name, value=value, unit=unit, kind="measured")
        for name, value, unit in (
            ("storage_bytes", size, "B"), ("latency_p50_s", seconds, "s"),
        )
    )  # fmt: skip
    artifact = Artifact(
        path=precision, runtime="onnxruntime", precision=precision, bytes=int(size), sha256=""
    )
    return Weighed(
        artifact=artifact, figures=found, verdicts=verdicts(STORAGE, found),
        logits_test=np.zeros(1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("int8", "half", "whole", "device", "chosen"),
    [
        ((25, 0.3), (50, 0.22), (99, 0.2), HOST, "float16"),  # a clock's noise does not count
        ((25, 0.1), (50, 0.2), (99, 0.2), HOST, "int8"),
        ((25, 0.3), (150, 0.2), (300, 0.2), HOST, "int8"),  # only int8 fits
        ((25, 0.1), (50, 0.2), (99, 0.2), "raspberry-pi-4", "int8"),
        (None, (50, 0.22), (200, 0.2), "raspberry-pi-4", "float16"),  # int8 was refused
        (None, (150, 0.22), (300, 0.2), HOST, "float16"),  # the smaller of two misses
        (None, (50, 1.1), (99, 0.9), HOST, "float32"),  # keeps a limit that float16 misses
        ((25, 0.3), None, (99, 0.2), HOST, "float32"),
    ],
)
def test_the_file_that_ships(int8, half, whole, device, chosen):
    given = {"float32": whole, "float16": half, "int8": int8}
    files = [weighed(name, *figures) for name, figures in given.items() if figures is not None]
    recipe = Recipe.parse({"data": {"train": "digits"}, "teacher": {"fit": True}})
    assert _choose(recipe, files, load_device(device)).artifact.precision == chosen
