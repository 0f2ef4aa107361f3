"""Of the proof: where inputs stop, and what that makes of time and energy, read off the file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.devices import Device
from tutelage.devices.cost import estimate_energy, predict_latency
from tutelage.devices.profile import cpu_name
from tutelage.errors import DeviceError
from tutelage.export.artifact import OnnxModel, load_onnx
from tutelage.export.graph import GraphCosts, graph_costs
from tutelage.export.unroll import way, ways
from tutelage.measure.latency import Call, measure_latency, open_session
from tutelage.pipeline.material import Material
from tutelage.records import Measurement
from tutelage.teach.signals import Split

_BATCH = 256
_TIMED, _TIMING_S = 200, 1.0  # test examples, evenly spread, and seconds for each way


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """How a file with exits went through a split, one example after the other.

    `place` is the exit at which each stopped, as many as there are exits where it went to the end;
    `counted` is what each way costs.
    """

    path: Path
    logits: np.ndarray
    place: np.ndarray
    counted: tuple[GraphCosts, ...]

    @property
    def shares(self) -> list[float]:
        """The share of examples that went each way."""
        return [float((self.place == at).mean()) for at in range(len(self.counted))]

    @property
    def said(self) -> str:
        """The shares in words, for the figures that hang on them."""
        each = (f"{share:.0%} at exit {at + 1}" for at, share in enumerate(self.shares[:-1]))
        return f"mean over the test split, where {', '.join(each)} stop"


def went_through(path: Path, split: Split) -> Stopped | None:
    """Run a file over a split; None where it has no exits."""
    model = load_onnx(path)
    count = ways(model)
    if count == 1:
        return None
    loaded = OnnxModel(path)
    logits, place = [], []
    for start in range(0, split.count, _BATCH):
        index = torch.arange(start, min(start + _BATCH, split.count))
        for said, at in loaded.run_each(split.batch(index, 0).tensor.numpy()):
            logits.append(said)
            place.append(at)
    return Stopped(
        path=path, logits=np.concatenate(logits), place=np.concatenate(place),
        counted=tuple(graph_costs(way(model, at)) for at in range(count)),
    )  # fmt: skip


def on_device(
    figures: Sequence[Measurement], stopped: Stopped, device: Device
) -> list[Measurement]:
    """Return a device's figures with means over the test split.

    Latency stays that of the way to the end, since a limit on it holds for every input; beside it
    stands the mean. Energy becomes the mean.
    """
    shares = stopped.shares
    mean = float(np.dot(shares, [counted.macs for counted in stopped.counted]))
    found = [f for f in figures if f.name != "energy_j"]
    found.append(
        Measurement(name="macs_mean", value=mean, unit="MAC", kind="measured", where=stopped.said)
    )
    try:
        times = [predict_latency(counted.ops, device) for counted in stopped.counted]
    except DeviceError:
        return found
    spans = [t.spread or (t.value, t.value) for t in times]
    latency = dataclasses.replace(
        times[-1],
        name="latency_mean_s",
        value=float(np.dot(shares, [t.value for t in times])),
        spread=(float(np.dot(shares, [s[0] for s in spans])),
                float(np.dot(shares, [s[1] for s in spans]))),
        where=f"{times[-1].where}; {stopped.said}",
    )  # fmt: skip
    found.append(latency)
    if device.active_power_w is not None:
        found.append(dataclasses.replace(estimate_energy(latency, device), name="energy_j"))
    return found


def timed(stopped: Stopped, split: Split) -> tuple[Call, list[Measurement]]:
    """Time a file over test examples here; return a call that goes through them, and figures.

    `latency_s` is the median of examples that went to the end, and the mean that of the medians of
    each way, by how many went it: a mean of readings would be one of the machine's interruptions.
    """
    session = open_session(stopped.path, threads=1)
    name = session.get_inputs()[0].name

    def call_of(chosen: np.ndarray) -> Call:
        spread = np.linspace(0, len(chosen) - 1, min(len(chosen), _TIMED)).round().astype(int)
        inputs = split.batch(torch.from_numpy(chosen[spread]), 0).tensor.numpy()
        around = itertools.cycle([{name: inputs[i : i + 1]} for i in range(len(inputs))])
        return lambda: session.run(None, next(around))

    last = len(stopped.counted) - 1
    went = {at: np.flatnonzero(stopped.place == at) for at in range(last + 1)}
    times = {
        at: measure_latency(call_of(found), threads=1, budget_s=_TIMING_S).p50
        for at, found in went.items()
        if len(found)
    }
    slowest = times[max(times)]
    here = _here()
    mean = Measurement(
        name="latency_mean_s", unit="s", kind="measured", n=sum(t.n or 0 for t in times.values()),
        value=sum(len(went[at]) / len(stopped.place) * t.value for at, t in times.items()),
        where=f"medians of each way, {stopped.said}; {here}",
    )  # fmt: skip
    said = "examples that stop nowhere" if last in times else "examples that stop at the last exit"
    longest = dataclasses.replace(slowest, name="latency_s", where=f"{said}, {here}")
    return call_of(np.arange(split.count)), [mean, longest]


def named(figures: list[Measurement]) -> list[Measurement]:
    """Say of figures that were taken through a call what ran: they stand beside the teacher's."""
    told = f"{cpu_name()}, a Python function"
    return [
        dataclasses.replace(f, where=f.where.replace(told, _here())) if told in f.where else f
        for f in figures
    ]


def _here() -> str:
    return f"{cpu_name()}, onnxruntime {version('onnxruntime')}, 1 thread"


def exit_part(
    stopped: Stopped, chosen: dict[str, Any], material: Material, teacher: np.ndarray
) -> dict[str, Any]:
    """Return the proof's part about exits; `chosen` is what was decided on validation.

    `teacher` are its logits on test. Of each place to stop: the share of test examples, and how
    often they are right there, and as the teacher.
    """
    labels = material.data.test.labels
    said = stopped.logits.argmax(1)
    rows = []
    ends = f", after {chosen['ends']}" if chosen.get("ends") else ""
    names = [f"after {tap}" for tap in chosen["after"]] + [f"at the end{ends}"]
    for at, name in enumerate(names):
        here = stopped.place == at
        count = int(here.sum())
        right = None if labels is None or not count else float((said == labels)[here].mean())
        same = float((said == teacher.argmax(1))[here].mean()) if count else None
        rows.append(
            {
                "name": name,
                "count": count,
                "share": count / len(here),
                "accuracy": right,
                "agreement": same,
                "macs": stopped.counted[at].macs,
            }
        )
    return {**chosen, "test": rows}
