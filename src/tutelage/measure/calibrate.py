"""Readings of a probe to a device profile with coefficients, intervals and notes.

Covers: readings taken on this machine or brought back from another; what was remarkable
(throttling, other work, a clock that jumped) widens the intervals and is noted. Does not cover:
memory and storage that the runtime itself takes, which stay unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tutelage.devices.calibration import FIGURES, Calibration, OpTime, Timed, Width
from tutelage.devices.figures import Figure, Strict
from tutelage.devices.probe import graphs as probe_graphs
from tutelage.devices.profile import Device, DeviceLimits, explain, read_keys
from tutelage.errors import DeviceError
from tutelage.export.graph import graph_costs
from tutelage.measure.fit import Costs, Fit, conformal, fit_times
from tutelage.plain_yaml import dump_yaml

FEWEST_GRAPHS = 50
_REMARKABLE_DRIFT, _REMARKABLE_NOISE, _REMARKABLE_WORK = 0.10, 0.05, 0.10
_AGAIN = "the intervals are wider for it; probe again on a cool and idle machine"

_Seconds = Annotated[float, Field(gt=1e-8, le=60.0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
_Watts = Annotated[float, Field(gt=0.0, le=1e5, allow_inf_nan=False)]
_Amount = Annotated[float, Field(gt=0.0, le=1e15, allow_inf_nan=False)]


class Reading(Strict):
    """The median time of one graph, with the quartiles of its blocks."""

    graph: str = Field(pattern=r"^[0-9]{1,3}-[0-9a-f]{12}$")
    time_s: _Seconds
    quartiles_s: Annotated[tuple[_Seconds, _Seconds], Field(strict=False)]
    blocks: int = Field(ge=1)


class Machine(Strict):
    """Where the readings were taken."""

    cpu: str
    architecture: str
    system: str
    cores: int = Field(ge=1, le=4096)
    flags: list[str]
    python: str
    numpy: str
    onnxruntime: str
    ram_bytes: _Amount | None
    disk_bytes: _Amount | None


class Readings(Strict):
    """What a probe wrote; `whole` stands on its last line."""

    probe: Literal[1]
    date: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    machine: Machine
    threads: int = Field(ge=1, le=1024)
    load: list[float | None]
    dropped: int = Field(ge=0)
    other_work: _Share | None
    noise_floor: _Share
    drift: _Share
    bandwidth_bytes_per_s: _Amount
    idle_power_w: _Watts | None
    active_power_w: _Watts | None
    readings: list[Reading] = Field(max_length=1_000)
    whole: Literal[True]

    @property
    def source(self) -> str:
        """What every figure made of these readings is from."""
        return f"measured by tutelage probe on {self.date}"


def read_readings(path: Path) -> Readings:
    """Read what a probe wrote; raises `DeviceError` naming the wrong key, in one line."""
    what = f"readings file '{path}'"
    raw = read_keys(path, what, "bring back the file that the probe wrote")
    known = {key for model in (Reading, Machine, Readings) for key in model.model_fields}
    if raw and "whole" not in raw:
        raise DeviceError(f"{what} was cut off, or is none: bring back the whole file")
    try:
        return Readings.model_validate(raw)
    except ValidationError as error:
        raise DeviceError(f"{what}, {explain(error, known)}") from None


def calibrated(readings: Readings, name: str, limits: DeviceLimits) -> Device:
    """Return the profile of the machine that was probed.

    Raises `DeviceError` for readings of another version of the probe, for too few, and for ones so
    uneven that no interval can be told.
    """
    costs = [_costs(reading) for reading in readings.readings]
    names = {reading.graph for reading in readings.readings}
    if not FEWEST_GRAPHS <= len(names) == len(costs):
        raise DeviceError(
            f"{len(names)} different graphs were timed in {len(costs)} readings; {FEWEST_GRAPHS} "
            "at least, once each, make a calibration: probe again, for longer"
        )
    fit = fit_times(costs, [reading.time_s for reading in readings.readings])
    bandwidth = readings.bandwidth_bytes_per_s
    watts: dict[str, Any] = {
        key: Figure(value=value, unit="W", source=f"{readings.source}, RAPL, whole package")
        for key in ("active_power_w", "idle_power_w")
        if (value := getattr(readings, key)) is not None
    }
    return Device(
        name=name,
        title=readings.machine.cpu or readings.machine.architecture,
        description=f"{readings.machine.system}, {', '.join(readings.machine.flags) or 'no flags'}",
        runtime=f"onnxruntime {readings.machine.onnxruntime}",
        threads=readings.threads,
        precisions=("int8", "float32"),
        limits=limits,
        bandwidth=Figure(value=bandwidth, unit="B/s", source=f"{readings.source}, copy by numpy"),
        calibration=_calibration(readings, fit),
        **watts,
    )


def profile_text(device: Device) -> str:
    """Return a device as the YAML of a profile; its name is the file's."""
    data = device.model_dump(mode="json", exclude_none=True)
    del data["name"]
    return dump_yaml(data)


def measured_limits(
    readings: Readings, ram_bytes: float | None, storage_bytes: float | None
) -> DeviceLimits:
    """Return the limits given, or what the machine said of itself.

    Raises `DeviceError` where neither is known.
    """
    found: dict[str, Any] = {}
    sides = (("ram", ram_bytes, readings.machine.ram_bytes),
             ("storage", storage_bytes, readings.machine.disk_bytes))  # fmt: skip
    for side, given, said in sides:
        value = given if given is not None else said
        if value is None:
            raise DeviceError(f"the readings do not say how much {side} there is: give --{side}")
        source = "given to tutelage probe" if given is not None else readings.source
        found[f"{side}_bytes"] = Figure(value=value, unit="B", source=source)
    return DeviceLimits(**found)


def _costs(reading: Reading) -> Costs:
    import onnx

    name, model = probe_graphs.graph(int(reading.graph.partition("-")[0]))
    if name != reading.graph:
        raise DeviceError(
            f"the readings are of another version of the probe ({reading.graph} is {name} here): "
            "copy the probe again with 'tutelage probe --copy', and run it there once more"
        )
    return graph_costs(onnx.load_model_from_string(model)).ops


def _calibration(readings: Readings, fit: Fit) -> Calibration:
    source, graphs = readings.source, len(fit.ratios)
    low, high = conformal(fit.ratios)
    # A judgement, not a theorem: what the machine did beside the work adds to the ratio.
    wider = 1 + readings.noise_floor + readings.drift + (readings.other_work or 0.0) / 4
    low, high = low / wider, high * wider
    if high > 10 or low < 0.1:
        raise DeviceError(
            f"the readings are so uneven that a prediction would hold between {low:.2g} and "
            f"{high:.2g} times itself: probe again on a cool and idle machine"
        )
    times: dict[Timed, dict[Width, OpTime]] = {}
    for (group, width), seconds in fit.seconds.items():
        form = fit.forms[group, width]
        times.setdefault(group, {})[width] = OpTime(
            roofline=form.roofline, blocks=form.blocks, even=form.even,
            **_figures(FIGURES, seconds, source),
        )  # fmt: skip
    return Calibration(
        times=times,
        interval=Figure(low=low, high=high, unit="", source=f"{source}, {graphs} graphs"),
        noise_floor=readings.noise_floor,
        drift=readings.drift,
        graphs=graphs,
        notes=tuple(remarks(readings)),
        **_figures(("call", "call_int8"), (fit.call_s, fit.call_int8_s), source),
    )


def _figures(names: Sequence[str], seconds: Sequence[float], source: str) -> dict[str, Any]:
    """Return figures in seconds by name, without those that are 0."""
    return {
        name: Figure(value=float(f"{value:.6g}"), unit="s", source=source)
        for name, value in zip(names, seconds, strict=True)
        if value > 0
    }


def remarks(readings: Readings) -> list[str]:
    """Say what was remarkable about the machine while it was probed."""
    said = []
    if readings.drift > _REMARKABLE_DRIFT:
        said.append(f"the machine's speed changed by {readings.drift:.0%} (throttling?): {_AGAIN}")
    if readings.noise_floor > _REMARKABLE_NOISE:
        noise = readings.noise_floor
        said.append(f"neighbouring readings of one graph lie {noise:.0%} apart: {_AGAIN}")
    if (readings.other_work or 0.0) > _REMARKABLE_WORK:
        said.append(f"other work took {readings.other_work:.0%} of the time: {_AGAIN}")
    if readings.dropped:
        said.append(f"{readings.dropped} readings were dropped: the clock jumped, or it slept")
    return said
