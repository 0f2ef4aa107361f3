"""Measured latency, memory and energy: figures worked by hand, honest kinds, bad files."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tutelage.devices import load_device
from tutelage.errors import (
    CorruptFileError,
    DataError,
    DeviceError,
    ExportError,
    MissingExtra,
    RecipeError,
    TutelageError,
)
from tutelage.measure import energy as energy_module
from tutelage.measure import measure_energy, measure_latency, measure_memory, read_power_csv
from tutelage.measure.latency import open_session, prepare, summarise, time_calls
from tutelage.records import Measurement


def ends(figure: Measurement) -> tuple[float, float]:
    assert figure.spread is not None
    return figure.spread


def model(*shape, kind=TensorProto.FLOAT, width=4, gain=8):
    """`x @ w`, from `width` to `gain` numbers, after a cast."""
    weights = numpy_helper.from_array(np.ones((width, gain), np.float32), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, gain])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def save(tmp_path):
    def write(made, name="net.onnx"):
        onnx.save(made, tmp_path / name)
        return tmp_path / name

    return write


def test_percentiles_and_intervals_by_hand():
    readings = [float(i) for i in range(1, 101)]
    result = summarise(readings[::-1], "here")
    assert result.p50.value == 50.5
    # ranks 50 -+ 1.96 * 5, one more on each side: the 40th to the 61st
    assert result.p50.spread == (40.0, 61.0)
    assert result.p95.value == 95.0 and result.p95.spread == (90.0, 100.0)
    assert (result.p50.n, result.p50.kind, result.p50.unit, result.p50.where) == (
        100, "measured", "s", "here",
    )  # fmt: skip


def test_the_interval_of_the_median_covers_it_19_times_in_20():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        low, high = ends(summarise(random.exponential(size=60).tolist(), "").p50)
        hits += low <= np.log(2) <= high
    assert 940 <= hits <= 990


def test_the_noise_floor_is_the_spread_between_blocks():
    steady = summarise([1.0] * 50, "")
    assert steady.noise_floor.value == 0.0
    drifting = summarise([1.0] * 10 + [2.0] * 10 + [3.0] * 10 + [2.0] * 20, "")
    assert drifting.noise_floor.value == pytest.approx((3 - 1) / 2)
    # one slow reading in a block is no drift
    assert summarise(([1.0] * 9 + [50.0]) * 5, "").noise_floor.value == 0.0


class Clock:
    """A clock that only calls move."""

    def __init__(self, monkeypatch, steps):
        self.now, self.steps, self.calls = 0.0, steps, 0
        monkeypatch.setattr("tutelage.measure.latency.time.perf_counter", lambda: self.now)

    def __call__(self):
        self.now += self.steps[min(self.calls, len(self.steps) - 1)]
        self.calls += 1


def test_warm_up_is_not_counted_and_repeats_are(monkeypatch):
    clock = Clock(monkeypatch, [9.0, 9.0, 0.25])
    assert time_calls(clock, 2, 20, 1e9) == [0.25] * 20
    assert clock.calls == 22


def test_the_time_budget_ends_it_but_never_before_ten_readings(monkeypatch):
    assert len(time_calls(Clock(monkeypatch, [0.125]), 0, 1000, 3.0)) == 25
    slow = Clock(monkeypatch, [100.0])
    assert len(time_calls(slow, 50, 1000, 3.0)) == 10
    assert slow.calls == 11  # the warm-up stopped too


def test_latency_of_a_file_and_of_a_function(save):
    result = measure_latency(save(model("batch", 4)), threads=1, warmup=2, repeats=30)
    low, high = ends(result.p50)
    assert 0 < low <= result.p50.value <= high
    assert result.p50.value <= result.p95.value and result.noise_floor.value >= 0
    assert "onnxruntime" in result.p50.where and "1 thread" in result.p50.where
    assert result.p50.where.endswith(", warm")
    calls = []
    timed = measure_latency(lambda: calls.append(1), warmup=3, repeats=20)
    assert len(calls) == 23 and timed.p50.n == 20 and "function" in timed.p50.where


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64]
)
def test_inputs_of_any_type_run_at_batch_one(save, kind):
    call, _ = prepare(save(model("n", 4, kind=kind)), 1)
    answer: Any = call()
    (out,) = answer
    assert out.shape == (1, 8)


@pytest.mark.parametrize(
    "wrong",
    [{"threads": 0}, {"repeats": 1}, {"warmup": -1}, {"budget_s": 0}, {"budget_s": float("nan")}],
)
def test_settings_that_measure_nothing(wrong):
    with pytest.raises(RecipeError, match="latency needs"):
        measure_latency(lambda: None, **wrong)


def test_bad_files_are_named_for_what_they_are(save, tmp_path):
    path = save(model(1, 4))
    data = path.read_bytes()
    with pytest.raises(ExportError, match="no ONNX file"):
        measure_latency(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="no ONNX file"):
        measure_memory(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="dynamic shape"):
        measure_latency(save(model("n", "wide", width=4), "wide.onnx"))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFileError) as caught:
        measure_latency(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorruptFileError, match="not a whole ONNX file"):
        measure_memory(path, repeats=1)


def test_flipped_bytes_are_refused_or_run_and_nothing_is_printed(save, capfd):
    path = save(model(1, 4))
    data, refused = path.read_bytes(), 0
    for position in range(0, len(data), 2):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            open_session(path, 1)
        except TutelageError as error:
            refused += "\n" not in str(error)
    assert refused >= 30
    assert capfd.readouterr().out == ""


def test_memory_sees_the_weights(save):
    small = measure_memory(save(model(1, 4)), repeats=1)
    large = measure_memory(save(model(1, 2000, width=2000, gain=2000), "large.onnx"), repeats=2)
    assert large.value - small.value > 14e6  # 16 MB of weights
    low, high = ends(large)
    assert low <= large.value == high and large.n == 2
    assert (large.kind, large.unit) == ("measured", "B") and "fresh process" in large.where


def test_memory_of_a_graph_that_cannot_run(save):
    with pytest.raises(ExportError, match="does not run here"):
        measure_memory(save(model("n", "wide", width=4)), repeats=1)
    with pytest.raises(RecipeError, match="at least 1 repeat"):
        measure_memory(save(model(1, 4)), repeats=0)


@pytest.fixture
def meter(tmp_path):
    def write(text):
        (tmp_path / "meter.csv").write_text(text)
        return tmp_path / "meter.csv"

    return write


def test_a_power_meter_is_integrated(meter):
    path = meter("time_s,power_w,note\n0,1\n1,3,x\n3,3\n")
    assert read_power_csv(path).energy_j == pytest.approx(2 + 6)
    found = measure_energy(lambda: None, power_csv=path, inferences=4)
    assert (found.value, found.kind, found.n, found.unit) == (2.0, "measured", 4, "J")
    assert "power meter" in found.where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns time_s and power_w"),
        ("time,power\n0,1\n1,1\n", "columns time_s and power_w"),
        ("time_s,power_w\n0,1\n", "one reading"),
        ("time_s,power_w\n0,1\n0,1\n", "line 3"),
        ("time_s,power_w\n0,1\n1,nan\n", "line 3"),
        ("time_s,power_w\n0,-1\n1,1\n", "line 2"),
        ("time_s,power_w\n0,1\n1\n", "line 3"),
        ("time_s,power_w\n0,1\nx,1\n", "line 3"),
    ],
)
def test_bad_power_records(meter, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_power_csv(meter(text))
    assert "\n" not in str(caught.value)


def test_a_power_record_needs_a_count_and_a_file(meter, tmp_path):
    with pytest.raises(RecipeError, match="give inferences"):
        measure_energy(lambda: None, power_csv=meter("time_s,power_w\n0,1\n1,1\n"))
    with pytest.raises(DataError, match="cannot be read"):
        measure_energy(lambda: None, power_csv=tmp_path / "none.csv", inferences=1)


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """Two packages and a sub-zone, as Linux lays them out."""
    root = tmp_path / "powercap"
    for zone, name in [("0", "package-0"), ("1", "package-1"), ("0:0", "core"), ("2", "psys")]:
        (root / f"intel-rapl:{zone}").mkdir(parents=True)
        (root / f"intel-rapl:{zone}/name").write_text(name + "\n")
        (root / f"intel-rapl:{zone}/energy_uj").write_text("1000000\n")
        (root / f"intel-rapl:{zone}/max_energy_range_uj").write_text("5000000\n")
    monkeypatch.setattr(energy_module, "POWERCAP", root)
    return root


@pytest.fixture
def no_rapl(tmp_path, monkeypatch):
    monkeypatch.setattr(energy_module, "POWERCAP", tmp_path / "nothing")


def test_rapl_is_shared_among_the_calls_and_may_wrap(rapl):
    calls = []

    def call():
        calls.append(1)
        if len(calls) == 11:  # the first is not counted; then ten
            (rapl / "intel-rapl:0/energy_uj").write_text("3000000\n")  # 2 J
            (rapl / "intel-rapl:1/energy_uj").write_text("500000\n")  # 4.5 J, past the top
            (rapl / "intel-rapl:0:0/energy_uj").write_text("4000000\n")  # part of package 0
            (rapl / "intel-rapl:2/energy_uj").write_text("4000000\n")  # holds both packages

    found = measure_energy(call, budget_s=1e-9)
    assert (found.kind, found.n) == ("measured", 10)
    assert found.value == pytest.approx(0.65) and "RAPL, whole package" in found.where


def test_an_unreadable_package_means_no_counter(rapl, no_rapl):
    assert energy_module.read_rapl(rapl) is not None
    (rapl / "intel-rapl:1/energy_uj").unlink()
    assert energy_module.read_rapl(rapl) is None


def test_this_machines_counter_says_nothing_of_another_device(rapl, save):
    found = measure_energy(save(_eight_bit()), device=load_device("nucleo-l4r5"))
    assert found.kind == "estimated" and "MLPerf Tiny" in found.where and "RAPL" not in found.where


def _eight_bit():
    zero = numpy_helper.from_array(np.array(0, np.int8), "z")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    weights = numpy_helper.from_array(np.ones((4, 8), np.int8), "w")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    made = model(1, 4)
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend([zero, scale, weights])
    return made


def test_without_a_counter_the_estimate_says_so(no_rapl):
    host = load_device("host")
    power = load_device("raspberry-pi-4").active_power_w
    found = measure_energy(
        lambda: None, device=host.model_copy(update={"active_power_w": power}), budget_s=0.01
    )
    assert found.kind == "estimated" and found.value > 0
    assert "top500" in found.where and "measured latency" in found.where


def test_without_counter_or_power_there_is_no_figure(no_rapl):
    for device in (None, load_device("host"), load_device("ra8d1")):
        with pytest.raises(DeviceError, match="power meter's CSV"):
            measure_energy(lambda: None, device=device)
    with pytest.raises(DeviceError, match="give the ONNX file"):
        measure_energy(lambda: None, device=load_device("nucleo-l4r5"))
    with pytest.raises(RecipeError, match="energy needs"):
        measure_energy(lambda: None, budget_s=0)


class FakeNvmlError(Exception):
    pass


def test_nvml_is_read_for_a_function_on_the_gpu(monkeypatch, save):
    nvml: Any = types.ModuleType("pynvml")
    joules = []
    nvml.NVMLError = FakeNvmlError
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 500 * len(joules)  # mJ
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = measure_energy(lambda: joules.append(1), on="gpu", budget_s=1e-9)
    assert (found.kind, found.n, found.value) == ("measured", 10, pytest.approx(0.5))
    assert "NVML" in found.where
    with pytest.raises(RecipeError, match="runs on the CPU"):
        measure_energy(save(model(1, 4)), on="gpu")

    def broken(handle):
        raise FakeNvmlError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = broken
    with pytest.raises(DeviceError, match="Not Supported"):
        measure_energy(lambda: None, on="gpu")


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtra, match=r"tutelage\[energy\]"):
        measure_energy(lambda: None, on="gpu")
