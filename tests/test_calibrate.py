"""The calibrated cost model: known coefficients come back, intervals cover, bad readings refuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import yaml

from tutelage.devices import Figure, load_device, predict_latency
from tutelage.devices.calibration import Calibration, OpTime, features, group_of
from tutelage.devices.probe import graphs as probe_graphs
from tutelage.errors import DeviceError
from tutelage.export.graph import graph_costs
from tutelage.measure.calibrate import calibrated, measured_limits, profile_text, read_readings
from tutelage.measure.fit import conformal, fit_times
from tutelage.records import OpCost

COUNT = 130


def op(group: str = "conv", bits: int = 8, **changes: Any) -> OpCost:
    given = {"macs": 0, "weight_bytes": 0, "read_bytes": 0, "write_bytes": 0, "output_elements": 0}
    return OpCost(name="op", op=group, bits=bits, **{**given, **changes})


def seconds(value: float) -> Figure:
    return Figure(value=value, unit="s", source="test")


@pytest.fixture(scope="module")
def probed() -> list[tuple[str, tuple[OpCost, ...]]]:
    found = []
    for number in range(COUNT):
        name, data = probe_graphs.graph(number)
        found.append((name, graph_costs(onnx.load_model_from_string(data)).ops))
    return found


def invented(costs: tuple[OpCost, ...]) -> float:
    """A machine: 2 us a call, 0.5 us an operator, 0.1 ns a byte, 20 ps a float MAC, 5 an int8."""
    return 2e-6 + sum(
        5e-7 * c.steps + 1e-10 * features(c)[1] + (5e-12 if c.bits == 8 else 2e-11) * c.macs
        for c in costs
    )


def readings(probed, noise: float = 0.0, **changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(1)
    rows = []
    for name, costs in probed:
        time = float(invented(costs) * np.exp(noise * random.standard_normal()))
        row = {"graph": name, "time_s": time, "quartiles_s": [time, time], "blocks": 9}
        rows.append(row)
    machine = {
        "cpu": "Cortex-A76", "architecture": "aarch64", "system": "Linux", "cores": 4,
        "flags": ["asimd", "asimddp"], "python": "3.9.2", "numpy": "1.24.0",
        "onnxruntime": "1.19.2", "ram_bytes": 4e9, "disk_bytes": 3e10,
    }  # fmt: skip
    base = {
        "probe": 1, "date": "2026-01-31", "machine": machine, "threads": 1, "load": [0.1, 0.2],
        "dropped": 0, "other_work": 0.0, "noise_floor": 0.01, "drift": 0.02,
        "bandwidth_bytes_per_s": 5e9, "idle_power_w": 2.0, "active_power_w": 5.0,
        "readings": rows, "whole": True,
    }  # fmt: skip
    return {**base, **changes}


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return path


def profile(tmp_path: Path, data: dict[str, Any], name: str = "pi") -> Any:
    read = read_readings(write(tmp_path / "readings.yaml", data))
    return calibrated(read, name, measured_limits(read, None, None))


def test_an_operator_costs_what_the_hand_says() -> None:
    time = OpTime(mac=seconds(1e-9), byte=seconds(2e-9), element=seconds(3e-9), step=seconds(1e-6))
    conv = op(macs=1000, weight_bytes=100, read_bytes=50, write_bytes=50, output_elements=50)
    # 1000 x 1 ns + 200 x 2 ns + 50 x 3 ns + 1 us
    assert time.seconds(conv) == pytest.approx(1e-6 + 4e-7 + 1.5e-7 + 1e-6)
    line = time.model_copy(update={"roofline": True})
    assert line.seconds(conv) == pytest.approx(1e-6 + 1.5e-7 + 1e-6)
    passed = OpTime(view=seconds(5e-7)).seconds(replace(conv, views=2))
    assert passed == pytest.approx(1e-6)
    assert line.seconds(conv, scale=4.0) == pytest.approx(1.6e-6 + 1.5e-7 + 1e-6)


def test_features_by_hand() -> None:
    # 3 x 3 over 5 channels to 20, at 7 positions: 63 taps; 4 of the 20 fill no vector of 16.
    conv = op(macs=7 * 9 * 5 * 20, read_bytes=40, write_bytes=140, output_elements=140,
              channels=(5, 20))  # fmt: skip
    assert features(conv) == pytest.approx((6300, 180, 140, 1, 63, 63 * 4, 28, 0))
    assert features(conv, (8, 8))[0] == pytest.approx(6300 * 24 / 20)  # 5 read one by one
    assert features(conv, (4, 16))[0] == pytest.approx(6300 * 32 / 20 * 8 / 5)
    assert features(conv, (1, 1), 4)[5:] == (0, 0, 0) and features(conv, (1, 1), 8)[6] == 140
    table = op("other", weight_bytes=10**6, read_bytes=8, write_bytes=64, kind="Gather")
    assert features(table)[1] == 72  # a table is not read whole


def test_classes_of_operators() -> None:
    assert group_of(op("linear", 32, kind="GRU", steps=9, weight_bits=32)) == (
        "recurrent", "float32")  # fmt: skip
    assert group_of(op("linear", 32, kind="MatMul")) == ("product", "float32")
    mixed = op("linear", 32, kind="Gemm", weight_bits=8)
    assert group_of(mixed) == ("linear", "mixed") and group_of(mixed, 8) == ("linear", "int8")
    assert group_of(op("other", 32, kind="Softmax"))[0] == "function"
    assert group_of(op("other", 32, kind="Transpose"))[0] == "other"


def test_a_fit_recovers_known_coefficients(probed) -> None:
    costs = [c for _, c in probed]
    fit = fit_times(costs, [invented(c) for c in costs])
    missed = np.abs(np.array(fit.ratios) - 1)  # of graphs that were left out
    assert np.median(missed) < 0.005 and missed.mean() < 0.02
    big = op(macs=10**8, read_bytes=10**5, write_bytes=10**5, output_elements=10**5,
             channels=(64, 64), kind="QLinearConv", weight_bits=8)  # fmt: skip
    for width, mac in ((8, 5e-12), (32, 2e-11)):
        one = replace(big, bits=width, weight_bits=width)
        group = group_of(one)
        form = fit.forms[group]
        got = float(np.dot(fit.seconds[group], features(one, form.blocks, form.even)))
        assert got == pytest.approx(invented((one,)) - 2e-6, rel=0.05)
        assert fit.seconds[group][0] == pytest.approx(mac, rel=0.2)


def test_a_roofline_is_found_where_it_holds() -> None:
    random = np.random.default_rng(0)
    costs, times = [], []
    for _ in range(60):
        macs, moved = (int(10 ** random.uniform(3, 6)) for _ in range(2))
        costs.append((op("linear", macs=macs, read_bytes=moved, output_elements=10),))
        times.append(1e-6 + max(1e-10 * macs, 1e-10 * moved))
    fit = fit_times(costs, times)
    ((group, form),) = fit.forms.items()
    assert form.roofline
    assert fit.seconds[group][:2] == pytest.approx((1e-10, 1e-10), rel=0.05)


def test_conformal_ranges_by_hand() -> None:
    # Of 99 ratios, rank ceil(100 x 0.975) = 98 from either end.
    assert conformal([float(i) for i in range(1, 100)]) == (2.0, 98.0)
    assert conformal([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_intervals_cover_graphs_that_were_not_probed(probed, tmp_path) -> None:
    device = profile(tmp_path, readings(probed, noise=0.1))
    random, inside = np.random.default_rng(5), []
    for number in range(300, 340):
        costs = graph_costs(onnx.load_model_from_string(probe_graphs.graph(number)[1])).ops
        true = invented(costs) * np.exp(0.1 * random.standard_normal())
        predicted = predict_latency(costs, device)
        low, high = predicted.spread or (0.0, 0.0)
        assert low < predicted.value < high
        inside.append(low <= true <= high)
    assert np.mean(inside) >= 0.85


def test_throttling_and_other_work_widen_and_are_said(probed, tmp_path) -> None:
    few = probed[:60]
    calm = profile(tmp_path, readings(few)).calibration
    hot = profile(tmp_path, readings(few, drift=0.4)).calibration
    busy = profile(tmp_path, readings(few, other_work=0.6)).calibration
    for wide, word in ((hot, "throttling"), (busy, "other work took 60%")):
        assert wide.interval.bounds[0] < calm.interval.bounds[0]
        assert wide.interval.bounds[1] > 1.1 * calm.interval.bounds[1]
        assert word in " ".join(wide.notes)
    assert calm.notes == ()
    jumped = profile(tmp_path, readings(few, dropped=3))
    assert "3 readings were dropped" in jumped.calibration.notes[0]
    where = predict_latency(probed[0][1], jumped).where
    assert "measured by tutelage probe on 2026-01-31" in where and "dropped" in where


def test_a_profile_round_trips_and_prices_energy(probed, tmp_path) -> None:
    device = profile(tmp_path, readings(probed))
    path = write(tmp_path / "pi.yaml", profile_text(device))
    again = load_device(path)
    assert again == device
    assert again.active_power_w is not None and again.active_power_w.value == 5.0
    name, costs = probed[0]
    value = predict_latency(costs, again).value
    assert value == pytest.approx(invented(costs), rel=0.1)
    assert predict_latency(costs, again).kind == "predicted"
    for part in again.calibration.times.values():
        for time in part.values():
            for figure in (time.mac, time.byte, time.step):
                assert figure is None or "tutelage probe on 2026-01-31" in figure.source


def test_shipped_profiles_are_as_before() -> None:
    device = load_device("raspberry-pi-4")
    assert device.calibration is None and "calibration" not in device.model_dump(mode="json")


def test_a_class_that_was_not_probed_is_named() -> None:
    ratio = Figure(low=0.9, high=1.1, unit="", source="test")
    known = Calibration(times={"conv": {"float32": OpTime(mac=seconds(1e-9))}}, interval=ratio,
                        noise_floor=0.0, drift=0.0, graphs=60)  # fmt: skip
    assert known.seconds([op(macs=10, bits=8)])[1] == pytest.approx(1e-8)  # the width at hand
    with pytest.raises(DeviceError, match="no time for 'pool' operators"):
        known.seconds([op("pool")])


BAD = {
    "no number": (lambda d: d["readings"][3].update(time_s="fast"), "readings.3.time_s"),
    "negative": (lambda d: d["readings"][3].update(time_s=-1.0), "readings.3.time_s"),
    "not finite": (lambda d: d["readings"][3].update(time_s=float("nan")), "readings.3.time_s"),
    "an hour": (lambda d: d["readings"][3].update(time_s=3600.0), "readings.3.time_s"),
    "no time": (lambda d: d["readings"][0].pop("time_s"), "readings.0.time_s: is missing"),
    "no graph": (lambda d: d["readings"][0].update(graph="conv"), "readings.0.graph"),
    "no readings": (lambda d: d.pop("readings"), "readings: is missing"),
    "too few": (lambda d: d.update(readings=d["readings"][:20]), "20 different graphs"),
    "one twice": (lambda d: d["readings"].append(copy.deepcopy(d["readings"][0])), "131 readings"),
    "another version": (lambda d: d["readings"][1].update(graph=f"1-{0:012}"), "another version"),
    "another format": (lambda d: d.update(probe=2), "key probe"),
    "absurd drift": (lambda d: d.update(drift=1e6), "key drift"),
    "absurd bandwidth": (lambda d: d.update(bandwidth_bytes_per_s=0.0), "bandwidth_bytes_per_s"),
    "unknown key": (lambda d: d.update(drfit=1.0), "did you mean 'drift'"),
    "cut off": (lambda d: d.pop("whole"), "was cut off"),
    "uneven": (lambda d: d.update(drift=50.0), "so uneven"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_readings_are_one_line(name: str, probed, tmp_path: Path) -> None:
    spoil, word = BAD[name]
    data = copy.deepcopy(readings(probed))
    spoil(data)
    with pytest.raises(DeviceError) as caught:
        profile(tmp_path, data)
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "probe: 1\nreadings: [{", "\x00", "just words"])
def test_truncated_files_are_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        read_readings(write(tmp_path / "readings.yaml", text))
    assert "readings.yaml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match="no readings file at"):
        read_readings(tmp_path / "none.yaml")


def test_the_command_turns_readings_into_a_device(probed, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "readings.yaml", readings(probed, drift=0.3))
    said = tiny.cli(
        "probe", "--from", "readings.yaml", "--out", "pi.yaml", "--ram", "1 GB", "--json"
    )
    assert said.status == 0, said.err
    device = load_device(tmp_path / "pi.yaml")
    assert device.limits.free("ram_bytes") == 1e9 and device.limits.free("storage_bytes") == 3e10
    assert device.calibration is not None and "throttling" in device.calibration.notes[0]
    write(tmp_path / "readings.yaml", readings(probed[:60], drift=0.3))
    shown = tiny.cli("probe", "--from", "readings.yaml", "--out", "pi.yaml")
    assert "warning: the machine's speed changed by 30%" in shown.err
    assert "device: ./pi.yaml" in shown.out
    assert "calibration.interval" in tiny.cli("devices", "./pi.yaml").out


WRONG = {
    "name": (["--from", "readings.yaml", "--out", "host.yaml"], "is this machine"),
    "no yaml": (["--from", "readings.yaml", "--out", "pi.txt"], "ends in .yaml"),
    "no file": (["--from", "none.yaml"], "none.yaml"),
    "no time": (["--minutes", "0"], "--minutes"),
    "no quantity": (["--from", "readings.yaml", "--ram", "much"], "much"),
    "a folder": (["--copy", "."], "is a folder"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_arguments_are_one_line(name: str, probed, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "readings.yaml", readings(probed))
    arguments, word = WRONG[name]
    said = tiny.cli("probe", *arguments)
    assert said.status == 2 and len(said.err.splitlines()) == 1 and word in said.err
