"""How well the latency of whole students is known before they are trained.

On another device a probe's calibration predicts it; on this machine the plan times an untrained
stand-in of the student, another network of the same structure, for half a second.

Probes this machine (or takes readings), draws students of random knobs from every family, exports
them as float32 and int8, and times each in blocks taken in turn. Reported: the mean absolute
percentage error of the prediction, Kendall's tau over all files and over pairs within 20 % of each
other, the share inside the 95 % interval; the same of the stand-ins that the plan times, all of
them before the first file; beside them a baseline that knows multiply-accumulates alone (a line of
least relative error through the same probe's readings), and the noise floor: how far two halves of
the blocks of the same file lie apart, and what two such halves would score. Run it on a quiet
machine. What was read stays in .work/readings.yaml.

python benchmarks/predictor.py [--students 30] [--minutes 3] [--threads 1] [--readings FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import HERE, command, machine, print_table, write_result
from scipy.stats import kendalltau

from tutelage.devices import host, predict_latency
from tutelage.devices.probe.graphs import graph
from tutelage.export.artifact import ArtifactMeta
from tutelage.export.graph import GraphCosts, graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8
from tutelage.files import write_atomically
from tutelage.measure.calibrate import Readings, calibrated, read_readings
from tutelage.measure.latency import prepare, time_calls
from tutelage.measure.probing import run_probe
from tutelage.plan.candidate import weigh
from tutelage.plan.costs import Costing, Precision
from tutelage.records import Limit
from tutelage.students.spec import FAMILIES, StudentSpec

_COLUMNS = {
    "timed as a stand-in": "stand_in_s", "calibrated": "predicted_s", "macs only": "macs_only_s",
}  # fmt: skip
NEAR = 0.2  # files within this share of each other are ranked among themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One exported student, and the seconds that the plan read of its stand-in."""

    name: str
    path: Path
    costs: GraphCosts
    stand_in_s: float


def main() -> None:
    """Probe, write the students, time them in turn, compare, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int, default=30, help="each in float32 and int8")
    parser.add_argument("--minutes", type=float, default=3.0, help="of probing")
    parser.add_argument("--graphs", type=int, default=200, help="that are probed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--readings", type=Path, help="of an earlier probe of this machine")
    parser.add_argument("--blocks", type=int, default=20, help="of every file, in turn")
    parser.add_argument("--block-s", type=float, default=0.05, help="seconds a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "predictor.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    readings = (
        read_readings(options.readings)
        if options.readings
        else run_probe(options.minutes, options.threads, options.graphs)
    )
    write_atomically(HERE / ".work" / "readings.yaml", readings.model_dump_json())
    device = calibrated(readings, "probed", host().limits)
    with tempfile.TemporaryDirectory() as folder:
        files = list(_files(options.students, options.seed, Path(folder)))
        blocks = _in_turn(files, options)
    line = _line(readings)
    rows = []
    for file, times in zip(files, blocks, strict=True):
        predicted = predict_latency(file.costs.ops, device)
        low, high = predicted.spread or (predicted.value, predicted.value)
        measured = float(np.median(times))
        rows.append(
            {
                "file": file.name,
                "macs": file.costs.macs,
                "measured_s": measured,
                "predicted_s": predicted.value,
                "interval_s": [low, high],
                "inside": low <= measured <= high,
                "macs_only_s": float(line[0] + line[1] * file.costs.macs),
                "stand_in_s": file.stand_in_s,
                "halves_s": [float(np.median(times[i::2])) for i in (0, 1)],
            }
        )
    summary = _summary(rows)
    print_table(("", "MAPE", "tau", "tau near"), _cells(summary))
    print(f"inside the interval: {summary['inside']:.0%} of {len(rows)} files; "
          f"A/A noise floor: {summary['noise_floor']:.1%}, "
          f"tau near of two halves: {summary['tau_near_of_halves']}")  # fmt: skip
    assert device.calibration is not None
    write_result(
        options.out,
        {
            "command": command(),
            "machine": machine(("onnxruntime", "onnx")),
            "probe": readings.model_dump(mode="json", exclude={"readings"}),
            "interval": list(device.calibration.interval.bounds),
            "notes": list(device.calibration.notes),
            "summary": summary,
            "files": rows,
        },
    )


def _files(count: int, seed: int, folder: Path) -> Iterator[File]:
    """Write students of random knobs, the families in turn, as float32 and int8."""
    random = np.random.default_rng(seed)
    families = itertools.cycle(name for name in FAMILIES if FAMILIES[name].structures)
    for number, name in zip(range(count), families, strict=False):
        torch.manual_seed(number)
        shape, given = _data(name, random)
        family = FAMILIES[name]
        structure = family.structures[random.integers(len(family.structures))]
        assert family.sized is not None
        # An encoder has four numbers a token for each of the width: its narrow ones are in use.
        widest = 40 if name != "encoder" else 16
        width = round(4 * (widest / 4) ** random.random())
        spec = StudentSpec(family=name, knobs=family.sized(structure, width, given))
        tokens = name in ("encoder", "textconv")
        meta = ArtifactMeta(
            task="text" if tokens else "vision", classes=("a", "b"), shape=shape, mean=(0.0,),
            std=(1.0,), version="0", dtype="int64" if tokens else "float32",
        )  # fmt: skip
        first = export_onnx(spec.build().eval(), shape, folder / f"{number}.onnx", meta=meta)
        example = random.standard_normal((4, *shape)).astype(np.float32)
        if tokens:
            example = random.integers(1, given["vocabulary"], (4, *shape))
        second = quantize_int8(first, folder / f"{number}-int8.onnx", example)
        both: tuple[tuple[Precision, Path], ...] = (("float32", first), ("int8", second))
        for precision, path in both:
            label = f"{number} {name} {dataclasses.asdict(structure)} width {width} {precision}"
            yield File(
                name=label, path=path, costs=graph_costs(path),
                stand_in_s=_stand_in_s(spec, precision, meta),
            )  # fmt: skip


def _stand_in_s(spec: StudentSpec, precision: Precision, meta: ArtifactMeta) -> float:
    """Return what the plan says of a student's latency where the device is this machine."""
    limit = Limit(metric="latency_s", value=1.0, source="benchmark")
    costing = Costing(device=host(), limits=(limit,), precision=precision, meta=meta)
    return weigh(spec, costing).figure("latency_s")


def _data(family: str, random: np.random.Generator) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Draw the shape of one example, and the knobs that data decides."""
    classes = int(random.integers(2, 20))
    if family == "convnet":
        side, channels = int(random.choice([16, 24, 28, 32, 40])), int(random.choice([1, 3]))
        return (channels, side, side), {"image": (channels, side, side), "classes": classes}
    if family in ("convnet1d", "gru"):
        channels, length = int(random.integers(1, 9)), int(random.integers(48, 400))
        knobs = {"channels": channels, "length": length, "classes": classes}
        return (channels, length), knobs
    length = int(random.integers(24, 128))
    return (length,), {"vocabulary": 1_000, "length": length, "pad": 0, "classes": classes}


def _in_turn(files: list[File], options: argparse.Namespace) -> list[np.ndarray]:
    """Return the median seconds a call of each block of each file; the order changes."""
    calls = [prepare(file.path, options.threads)[0] for file in files]
    blocks: list[list[float]] = [[] for _ in files]
    random = np.random.default_rng(0)
    for _ in range(options.blocks):
        for place in random.permutation(len(files)):
            times = time_calls(calls[place], 5, 2_000, options.block_s)
            blocks[place].append(float(np.median(times)))
    return [np.array(times) for times in blocks]


def _line(readings: Readings) -> np.ndarray:
    """Fit seconds = a + b x MACs to the probe's readings, by least relative error."""
    macs = []
    for reading in readings.readings:
        _, model = graph(int(reading.graph.partition("-")[0]))
        macs.append(graph_costs(onnx.load_model_from_string(model)).macs)
    times = np.array([reading.time_s for reading in readings.readings])
    table = np.stack([np.ones(len(macs)), np.array(macs, dtype=float)], axis=1)
    return np.linalg.lstsq(table / times[:, None], np.ones(len(macs)), rcond=None)[0]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured = np.array([row["measured_s"] for row in rows])
    halves = np.array([row["halves_s"] for row in rows]).T
    columns = {who: np.array([row[key] for row in rows]) for who, key in _COLUMNS.items()}
    found: dict[str, Any] = {
        "files": len(rows),
        "inside": float(np.mean([row["inside"] for row in rows])),
        "noise_floor": float(np.median(np.abs(halves[0] / halves[1] - 1))),
    }
    for who, said in columns.items():
        found[who] = {
            "mape": float(np.abs(said / measured - 1).mean()),
            "median_ape": float(np.median(np.abs(said / measured - 1))),
            "tau": float(kendalltau(said, measured)[0]),
            "tau_near": _tau_near(said, measured),
        }
    found["tau_near_of_halves"] = _tau_near(*halves)
    return found


def _tau_near(said: np.ndarray, measured: np.ndarray) -> float | None:
    """Return Kendall's tau over the pairs of files whose latencies are within 20 %."""
    agree = []
    for i, j in itertools.combinations(range(len(said)), 2):
        if abs(np.log(measured[i] / measured[j])) < np.log(1 + NEAR):
            agree.append(np.sign(said[i] - said[j]) * np.sign(measured[i] - measured[j]))
    return float(np.mean(agree)) if agree else None


def _cells(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    cells = []
    for who in _COLUMNS:
        row = summary[who]
        near = "no pair" if row["tau_near"] is None else f"{row['tau_near']:.3f}"
        cells.append((who, f"{row['mape']:.1%}", f"{row['tau']:.3f}", near))
    return cells


if __name__ == "__main__":
    main()
