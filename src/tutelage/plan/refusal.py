"""What to say where a budget cannot be met: which limit binds, by how much, and what would do.

Another device is looked for among the shipped profiles, smallest memory first, since profiles hold
no prices. What the recipe asks for is asked of it too, and its own limits and rates take the place
of this device's; one without the figure that a limit needs is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from tutelage.devices import HOST, Device, device_limits, list_devices, load_device
from tutelage.errors import InfeasibleError
from tutelage.measure.costs import graph_figures
from tutelage.plan.candidate import Candidate
from tutelage.plan.costs import Costing, as_shipped
from tutelage.records import Limit, Shortfall, SideFile, Verdict, WouldDo
from tutelage.units import format_quantity

_UNITS = {"latency_s": "s", "ram_bytes": "B", "storage_bytes": "B", "energy_j": "J"}
_NAMES = {
    "latency_s": "latency", "ram_bytes": "memory", "storage_bytes": "storage", "energy_j": "energy",
}  # fmt: skip


def shortfall(
    tried: Sequence[Candidate], networks: Iterable[nn.Module], costing: Costing
) -> Shortfall:
    """Return the nearest of the candidates that miss the budget, and what would do instead.

    `networks` are their stand-ins, in the same order. Nearest is the one whose largest ratio of
    figure to limit is smallest.
    """
    nearest = min(tried, key=lambda c: largest_ratio(c, costing.limits))
    verdicts = tuple(
        Verdict(limit=limit, figure=figure)
        for limit in costing.limits
        for figure in nearest.figures
        if figure.name == limit.metric
    )
    with ExitStack() as stack:
        paths = [stack.enter_context(as_shipped(network, costing)) for network in networks]
        found = what_would_do(
            paths, verdicts, costing.limits, costing.device, costing.precision,
            beside=costing.beside,
        )  # fmt: skip
    return Shortfall(parameters=nearest.parameters, verdicts=verdicts, would_do=found)


def infeasible(found: Shortfall, device: Device, *, given: bool) -> InfeasibleError:
    """Return the error that tells of it; `given` is a student that the user named."""
    parts = [
        f"{name_of(v.limit)} is limited to {amount(v.limit, v.limit.value)} and "
        f"{'it' if given else 'the smallest student'} needs {amount(v.limit, v.figure.value)}"
        for v in found.verdicts
        if v.limit.hard and not v.met
    ]
    subject = "the given student does not fit" if given else "no student fits"
    tail = ". Or leave student: out to have one found" if given else ""
    return InfeasibleError(
        f"{subject} {device.name}: {'; '.join(parts)}. {advice(found.would_do)}{tail}", found
    )


def what_would_do(
    paths: Sequence[Path], verdicts: Sequence[Verdict], limits: Sequence[Limit], device: Device,
    precision: str, *, beside: Sequence[SideFile],
) -> WouldDo:  # fmt: skip
    """Return the known device that an exported file would fit, and the limits that this one keeps.

    `verdicts` are those of the nearest file on `device`; the files `beside` it take storage too.
    """
    missed = [v for v in verdicts if v.limit.hard and not v.met]
    asked = [x for x in limits if x.hard and not _own(x, device)]
    elsewhere = None
    if not any(v.limit.metric == "accuracy" for v in missed):  # a device changes no decision
        elsewhere = next(
            (
                other.name
                for other in others(device)
                if other.runs(precision) and _fits_one(paths, beside, other, asked)
            ),
            None,
        )
    return WouldDo(device=elsewhere, limits=looser(missed, device))


def advice(found: WouldDo) -> str:
    """Say it in one sentence, without a full stop."""
    if found.limits:
        said = ", ".join(f"{name_of(x)}: {amount(x, x.value)}" for x in found.limits)
        verb = "lower" if all(x.metric == "accuracy" for x in found.limits) else "raise"
        limit = f"{verb} the limit to budget: {{{said}}}"
    else:
        limit = ""
    if found.device is not None:
        return f"This would do: device: {found.device}" + (f"; or {limit}" if limit else "")
    if limit:
        return f"No other known device would do: {limit}"
    return "No known device would do: make the examples smaller, or drop a limit"


def name_of(limit: Limit) -> str:
    """Return what a recipe calls the limit."""
    return _NAMES.get(limit.metric, limit.metric)


def amount(limit: Limit, value: float) -> str:
    """Write a value of the limit's quantity for people."""
    return format_quantity(value, _UNITS.get(limit.metric, "1"))


def largest_ratio(candidate: Candidate, limits: Sequence[Limit]) -> float:
    """Return the largest ratio of figure to hard limit: over 1 where one is missed."""
    values = {f.name: f.value for f in candidate.figures}
    ratios = [values[x.metric] / x.value for x in limits if x.hard and x.metric in values]
    return max(ratios, default=math.inf)


def _own(limit: Limit, device: Device) -> bool:
    return limit.source == f"device {device.name}"


def others(device: Device) -> list[Device]:
    """Return the shipped devices but for this one, that with the smallest memory first."""
    known = [load_device(name) for name in list_devices() if name not in (HOST, device.name)]
    return sorted(known, key=lambda d: (d.limits.free("ram_bytes"), d.limits.free("storage_bytes")))


def _fits_one(
    paths: Sequence[Path], beside: Sequence[SideFile], device: Device, asked: Sequence[Limit]
) -> bool:
    """Say whether a file keeps the device's own limits and what is asked, but for accuracy."""
    wanted = [x for x in asked if x.metric != "accuracy"] + list(device_limits(device))
    for path in paths:
        values = {f.name: f.value for f in graph_figures(path, device, beside=beside)}
        if all(x.met_by(values.get(x.metric, math.nan)) for x in wanted):
            return True
    return False


def looser(missed: Sequence[Verdict], device: Device) -> tuple[Limit, ...]:
    """Return the recipe's limits as they would do here; none where the device itself is short."""
    most = {x.metric: x.value for x in device_limits(device)}
    found = []
    for verdict in missed:
        value = _rounded(verdict)
        if value <= 0 or _own(verdict.limit, device):
            return ()
        if value > most.get(verdict.limit.metric, math.inf):
            return ()
        found.append(Limit(metric=verdict.limit.metric, value=value))
    return tuple(found)


def _rounded(verdict: Verdict) -> float:
    """Round a figure to two digits, or an accuracy to three decimals, away from its limit."""
    value = verdict.figure.value
    if verdict.limit.metric == "accuracy":
        return math.floor(value * 1000) / 1000
    if not math.isfinite(value) or value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.6g}")
