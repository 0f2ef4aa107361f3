"""Energy of one inference: measured where the machine can, else estimated with its source named.

Covers: a power meter's CSV; the processor package's counter (RAPL); a GPU's counter (NVML); else
active power x latency. The counters include what the rest of the machine used meanwhile, so they
are upper bounds on a busy machine. Does not cover: the radio, the screen, or a device that is not
this machine, unless a meter measured it; for such a device the answer is an estimate, and says so.
"""

from __future__ import annotations

import csv
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.devices.cost import estimate_energy, predict_energy
from tutelage.devices.profile import HOST, Device, cpu_name
from tutelage.errors import DataError, DeviceError, MissingExtra, RecipeError
from tutelage.measure.latency import Call, measure_latency, prepare
from tutelage.records import Measurement

POWERCAP = Path("/sys/class/powercap")
_FEWEST_CALLS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTrace:
    """A power meter's record: seconds, rising, and watts at each."""

    time_s: tuple[float, ...]
    power_w: tuple[float, ...]

    @property
    def energy_j(self) -> float:
        """Integral of power over time, by trapezoids."""
        steps = zip(self.time_s, self.time_s[1:], self.power_w, self.power_w[1:], strict=False)
        return math.fsum((t1 - t0) * (p0 + p1) / 2 for t0, t1, p0, p1 in steps)


def measure_energy(
    model: str | Path | Call,
    *,
    device: Device | None = None,
    power_csv: str | Path | None = None,
    inferences: int | None = None,
    on: Literal["cpu", "gpu"] = "cpu",
    threads: int = 1,
    budget_s: float = 3.0,
) -> Measurement:
    """Return joules of one inference and, in `kind`, how they were come by.

    `model` is an ONNX file or a function without arguments. In this order: `power_csv`, recorded
    while `inferences` ran (measured); this machine's counter, RAPL for the CPU or NVML for
    `on="gpu"` (measured); else `device`'s active power x latency (estimated). A `device` that is
    not this machine skips the counters. Raises `DataError` for a bad CSV, `DeviceError` when there
    is neither a counter nor an active power, `MissingExtra` when the GPU's library is missing.
    """
    if not budget_s > 0 or threads < 1:
        raise RecipeError(
            f"energy needs a time budget above 0 s and 1 thread; got {budget_s}, {threads}: "
            "correct them"
        )
    if power_csv is not None:
        return _from_meter(Path(power_csv), inferences)
    here = device is None or device.name == HOST
    if here and on == "gpu":
        if not callable(model):
            raise RecipeError(
                f"'{model}' runs on the CPU here, so the GPU's counter says nothing of it: give a "
                'function that runs it on the GPU, or measure with on="cpu"'
            )
        return _counted(model, threads, budget_s, _nvml_counter(), "NVML, whole GPU")
    if here and read_rapl(POWERCAP) is not None:
        return _counted(model, threads, budget_s, _rapl_counter(POWERCAP), "RAPL, whole package")
    return _estimated(model, device, threads, budget_s)


def read_power_csv(path: Path) -> PowerTrace:
    """Read a meter's CSV with the columns `time_s` and `power_w`; raises `DataError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"power record '{path}' cannot be read ({error}): check the path") from None
    if not rows or not {"time_s", "power_w"} <= rows[0].keys():
        raise DataError(f"power record '{path}' needs the columns time_s and power_w: add them")
    times: list[float] = []
    powers: list[float] = []
    for line, row in enumerate(rows, start=2):
        try:
            moment, power = float(row["time_s"]), float(row["power_w"])
        except (TypeError, ValueError):
            moment = power = math.nan
        rising = not times or moment > times[-1]
        if not (math.isfinite(moment) and math.isfinite(power) and power >= 0 and rising):
            raise DataError(
                f"power record '{path}', line {line}: needs a rising time_s and a power_w of 0 or "
                "more, both finite: correct the line"
            )
        times.append(moment)
        powers.append(power)
    if len(times) < 2:
        raise DataError(f"power record '{path}' has one reading: an energy needs two or more")
    return PowerTrace(time_s=tuple(times), power_w=tuple(powers))


def _from_meter(path: Path, inferences: int | None) -> Measurement:
    if inferences is None or inferences < 1:
        raise RecipeError(
            f"power record '{path}' needs the number of inferences that ran while it was taken: "
            "give inferences"
        )
    trace = read_power_csv(path)
    return Measurement(
        name="energy",
        value=trace.energy_j / inferences,
        unit="J",
        kind="measured",
        n=inferences,
        where=f"power meter, '{path.name}', {len(trace.time_s)} readings, whole device",
    )


def read_rapl(root: Path) -> dict[str, tuple[float, float]] | None:
    """Return joules, and the joules at which it wraps, of each package; None where not readable.

    Only packages are read: their sub-zones (cores, memory) are parts of them.
    """
    found = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            energy = float((zone / "energy_uj").read_text()) * 1e-6
            top = float((zone / "max_energy_range_uj").read_text()) * 1e-6
        except (OSError, ValueError):
            return None  # part of the counters would be an undercount
        found[zone.name] = (energy, top)
    return found or None


def _rapl_counter(root: Path) -> Callable[[], float]:
    """Return a reader of joules used since it was made; call it more often than it wraps."""
    last = read_rapl(root)
    total = 0.0

    def read() -> float:
        nonlocal last, total
        now = read_rapl(root)
        if now is None or last is None or now.keys() != last.keys():
            raise DeviceError(f"RAPL under '{root}' stopped answering: run again")
        for zone, (energy, top) in now.items():
            used = energy - last[zone][0]
            total += used if used >= 0 else used + top
        last = now
        return total

    return read


def _nvml_counter() -> Callable[[], float]:
    """Return a reader of joules used by the first GPU since its driver was loaded."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        raise MissingExtra("measuring the energy of a GPU", "energy") from None

    def read() -> float:
        try:
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByIndex(0)
            return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3  # counts mJ
        except nvml.NVMLError as error:
            raise DeviceError(
                f"this machine's GPU does not report its energy ({error}): measure on the CPU, or "
                "give a power meter's CSV"
            ) from None

    return read


def _counted(
    model: str | Path | Call,
    threads: int,
    budget_s: float,
    counter: Callable[[], float],
    what: str,
) -> Measurement:
    """Run for `budget_s` seconds and share the counter's joules among the calls."""
    call, where = prepare(model, threads)
    call()
    before, begin, calls = counter(), time.perf_counter(), 0
    while calls < _FEWEST_CALLS or time.perf_counter() - begin < budget_s:
        call()
        calls += 1
    return Measurement(
        name="energy",
        value=(counter() - before) / calls,
        unit="J",
        kind="measured",
        n=calls,
        where=f"{what}: {where}",
    )


def _estimated(
    model: str | Path | Call, device: Device | None, threads: int, budget_s: float
) -> Measurement:
    if device is None or device.active_power_w is None:
        name = f"device '{device.name}'" if device else f"this machine ({cpu_name()})"
        raise DeviceError(
            f"the energy on {name} is not known: no counter can be read and no active_power_w is "
            "given. Give a power meter's CSV, or a device profile with active_power_w"
        )
    if device.name == HOST:
        latency = measure_latency(model, threads=threads, budget_s=budget_s).p50
        return estimate_energy(latency, device)
    if callable(model):
        raise DeviceError(
            f"a Python function cannot be priced on device '{device.name}': give the ONNX file"
        )
    from tutelage.export.graph import graph_costs

    return predict_energy(graph_costs(model).ops, device)
