"""Device profiles, and the cost model against figures measured on boards."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import yaml

from tutelage.devices import (
    Device,
    Figure,
    device_limits,
    estimate_energy,
    list_devices,
    load_device,
    predict_energy,
    predict_latency,
    predict_ram,
    predict_storage,
)
from tutelage.devices.profile import PROFILES
from tutelage.errors import DeviceError
from tutelage.records import Measurement, OpCost


def op(macs=0, kind="conv", bits=8, weights=0, read=0, write=0) -> OpCost:
    return OpCost(
        name="op",
        op=kind,
        bits=bits,
        macs=macs,
        weight_bytes=weights,
        read_bytes=read,
        write_bytes=write,
        output_elements=1,
    )


def ends(figure: Measurement) -> tuple[float, float]:
    assert figure.spread is not None
    return figure.spread


def plain(**changes) -> dict:
    base = {
        "title": "A board",
        "description": "For tests.",
        "runtime": "none",
        "threads": 1,
        "precisions": ["int8"],
        "limits": {
            "ram_bytes": {"value": "100 kB", "source": "test"},
            "storage_bytes": {"value": "1 MB", "source": "test"},
        },
        "throughput": {"int8": {"low": "1 MMAC/s", "high": "4 MMAC/s", "source": "bench"}},
    }
    return {**base, **changes}


@pytest.fixture
def write(tmp_path):
    def save(data, name="board.yaml"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return path

    return save


def test_at_least_a_dozen_devices_ship_and_all_load():
    names = list_devices()
    assert len(names) >= 13 and "host" in names and list(names) == sorted(names)
    for name in names:
        device = load_device(name)
        assert device.name == name
        assert all(limit.value > 0 and limit.source for limit in device_limits(device))


def figures(node, path=()):
    if isinstance(node, dict):
        if "source" in node:
            yield path, node
        else:
            for key, value in node.items():
                yield from figures(value, (*path, key))


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_figure_has_a_source_and_memory_is_marked(path):
    found = list(figures(yaml.safe_load(path.read_text())))
    assert len(found) >= 5
    for key, figure in found:
        if "from memory" in figure["source"]:
            assert figure.get("prior") is True, f"{key}: {figure}"


# Joules of one inference as measured on three boards by MLPerf Tiny v1.2, and the MACs of its nets.
MACS = {"ic": ("conv", 12.5e6), "kws": ("conv", 2.66e6), "vww": ("conv", 7.49e6)}
MACS["ad"] = ("linear", 0.264e6)
NETS = ("ic", "kws", "vww", "ad")
MEASURED = {  # milliseconds and microjoules of each net
    "nucleo-l4r5": ((165.13, 6919), (43.19, 1820), (88.93, 3894), (5.26, 203)),
    "nucleo-u575": ((111.07, 2579), (29.06, 656), (59.28, 1355), (3.43, 81.9)),
    "nucleo-h7a3": ((40.84, 5090), (11.32, 1376), (23.80, 2965), (1.23, 166)),
}


@pytest.mark.parametrize("board", MEASURED)
@pytest.mark.parametrize("net", NETS)
def test_predictions_hold_the_measured_figures_of_mlperf_tiny(board, net):
    kind, macs = MACS[net]
    device, costs = load_device(board), [op(int(macs), kind)]
    milliseconds, microjoules = MEASURED[board][NETS.index(net)]
    latency, energy = predict_latency(costs, device), predict_energy(costs, device)
    for predicted, measured in ((latency, milliseconds * 1e-3), (energy, microjoules * 1e-6)):
        low, high = ends(predicted)
        # figures are given to three digits, and so are the profile's
        assert low * 0.99 <= measured <= high * 1.01
        assert predicted.value == pytest.approx(measured, rel=0.3)


def test_the_reference_board_gives_the_published_energy():
    device = load_device("nucleo-l4r5")
    ic, kws = (predict_energy([op(int(m))], device) for m in (12.5e6, 2.66e6))
    for energy, joules, near in ((ic, 6.9e-3, 0.1), (kws, 1.8e-3, 0.2)):
        low, high = ends(energy)
        assert low <= joules <= high and energy.value == pytest.approx(joules, rel=near)
    assert ic.kind == "estimated" and "MLPerf Tiny" in ic.where


def test_latency_is_a_roofline_summed_over_operators(write):
    data = plain(
        throughput={
            "int8": {"value": "2 MMAC/s", "source": "bench"},
            "float32": {"value": "1 MMAC/s", "source": "bench"},
        },
        efficiency={"linear": {"value": 0.5, "source": "bench"}},
        bandwidth={"value": "1 MB/s", "source": "bench"},
        invoke_overhead_s={"value": "1 ms", "source": "bench"},
    )
    device = load_device(write(data))
    costs = [
        op(2000, weights=100, read=100, write=100),  # arithmetic: 1 ms, memory 0.3 ms
        op(1000, "linear", weights=3000, read=500, write=500),  # arithmetic 1 ms, memory: 4 ms
        op(1000, bits=32, read=10),  # arithmetic: 1 ms
        op(0, "add", read=2000),  # memory: 2 ms
    ]
    assert predict_latency(costs, device).value == pytest.approx(1e-3 + 8e-3)
    # all at 8 bits: the float operator doubles its speed; all at 32: four times the bytes
    assert predict_latency(costs, device, 8).value == pytest.approx(1e-3 + 7.5e-3)
    assert predict_latency(costs, device, 32).value == pytest.approx(1e-3 + 2e-3 + 16e-3 + 9e-3)


def test_intervals_span_the_ranges_and_typical_lies_within(write):
    device = load_device(
        write(plain(active_power_w={"low": "10 mW", "high": "40 mW", "source": "bench"}))
    )
    latency = predict_latency([op(4_000_000)], device)
    assert latency.spread == pytest.approx((1.0, 4.0)) and latency.value == pytest.approx(2.0)
    assert latency.kind == "predicted" and "bench" in latency.where
    energy = predict_energy([op(4_000_000)], device)
    assert energy.spread == pytest.approx((0.01, 0.16)) and energy.value == pytest.approx(0.04)


def test_energy_of_a_measured_latency_names_both_sources(write):
    device = load_device(
        write(plain(active_power_w={"value": "2 W", "source": "the sheet", "prior": True}))
    )
    latency = Measurement(name="t", value=3.0, unit="s", kind="measured", n=7, where="the bench")
    energy = estimate_energy(latency, device)
    assert (energy.value, energy.kind, energy.n) == (6.0, "estimated", 7)
    assert "the sheet (prior)" in energy.where and "measured latency (the bench)" in energy.where


def test_ram_counts_weights_only_where_they_are_loaded(write):
    share = {"low": "1 kB", "high": "4 kB", "source": "bench"}
    flash = load_device(write(plain(weights_in_ram=False, runtime_ram_bytes=share)))
    loaded = load_device(write(plain(runtime_ram_bytes=share), "other.yaml"))
    assert predict_ram(500, flash, 900).value == pytest.approx(500 + 2000)
    assert predict_ram(500, loaded, 900).value == pytest.approx(500 + 900 + 2000)
    assert predict_ram(500, loaded, 900).spread == pytest.approx((2400, 5400))
    assert predict_storage(700, loaded).value == 700


def test_a_device_without_the_figures_says_what_to_do(write):
    device = load_device(write(plain()))
    with pytest.raises(DeviceError, match=r"no throughput for 32-bit .*\(it has: int8\).*probe"):
        predict_latency([op(1, bits=32)], device)
    with pytest.raises(DeviceError, match="no active_power_w"):
        predict_energy([op(1)], device)
    with pytest.raises(DeviceError, match="it has: none"):
        predict_latency([op(1)], load_device("host"))


def test_limits_are_what_the_device_leaves_free(write):
    limits = plain()["limits"]
    limits["ram_bytes"] = {"low": "1 GB", "high": "8 GB", "source": "sheet"}
    limits["reserved_ram_bytes"] = {"low": "100 MB", "high": "400 MB", "source": "test"}
    ram, storage = device_limits(load_device(write(plain(limits=limits))))
    assert (ram.metric, ram.value, ram.hard) == ("ram_bytes", pytest.approx(0.6e9), True)
    assert (storage.metric, storage.value) == ("storage_bytes", 1e6)
    assert ram.source == "device board"
    limits["reserved_ram_bytes"] = {"value": "1 GB", "source": "test"}
    with pytest.raises(DeviceError, match="key limits: reserved_ram_bytes leaves nothing"):
        load_device(write(plain(limits=limits)))


def test_unknown_names_get_a_near_match():
    with pytest.raises(DeviceError, match="unknown device 'nucleo-l4r4'.*'nucleo-l4r5'"):
        load_device("nucleo-l4r4")
    with pytest.raises(DeviceError, match="no device file at"):
        load_device("no/such/board.yaml")


@pytest.mark.parametrize(
    "wrong",
    ["0 kB", "-5 kB", "nan", "inf", math.nan, math.inf, -1, 0, True, "2 TB", "5 ms", [], ""],
)
@pytest.mark.parametrize("end", ["value", "high"])
def test_absurd_figures_are_refused_by_key(write, wrong, end):
    limits = plain()["limits"]
    limits["ram_bytes"] = {end: wrong, "source": "test"}
    with pytest.raises(DeviceError) as caught:
        load_device(write(plain(limits=limits)))
    message = str(caught.value)
    assert "key limits.ram_bytes: " in message and "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thread": 2}, "unknown key thread: did you mean 'threads'"),
        ({"zzzzqqqq": 2}, "unknown key zzzzqqqq: remove it"),
        ({"threads": "two"}, "key threads: "),
        ({"threads": 0}, "key threads: "),
        ({"precisions": []}, "key precisions: "),
        ({"precisions": ["int7"]}, "key precisions.0: "),
        ({"throughput": {"int9": {"value": 1, "source": "abc"}}}, "key throughput.int9: "),
        ({"throughput": {"int8": {"value": "5 GB/s", "source": "abc"}}}, "key throughput.int8: "),
        ({"throughput": {"int8": 5}}, "key throughput.int8: "),
        ({"active_power_w": {"value": "1 W"}}, "active_power_w.source: is missing; name where"),
        ({"active_power_w": {"source": "abc"}}, "give either 'value', or both"),
        ({"active_power_w": {"low": "1 W", "source": "abc"}}, "give either 'value', or both"),
        ({"active_power_w": {"low": 2, "high": 1, "source": "abc"}}, "'low' is above 'high'"),
        ({"active_power_w": {"value": 1, "low": 1, "high": 2, "source": "abc"}}, "give either"),
        ({"limits": {}}, "key limits.ram_bytes: is missing; add it"),
        ({"name": "another"}, "key name: the file's name is the device's"),
    ],
)
def test_wrong_profiles_name_the_key(write, change, message):
    with pytest.raises(DeviceError) as caught:
        load_device(write(plain(**change)))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "board.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "- 1\n", "a: [", "a: !!python/object/apply:os.system ['true']\n", "a: \x00", "just words"],
)
def test_files_that_are_no_profile(write, text):
    with pytest.raises(DeviceError) as caught:
        load_device(write(text))
    assert "board.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    binary = tmp_path / "board.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DeviceError, match="cannot be read"):
        load_device(binary)
    with pytest.raises(DeviceError, match="cannot be read"):
        load_device(tmp_path)


def test_a_profile_survives_being_written_and_read_again(write):
    device = load_device("raspberry-pi-5")
    data = device.model_dump(mode="json")
    again = load_device(write(yaml.safe_dump(data), "raspberry-pi-5.yaml"))
    assert again == device


def test_units_are_read_as_people_write_them(write):
    data = plain(bandwidth={"low": "2.5 GB/s", "high": "3e9", "source": "bench"})
    device = load_device(write(data))
    assert device.bandwidth == Figure(low=2.5e9, high=3e9, unit="B/s", source="bench")
    assert device.throughput["int8"].unit == "MAC/s"
    assert device.throughput["int8"].typical == pytest.approx(2e6)


def test_the_host_repeats_itself_and_promises_no_speed():
    host = load_device("host")
    assert host == load_device("host") and isinstance(host, Device)
    assert not host.throughput and host.threads >= 1 and "onnxruntime" in host.runtime
    assert 1e6 < host.limits.free("ram_bytes") <= 1e12


def test_devices_need_no_heavy_library():
    code = (
        "import sys, tutelage.devices; tutelage.devices.load_device('nucleo-l4r5');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
