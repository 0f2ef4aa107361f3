"""Figures read off an exported graph: exact counts, and what a device's profile makes of them.

Covers bytes, operations, peak activation memory, and predicted latency, memory and energy. Does
not run the graph; `latency`, `memory` and `energy` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tutelage.devices import Device
from tutelage.devices.cost import estimate_energy, predict_latency, predict_ram
from tutelage.errors import DeviceError
from tutelage.export.graph import GraphCosts, graph_costs
from tutelage.records import Kind, Measurement, SideFile
from tutelage.units import format_quantity


def graph_figures(
    path: Path, device: Device, *, exact: Kind = "measured", beside: Sequence[SideFile] = ()
) -> tuple[Measurement, ...]:
    """Return storage, operations, peak activations, then the device's memory, latency and energy.

    `exact` is the kind of the counts: `measured` on the artifact that ships, `predicted` on a
    stand-in. Storage counts the files `beside` the model. Latency and energy are left out where the
    profile has no figures for them.
    """
    return figures_of(
        graph_costs(path), device, exact=exact, beside=beside, where=f"counted on {path.name}"
    )


def figures_of(
    costs: GraphCosts, device: Device, *, exact: Kind, beside: Sequence[SideFile], where: str
) -> tuple[Measurement, ...]:
    """Return the same of a graph that was counted before, perhaps for another device."""
    ram = predict_ram(costs.peak_activation_bytes, device, costs.parameter_bytes)
    found = [
        _storage(costs.file_bytes, beside, exact),
        _count("macs", costs.macs, "MAC", exact, where),
        _count("peak_activation_bytes", costs.peak_activation_bytes, "B", exact, where),
        replace(ram, name="ram_bytes"),
    ]
    try:
        latency = predict_latency(costs.ops, device)
    except DeviceError:  # no rate for this width: the figure is absent, and so is its verdict
        return tuple(found)
    found.append(replace(latency, name="latency_s"))
    if device.active_power_w is not None:
        found.append(replace(estimate_energy(latency, device), name="energy_j"))
    return tuple(found)


def _storage(model: int, beside: Sequence[SideFile], exact: Kind) -> Measurement:
    parts = [("model", model), *((file.name, file.bytes) for file in beside)]
    said = " + ".join(f"{name} {format_quantity(size, 'B')}" for name, size in parts)
    where = said if beside else "file size"
    return _count("storage_bytes", sum(size for _, size in parts), "B", exact, where)


def _count(name: str, value: int, unit: str, kind: Kind, where: str) -> Measurement:
    return Measurement(name=name, value=float(value), unit=unit, kind=kind, where=where)
