"""What a student would cost on a device, before it is trained: T0 and T1."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tutelage.devices import HOST, Device
from tutelage.export.artifact import ArtifactMeta
from tutelage.export.graph import GraphCosts, graph_costs
from tutelage.export.half import write_float16
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8
from tutelage.measure.costs import figures_of
from tutelage.measure.latency import measure_latency
from tutelage.records import Limit, Measurement, SideFile
from tutelage.students.exits import ExitingNetwork, fresh_exits
from tutelage.students.taps import describe_taps, find_taps

_TIMING_S, _TIMINGS = 0.5, 2_000  # whichever is over first: tiny networks take 10 us a call
Precision = Literal["int8", "float16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costing:
    """What is asked of every candidate alike.

    With `exits`, early decisions ship as well: behind `taps`, where these are given.
    """

    device: Device
    limits: tuple[Limit, ...]
    precision: Precision
    meta: ArtifactMeta
    beside: tuple[SideFile, ...] = ()
    exits: bool = False
    taps: tuple[str, ...] | None = None

    def key(self) -> list[Any]:
        """Return all of it as plain JSON data, for the hash of what is found by it."""
        return [
            self.meta.to_json(),
            self.device.model_dump(mode="json"),
            [asdict(limit) for limit in self.limits],
            self.precision,
            *(asdict(file) for file in self.beside),
            *(["exits", *(self.taps or ())] if self.exits else []),
        ]


def cost_of(network: nn.Module, costing: Costing) -> tuple[GraphCosts, tuple[Measurement, ...]]:
    """Export the untrained network as it would ship; return what its graph counts, and its figures.

    Sizes, operations and memory do not depend on the weights, so these are exact up to the few
    bytes by which equal scales merge. Raises `ExportError` when it cannot be exported.
    """
    with as_shipped(network, costing) as path:
        counted = graph_costs(path)
        timed = (_latency_here(path),) if needs_timing(costing) else ()
    return counted, (*figures_on(counted, costing), *timed)


def figures_on(counted: GraphCosts, costing: Costing) -> tuple[Measurement, ...]:
    """Return the predicted figures of a counted graph on the device; nothing is exported or run."""
    return figures_of(
        counted, costing.device, exact="predicted", beside=costing.beside,
        where="counted on an untrained stand-in",
    )  # fmt: skip


def needs_timing(costing: Costing) -> bool:
    """Say whether a limit is on the latency of this machine, which is timed and not predicted."""
    limited = any(limit.metric == "latency_s" for limit in costing.limits)
    return limited and costing.device.name == HOST


@contextmanager
def as_shipped(network: nn.Module, costing: Costing) -> Iterator[Path]:
    """Export the untrained network as it would ship, to a file that is gone afterwards."""
    shape = costing.meta.shape
    if costing.exits:
        network = _with_exits(network, costing.meta, costing.taps)
    with tempfile.TemporaryDirectory(prefix="tutelage-plan-") as folder:
        path = Path(folder) / "float.onnx"
        export_onnx(network, shape, path, meta=costing.meta)
        if costing.precision == "int8":
            draw = np.random.default_rng(0)
            example = draw.standard_normal((2, *shape), dtype=np.float32)
            if costing.meta.dtype == "int64":
                example = np.zeros((2, *shape), np.int64)
            path = quantize_int8(path, Path(folder) / "int8.onnx", example)
        elif costing.precision == "float16":
            write_float16(path, path)
        yield path


def _with_exits(network: nn.Module, meta: ArtifactMeta, paths: tuple[str, ...] | None) -> nn.Module:
    """Put untrained exits behind the network's taps; a network with fewer than two has none.

    Its taps are those at `paths`, if it has these; else they are found.
    """
    dtype = torch.int64 if meta.dtype == "int64" else torch.float32
    example = torch.zeros(2, *meta.shape, dtype=dtype)
    if paths is not None and dict(network.named_modules()).keys() >= {*paths}:
        taps = describe_taps(network, example, paths)
    else:
        taps = find_taps(network, example)
    exits = fresh_exits(taps, len(meta.classes))
    if not exits.taps:
        return network
    for branch in exits.branches:
        shake(branch)
    return ExitingNetwork(network, exits).eval()


def shake(network: nn.Module) -> None:
    """Give constants values as after training: equal ones would merge, and shrink the file."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
    with torch.no_grad():
        for parameter in network.parameters():
            if (parameter == parameter.flatten()[:1]).all():
                parameter.add_(torch.rand_like(parameter) - 0.5)


def _latency_here(path: Path) -> Measurement:
    """Time the untrained stand-in on this machine: the trained one will run the same operators."""
    p50 = measure_latency(path, budget_s=_TIMING_S, repeats=_TIMINGS).p50
    return replace(
        p50, name="latency_s", kind="predicted", where=f"untrained stand-in, {p50.where}"
    )


def missed_limits(figures: tuple[Measurement, ...], limits: tuple[Limit, ...]) -> tuple[str, ...]:
    """Name the hard limits that the figures do not keep; one without a figure is not judged."""
    values = {figure.name: figure.value for figure in figures}
    return tuple(
        limit.metric
        for limit in limits
        if limit.hard and limit.metric in values and not limit.met_by(values[limit.metric])
    )
