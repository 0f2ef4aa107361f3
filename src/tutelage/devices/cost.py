"""Predicted latency, energy and memory of a graph on a device: pure arithmetic, no torch.

A device that `tutelage probe` calibrated predicts by what was measured there (`calibration.py`).
Otherwise this covers a roofline per operator, the larger of arithmetic and memory traffic, summed,
plus the overhead of a call; it does not cover caches, overlap of operators, frequency scaling, or
the time of operators without multiply-accumulates on a device whose bandwidth is not known. The
interval spans the device's low and high figures; figures marked as priors make it a guess, and
`where` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from tutelage.devices.calibration import Calibration
from tutelage.devices.profile import Device, Figure, OpClass
from tutelage.errors import DeviceError
from tutelage.records import Measurement, OpCost

# A width of arithmetic -> the precisions that carry it, the first that the device has.
_PRECISIONS = {8: ("int8",), 32: ("float32", "float16")}
_Triple = tuple[float, float, float]  # low, typical, high


def predict_latency(
    costs: Iterable[OpCost], device: Device, bits: int | None = None
) -> Measurement:
    """Predict the seconds of one inference: sum over operators of max(MACs/rate, bytes/bandwidth).

    `bits` (8 or 32) prices every operator, its bytes too, as if at that width; by default each is
    priced at its own. Raises `DeviceError` when the device has no throughput for a width, or its
    calibration no time for an operator. Source: Williams et al., Roofline, 2009.
    """
    if device.calibration is not None:
        return _calibrated(costs, device, device.calibration, bits)
    low, typical, high = _triple(device.invoke_overhead_s, 0.0)
    used: dict[int, Figure] = {}
    for op in costs:
        width = bits or op.bits
        rate = used.setdefault(width, _throughput(device, width))
        times = _op_time(op, device, rate, width)
        low, typical, high = low + times[0], typical + times[1], high + times[2]
    return Measurement(
        name="latency",
        value=typical,
        unit="s",
        kind="predicted",
        spread=(low, high),
        where=f"{device.name}, {device.runtime}: rates from {_cite(*device.throughput.values())}",
    )


def _calibrated(
    costs: Iterable[OpCost], device: Device, calibration: Calibration, bits: int | None
) -> Measurement:
    low, typical, high = calibration.seconds(costs, bits)
    warned = "".join(f"; {note.partition(':')[0]}" for note in calibration.notes)
    return Measurement(
        name="latency",
        value=typical,
        unit="s",
        kind="predicted",
        n=calibration.graphs,
        spread=(low, high),
        where=f"{device.name}, {device.runtime}: {calibration.interval.source}{warned}",
    )


def predict_energy(costs: Iterable[OpCost], device: Device, bits: int | None = None) -> Measurement:
    """Estimate the joules of one inference: active power x predicted latency.

    Raises `DeviceError` when the device has no throughput or no active power.
    """
    return estimate_energy(predict_latency(costs, device, bits), device)


def estimate_energy(latency: Measurement, device: Device) -> Measurement:
    """Estimate the joules of one inference from its latency in seconds: active power x latency.

    Raises `DeviceError` when the device has no active power. On three boards of MLPerf Tiny v1.2,
    mean active power x measured latency was within 2 to 5 % of the measured energy.
    """
    power = device.active_power_w
    if power is None:
        raise DeviceError(
            f"device '{device.name}' has no active_power_w, so its energy cannot be estimated: "
            "add the figure with its source to the profile, or drop energy_j from the budget"
        )
    low, high = latency.spread or (latency.value, latency.value)
    on = f" ({latency.where})" if latency.kind == "measured" else ""
    return Measurement(
        name="energy",
        value=power.typical * latency.value,
        unit="J",
        kind="estimated",
        n=latency.n,
        spread=(power.bounds[0] * low, power.bounds[1] * high),
        where=f"{device.name}: active power from {_cite(power)} x {latency.kind} latency{on}",
    )


def predict_ram(
    peak_activation_bytes: int, device: Device, parameter_bytes: int = 0
) -> Measurement:
    """Predict RAM in bytes: activations, the runtime's own, and weights unless read from flash."""
    weights = parameter_bytes if device.weights_in_ram else 0
    return _with_overhead("ram", peak_activation_bytes + weights, device.runtime_ram_bytes, device)


def predict_storage(file_bytes: int, device: Device) -> Measurement:
    """Predict storage in bytes: the artifact's files and the runtime's code."""
    return _with_overhead("storage", file_bytes, device.runtime_storage_bytes, device)


def _with_overhead(name: str, own: int, overhead: Figure | None, device: Device) -> Measurement:
    low, typical, high = _triple(overhead, 0.0)
    cited = f"runtime's share from {_cite(overhead)}" if overhead else "runtime's share not known"
    return Measurement(
        name=name,
        value=own + typical,
        unit="B",
        kind="predicted",
        spread=(own + low, own + high),
        where=f"{device.name}, {device.runtime}: {cited}",
    )


def _throughput(device: Device, width: int) -> Figure:
    wanted = _PRECISIONS.get(width, ())
    for precision in wanted:
        if precision in device.throughput:
            return device.throughput[precision]
    known = ", ".join(device.throughput) or "none"
    raise DeviceError(
        f"device '{device.name}' has no throughput for {width}-bit arithmetic (it has: {known}): "
        "calibrate it there with 'tutelage probe', or add the figure with its source"
    )


def _op_time(op: OpCost, device: Device, rate: Figure, width: int) -> _Triple:
    speed = _triple(rate, 0.0)
    share = _triple(device.efficiency.get(cast("OpClass", op.op)), 1.0)
    moved = (op.weight_bytes + op.read_bytes + op.write_bytes) * width / op.bits
    path = _triple(device.bandwidth, float("inf"))
    slow, typical, fast = (
        max(op.macs / (s * e), moved / b) for s, e, b in zip(speed, share, path, strict=True)
    )
    return fast, typical, slow


def _triple(figure: Figure | None, default: float) -> _Triple:
    if figure is None:
        return default, default, default
    low, high = figure.bounds
    return low, figure.typical, high


def _cite(*figures: Figure) -> str:
    """Name the sources in brief: the first clause of each; the profile has the whole."""
    clauses = dict.fromkeys(figure.source.split(", ")[0].split(" (")[0] for figure in figures)
    said = [c for c in clauses if not c.startswith("from memory")] or ["memory"]
    priors = [figure.prior for figure in figures]
    tail = " (prior)" if all(priors) else ", in part priors" if any(priors) else ""
    return " and ".join(said) + tail
