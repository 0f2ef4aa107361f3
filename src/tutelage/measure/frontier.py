"""The Pareto frontier of the students that were tried, on one device and over the known ones.

Covers metric against storage, latency and energy, from stored counts and the device's profile. Does
not run, train or export anything: costs are predicted, and the metric is what was measured when a
student was tried. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.devices import HOST, Device, device_limits, list_devices, load_device
from tutelage.export.graph import GraphCosts
from tutelage.measure.costs import figures_of
from tutelage.records import Measurement, SideFile

AXES = ("storage_bytes", "latency_s", "energy_j")
_WORDS = {"storage_bytes": "storage", "ram_bytes": "memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A student that was tried: its spec, what its graph counts, and how good it was found to be.

    `figure` is of the artifact after a full distillation where `taught`, else of a short trial.
    """

    spec: dict[str, Any]
    parameters: int
    precision: str
    counted: GraphCosts
    figure: Measurement
    taught: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A tried student with its figures on one device, and on which axes nothing dominates it."""

    tried: Tried
    costs: dict[str, Measurement]
    frontier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A known device and the student that would do there; without one, `reason` says why."""

    device: Device
    best: Placed | None
    reason: str = ""


def read_tried(data: dict[str, Any]) -> tuple[Tried, ...]:
    """Return the students of scores.json that have a figure, in the file's order.

    Raises `KeyError`, `TypeError` or `ValueError` where the data is not of that form.
    """
    if data["format"] != 1:
        raise ValueError(f"format {data['format']!r} is not known")
    rows = [_read(row) for row in data["rows"]]
    return tuple(row for row in rows if row is not None)


def frontier(points: Sequence[tuple[float, float | None]]) -> tuple[int, ...]:
    """Return the indices of the (metric, cost) pairs that no other dominates, cheapest first.

    One dominates where its metric is no lower and its cost no higher, and one of both is better;
    equal pairs all stay, in their order. Pairs without a cost are left out.
    """
    known = [(cost, -value, i) for i, (value, cost) in enumerate(points) if cost is not None]
    found: list[tuple[float, float, int]] = []
    for cost, negative, i in sorted(known):
        last = found[-1] if found else (0.0, math.inf, -1)
        if negative < last[1] or (cost, negative) == last[:2]:
            found.append((cost, negative, i))
    return tuple(i for _, _, i in found)


def place(
    tried: Iterable[Tried], device: Device, beside: Sequence[SideFile] = ()
) -> tuple[Placed, ...]:
    """Return the students with their predicted figures on `device`, the frontier of each axis told.

    The files `beside` a model count in its storage.
    """
    return with_frontier([(t, costs_on(t, device, beside)) for t in tried])


def with_frontier(
    rows: Sequence[tuple[Tried, dict[str, Measurement]]],
) -> tuple[Placed, ...]:
    """Return the students with these figures, keyed by their names, the frontier of each told."""
    on: list[list[str]] = [[] for _ in rows]
    for axis in AXES:
        costs = [c[axis].value if axis in c else None for _, c in rows]
        values = [t.figure.value for t, _ in rows]
        for i in frontier(list(zip(values, costs, strict=True))):
            on[i].append(axis)
    return tuple(
        Placed(tried=t, costs=c, frontier=tuple(axes))
        for (t, c), axes in zip(rows, on, strict=True)
    )


def costs_on(
    tried: Tried, device: Device, beside: Sequence[SideFile] = ()
) -> dict[str, Measurement]:
    """Return the student's predicted figures on `device` by name."""
    figures = figures_of(
        tried.counted, device, exact="predicted", beside=beside,
        where="counted when it was tried",
    )  # fmt: skip
    return {figure.name: figure for figure in figures}


def choose(tried: Sequence[Tried], device: Device, beside: Sequence[SideFile] = ()) -> Choice:
    """Return the best student within the device's own memory and storage: by metric, fewest MACs.

    The recipe's budget is not asked of it. A student in a precision that the device lacks is out.
    """
    able = [t for t in tried if device.runs(t.precision)]
    if not able:
        return Choice(
            device=device, best=None, reason=f"none was tried in {' or '.join(device.precisions)}"
        )
    placed = place(able, device, beside)
    limits = device_limits(device)
    fitting = [p for p in placed if all(x.met_by(p.costs[x.metric].value) for x in limits)]
    if fitting:
        best = max(fitting, key=lambda p: (p.tried.figure.value, -p.costs["macs"].value))
        return Choice(device=device, best=best)
    short = [x for x in limits if not any(x.met_by(p.costs[x.metric].value) for p in placed)]
    words = " and ".join(_WORDS[x.metric] for x in short)
    reason = f"too little {words} for each of them" if short else "none keeps both of its limits"
    return Choice(device=device, best=None, reason=reason)


def choose_all(tried: Sequence[Tried], beside: Sequence[SideFile] = ()) -> tuple[Choice, ...]:
    """Return the choice of every known device, by name; this machine is not among them."""
    return tuple(
        choose(tried, load_device(name), beside) for name in list_devices() if name != HOST
    )


def _read(row: dict[str, Any]) -> Tried | None:
    given = row["trial"] if row["taught"] is None else row["taught"]
    if given is None:
        return None
    figure = Measurement.from_json(given)
    if isinstance(figure.value, bool) or not math.isfinite(figure.value):
        raise ValueError(f"the figure {figure.value!r} of a student is not a finite number")
    return Tried(
        spec=dict(row["spec"]),
        parameters=int(row["parameters"]),
        precision=str(row["precision"]),
        counted=GraphCosts.from_json(row["counted"]),
        figure=figure,
        taught=row["taught"] is not None,
    )
