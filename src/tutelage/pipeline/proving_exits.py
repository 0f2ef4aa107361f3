"""Of the proof: where inputs stop, and what that makes of time and energy, read off the file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.devices import Device
from tutelage.devices.cost import estimate_energy, predict_latency
from tutelage.errors import DeviceError
from tutelage.export.artifact import OnnxModel, load_onnx
from tutelage.export.graph import GraphCosts, graph_costs
from tutelage.export.unroll import way, ways
from tutelage.measure.latency import Call, measure_latency, open_session, time_calls
from tutelage.pipeline.material import Material
from tutelage.records import Measurement
from tutelage.teach.signals import Split

_BATCH = 256
_TIMED = 200  # test examples


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

    `latency_s` is the median of the examples that went to the end (of all, where none did).
    """
    session = open_session(stopped.path, threads=1)
    name = session.get_inputs()[0].name
    index = torch.arange(min(_TIMED, split.count))
    inputs = split.batch(index, 0).tensor.numpy()
    feeds = [{name: inputs[i : i + 1]} for i in range(len(inputs))]
    around = itertools.cycle(feeds)

    def call() -> object:
        return session.run(None, next(around))

    place = stopped.place[: len(feeds)]
    long = [feed for feed, at in zip(feeds, place, strict=True) if at == len(stopped.counted) - 1]
    whole = itertools.cycle(long or feeds)
    worst = measure_latency(lambda: session.run(None, next(whole)), threads=1).p50
    repeats = len(feeds) * 3
    readings = time_calls(call, 10, repeats, 3.0)
    mean = Measurement(
        name="latency_mean_s", value=float(np.mean(readings)), unit="s", kind="measured",
        n=len(readings), where=f"{len(feeds)} test examples in turn, {worst.where}",
    )  # fmt: skip
    told = f"examples that stop nowhere, {worst.where}"
    return call, [mean, dataclasses.replace(worst, name="latency_s", where=told)]


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
    names = [f"after {tap}" for tap in chosen["after"]] + ["at the end"]
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
