"""The probe: graphs that run, clocks that are watched, one file that runs elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from tutelage.devices.probe import graphs, timing
from tutelage.devices.probe.onnx_bytes import Net
from tutelage.export.graph import graph_costs
from tutelage.measure.probing import copy_probe

KINDS = len(graphs._KINDS)


@pytest.mark.parametrize("number", range(2 * KINDS))
def test_graphs_are_valid_run_and_can_be_priced(number: int) -> None:
    name, data = graphs.graph(number)
    assert graphs.graph(number) == (name, data)
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    said = timing._open(data, 1)()
    shape = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    assert said[0].shape == tuple(shape) and np.isfinite(said[0]).all()
    costs = graph_costs(model)
    assert costs.ops and costs.macs <= 2e8


def test_graphs_cover_every_class_at_its_widths() -> None:
    from tutelage.devices.calibration import group_of

    seen = {
        group_of(op)
        for number in range(2 * KINDS)
        for op in graph_costs(onnx.load_model_from_string(graphs.graph(number)[1])).ops
    }
    both = {(op, w) for op in ("conv", "depthwise", "pool", "add", "other", "linear")
            for w in ("float32", "int8")}  # fmt: skip
    assert both | {("linear", "mixed"), ("product", "float32"), ("recurrent", "float32"),
                   ("function", "float32")} == seen  # fmt: skip


def test_hand_written_files_say_what_onnx_reads() -> None:
    net = Net("float32", (1, 2, 6, 5))
    net.conv(3, (3, 3), (2, 2), relu=False)
    model = onnx.load_model_from_string(net.model())
    (node,) = model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2], "group": 1}
    weight, bias = (onnx.numpy_helper.to_array(t) for t in model.graph.initializer)
    assert weight.shape == (3, 2, 3, 3) and weight.dtype == np.float32 and bias.shape == (3,)
    session = onnxruntime.InferenceSession(net.model(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 5)).astype(np.float32)
    (got,) = session.run(None, {"x": x})
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    want = np.sum(padded[:, 2:5, 2:5] * weight[1]) + bias[1]  # the second of each axis
    assert got.shape == (1, 3, 3, 3) and got[0, 1, 1, 1] == pytest.approx(want, rel=1e-5)


def test_negative_numbers_survive_the_wire_format() -> None:
    net = Net("float32", (1, 4, 7))
    net.node("Softmax", net.at, axis=-1)
    model = onnx.load_model_from_string(net.model())
    assert model.graph.node[0].attribute[0].i == -1


class Clocks:
    """A clock of 1 ms a look, and a wall clock that can jump away from it."""

    def __init__(self, jumps: dict[int, float]) -> None:
        self.now, self.offset, self.looks, self.jumps = 0.0, 0.0, 0, jumps

    def clock(self) -> float:
        self.now += 1e-3
        return self.now

    def wall(self) -> float:
        self.offset += self.jumps.get(self.looks, 0.0)
        self.looks += 1
        return self.now + self.offset


@pytest.mark.parametrize("jump", [-3600.0, 3600.0, 0.5])
def test_blocks_in_which_the_clock_jumped_are_dropped(jump: float) -> None:
    clocks = Clocks({5: jump})  # between the two looks at the third block
    found = timing.measure(1e-9, 1, 3, clock=clocks.clock, wall=clocks.wall)
    assert found["dropped"] == 1
    steady = Clocks({})
    assert timing.measure(1e-9, 1, 3, clock=steady.clock, wall=steady.wall)["dropped"] == 0


def test_a_clock_that_runs_backwards_gives_no_reading() -> None:
    clocks = Clocks({})
    steps = iter([0.0, 1.0, 1.1, 1.0, *np.arange(2.0, 1e5, 1.0)])
    probe = timing.Probe(1, 1, lambda: float(next(steps)), clocks.wall)
    probe.block_s = 1e-9
    probe._read(lambda: None, probe.readings[0])
    assert probe.dropped == 1 and probe.readings == [[]]


def test_drift_and_noise_of_known_anchors() -> None:
    assert timing.drift([1.0] * 20 + [1.5] * 5) == pytest.approx(0.5)  # the last fifth is slower
    assert timing.drift([1.0, 1.0, 1.0, 9.0, 1.0] * 5) == 0.0  # single readings do not count
    assert timing.noise_floor([1.0, 1.1] * 10) == pytest.approx(0.1)
    assert timing.noise_floor([2.0]) == 0.0 and timing.drift([1.0]) == 0.0


def test_joules_are_read_from_packages_alone(tmp_path: Path, monkeypatch) -> None:
    for zone, name, energy in (("intel-rapl:0", "package-0", "5000000"),
                               ("intel-rapl:1", "package-1", "1500000"),
                               ("intel-rapl:0:0", "core", "9000000")):  # fmt: skip
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "energy_uj").write_text(energy)
    monkeypatch.setattr(timing, "_POWERCAP", tmp_path)
    assert timing._joules() == pytest.approx(6.5)
    assert timing._power(lambda: None) is None  # the counter stood still
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")
    assert timing._joules() is None


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("copy") / "probe.pyz"
    copy_probe(path)
    return path


def test_the_packed_file_names_nothing_of_tutelage(packed: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed.read_bytes())) as archive:
        names = archive.namelist()
        code = "".join(archive.read(n).decode() for n in names if n.endswith(".py"))
    assert "__main__.py" in names and len([n for n in names if n.startswith("probe/")]) >= 4
    for library in ("tutelage", "torch", "onnx", "yaml", "scipy", "psutil"):
        assert f"import {library}\n" not in code and f"from {library}" not in code


def test_the_packed_file_runs_alone(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "readings.yaml"
    command = [
        sys.executable,
        str(packed),
        "--minutes",
        "0.001",
        "--graphs",
        "4",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "left" in done.stderr
    found = yaml.safe_load(out.read_text())
    assert [r["graph"] for r in found["readings"]] == [graphs.graph(i)[0] for i in range(4)]
    assert all(0 < r["time_s"] < 60 and r["blocks"] >= 2 for r in found["readings"])
    assert found["whole"] is True and found["machine"]["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("wrong", [["--minutes", "0"], ["--minutes", "nan"], ["--threads", "0"],
                                   ["--graphs", "0"], ["--graphs", "x"]])  # fmt: skip
def test_the_packed_file_refuses_in_words(packed: Path, wrong: list[str]) -> None:
    done = subprocess.run([sys.executable, str(packed), *wrong], capture_output=True, text=True)
    assert done.returncode == 2 and wrong[0] in done.stderr.splitlines()[-1]
