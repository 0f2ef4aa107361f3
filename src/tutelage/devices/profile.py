"""Devices as YAML files: the filename is the name, and every figure names its source."""

from __future__ import annotations

import difflib
import math
import os
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from tutelage.devices.calibration import Calibration, OpTime
from tutelage.devices.figures import Figure, Strict, figure_in
from tutelage.errors import DeviceError
from tutelage.plain_yaml import load_yaml
from tutelage.records import Limit
from tutelage.registry import near_matches

PROFILES = Path(__file__).parent / "profiles"
HOST = "host"
_SUFFIXES = (".yaml", ".yml")

Precision = Literal["int8", "float16", "float32"]
OpClass = Literal["conv", "depthwise", "linear", "pool", "add", "other"]


_Ram = Annotated[Figure, figure_in("B", 1e12)]
_Storage = Annotated[Figure, figure_in("B", 1e15)]
_Macs = Annotated[Figure, figure_in("MAC/s", 1e16)]
_Bandwidth = Annotated[Figure, figure_in("B/s", 1e14)]
_Power = Annotated[Figure, figure_in("W", 1e5)]
_Time = Annotated[Figure, figure_in("s", 60.0)]
_Ratio = Annotated[Figure, figure_in("", 10.0)]


class DeviceLimits(Strict):
    """What the device has, of which `reserved_*` goes to the system or the rest of the firmware."""

    ram_bytes: _Ram
    storage_bytes: _Storage
    reserved_ram_bytes: _Ram | None = None
    reserved_storage_bytes: _Storage | None = None

    @model_validator(mode="after")
    def _something_left(self) -> DeviceLimits:
        for name in ("ram_bytes", "storage_bytes"):
            if self.free(name) <= 0:
                raise ValueError(f"reserved_{name} leaves nothing of {name} for a model")
        return self

    def free(self, name: str) -> float:
        """Return the bytes left for a model with its runtime, at the least favourable figures."""
        reserved: Figure | None = getattr(self, f"reserved_{name}")
        whole: Figure = getattr(self, name)
        return whole.bounds[0] - (reserved.bounds[1] if reserved is not None else 0.0)


class Device(Strict):
    """A named machine: runtime, limits, and the coefficients of its cost model.

    `throughput` is for convolutions, per precision; `efficiency` scales it for another operator
    class. `weights_in_ram` is false where weights are read in place from flash. A `calibration`
    predicts latency in their place.
    """

    name: str
    title: str
    description: str
    runtime: str
    threads: int = Field(ge=1, le=1024)
    precisions: Annotated[tuple[Precision, ...], Field(strict=False, min_length=1)]
    weights_in_ram: bool = True
    limits: DeviceLimits
    throughput: dict[Precision, _Macs] = Field(default_factory=dict)
    efficiency: dict[OpClass, _Ratio] = Field(default_factory=dict)
    bandwidth: _Bandwidth | None = None
    active_power_w: _Power | None = None
    idle_power_w: _Power | None = None
    runtime_ram_bytes: _Ram | None = None
    runtime_storage_bytes: _Storage | None = None
    invoke_overhead_s: _Time | None = None
    calibration: Calibration | None = None

    @model_serializer(mode="wrap")
    def _without_calibration(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a calibration that is not there: the hashes of runs without one stay."""
        plain = write(self)
        if self.calibration is None:
            del plain["calibration"]
        return plain

    def runs(self, precision: str) -> bool:
        """Say whether it runs a file of that precision.

        Weights in float16 become float32 when the file is loaded: that takes float arithmetic, and
        weights that lie in RAM.
        """
        if precision != "float16":
            return precision in self.precisions
        return self.weights_in_ram and not {"float16", "float32"}.isdisjoint(self.precisions)


def load_device(name_or_path: str | Path) -> Device:
    """Return the device of that name, or the one that a YAML file describes.

    Raises `DeviceError` for an unknown name (with the nearest one), or naming the wrong key.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(_SUFFIXES) or "/" in text or os.sep in text:
        return _read(Path(name_or_path))
    if text == HOST:
        return host()
    if text not in list_devices():
        hint = near_matches(text, list(list_devices()))
        raise DeviceError(f"unknown device '{text}'. {hint} Or give the path of a YAML file.")
    return _read(PROFILES / f"{text}.yaml")


def list_devices() -> tuple[str, ...]:
    """Names of the shipped devices and of the machine this runs on, sorted."""
    return tuple(sorted([*(path.stem for path in PROFILES.glob("*.yaml")), HOST]))


def device_limits(device: Device) -> tuple[Limit, Limit]:
    """Return the limits a device sets by itself: RAM and storage, each for model and runtime."""
    source = f"device {device.name}"
    free = device.limits.free
    return (
        Limit(metric="ram_bytes", value=free("ram_bytes"), source=source),
        Limit(metric="storage_bytes", value=free("storage_bytes"), source=source),
    )


def host(storage: str | Path = ".") -> Device:
    """Describe this machine, without cost coefficients: those come from a calibration.

    Its limits are whole RAM (the container's, where there is one) and the whole disk that holds
    `storage`, not what is free at this moment, so that a run repeats.
    """
    from importlib.metadata import version

    import psutil

    ram = min(float(psutil.virtual_memory().total), _container_bytes(), 1e12)
    disk = min(float(psutil.disk_usage(str(storage)).total), 1e15)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return Device(
        name=HOST,
        title=cpu_name(),
        description="The machine this runs on.",
        runtime=f"onnxruntime {version('onnxruntime')}",
        threads=cores,
        precisions=("int8", "float32"),
        limits=DeviceLimits(
            ram_bytes=_measured(ram, "psutil, total of this machine or container"),
            storage_bytes=_measured(disk, "psutil, total of the disk in use"),
        ),
    )


def _measured(value: float, source: str) -> Figure:
    return Figure(value=value, unit="B", source=source)


def _container_bytes() -> float:
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no cgroup, or 'max'
        return math.inf


def cpu_name() -> str:
    """Name this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "this machine"


def _read(path: Path) -> Device:
    what = f"device file '{path}'"
    raw = read_keys(path, what, "start from a shipped profile")
    if raw.setdefault("name", path.stem) != path.stem:
        raise DeviceError(f"{what}, key name: the file's name is the device's; leave the key out")
    try:
        return Device.model_validate(raw)
    except ValidationError as error:
        raise DeviceError(f"{what}, {explain(error, _known_keys())}") from None


def read_keys(path: Path, what: str, cure: str) -> dict[str, Any]:
    """Read a YAML file of keys; raises `DeviceError` naming it as `what`, with a `cure`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DeviceError(f"no {what.partition(' ')[0]} file at '{path}': check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"{what} cannot be read: {error}") from None
    raw = load_yaml(text, what, DeviceError)
    if not isinstance(raw, dict):
        raise DeviceError(f"{what} holds no keys: {cure}")
    return raw


def explain(error: ValidationError, known: set[str]) -> str:
    """Say in one line which key is wrong, and why; `known` are the keys that there are."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"] if part != "[key]"]
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(parts[-1], sorted(known), n=1, cutoff=0.5)
        return f"unknown key {key}: " + (f"did you mean '{near[0]}'?" if near else "remove it")
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if first["type"] == "missing":
        cure = "name where the figure is from" if parts[-1] == "source" else "add it"
        message = f"is missing; {cure}"
    more = error.error_count() - 1
    return f"key {key}: {message}" + (f" (and {more} more)" if more else "")


def _known_keys() -> set[str]:
    models: tuple[type[BaseModel], ...] = (Device, DeviceLimits, Figure, Calibration, OpTime)
    return {key for model in models for key in model.model_fields} - {"unit", "name"}
