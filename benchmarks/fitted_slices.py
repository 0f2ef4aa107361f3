"""A slice of the teacher to start with: as it was cut, or with its layers fitted to the teacher's.

python benchmarks/fitted_slices.py [--students wide narrow small shallow] [--epochs 0 1 3 10]
                                   [--seeds 0 1 2 3 4] [--ways fresh cut fitted scaled]
python benchmarks/fitted_slices.py --table

10,000 images of Fashion-MNIST and benchmarks/teachers/fashion-mnist (widths 32, 64, 128, two blocks
a stage); students of the same depths, `shallow` of half. Each is taught the task's own losses in
whole schedules of so
many epochs; at 0 it is as it starts. Ways:

fresh         fresh weights
cut           the teacher's channels, norms with the slice's own statistics
fitted        the same channels, layers fitted (`students/slices/fitting.py`)
fitted, slow  the same, at a third of the rate
scaled        fitted, then filters scaled (`students/slices/rescale.py`), as slices are by default

Seconds are the processor's, with cutting and fitting, without asking the teacher. Weights are
chosen on validation, the test split is read once, by the network in torch. Resumable; lines go to
benchmarks/results/fitted_slices.json. Rows taught by DIST alone, the default before, are in
fitted_slices_dist.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from typing import Any
from unittest import mock

import torch
from common import HERE, TEACHER, add_row, apart, rows_of, run_or_table
from warm_starts import Lessons, recipe_of

from tutelage.pipeline.learning import distill
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import some_examples
from tutelage.pipeline.planning import Chosen
from tutelage.progress import Silent
from tutelage.run import Run
from tutelage.students.slices import convnet
from tutelage.students.slices.channels import recalibrated
from tutelage.students.slices.convnet import slice_convnet
from tutelage.students.spec import StudentSpec, load, sliced_from
from tutelage.train.distill import decisions

RESULTS = HERE / "results" / "fitted_slices.json"
WORK = HERE / ".work" / "fitted_slices"
STUDENTS = {
    "wide": {"widths": [18, 28, 40], "depths": [2, 2, 2]},
    "narrow": {"widths": [8, 16, 32], "depths": [2, 2, 2]},
    "small": {"widths": [4, 8, 16], "depths": [2, 2, 2]},
    "shallow": {"widths": [12, 24, 48], "depths": [1, 1, 1]},
}
WAYS = ("fresh", "cut", "fitted", "fitted, slow", "scaled")
_EXAMPLES = {"cut": 256, "fitted": 1_024, "scaled": 1_024}


def start(way: str, spec: StudentSpec, lessons: Lessons) -> torch.nn.Module:
    """Return the student as it starts."""
    if way == "fresh":
        return spec.build()
    whole: Any = load(TEACHER)
    kind = way.split(",")[0]
    inputs = some_examples(lessons.material, _EXAMPLES[kind])
    if kind == "scaled":
        return sliced_from(whole.eval(), spec, inputs)
    if kind == "fitted":
        with mock.patch.object(convnet, "rescale", lambda _: None):
            return sliced_from(whole.eval(), spec, inputs)
    knobs: Any = spec.knobs
    return recalibrated(slice_convnet(whole.eval(), knobs, inputs), inputs)


def learn(lessons: Lessons, student: str, way: str, epochs: int) -> dict[str, Any]:
    """Teach one student; return its figures."""
    rate = recipe_of("fashion", lessons.seed).distill.rate * (1 / 3 if "slow" in way else 1)
    changes = {"epochs": max(1, epochs), "rate": rate}
    recipe = with_usual(
        recipe_of("fashion", lessons.seed, **changes), "classes", lessons.material.task, 10
    )
    knobs = {"family": "convnet", **STUDENTS[student], **lessons.material.knobs}
    spec = StudentSpec.from_json(knobs)
    with Run(WORK / f"{lessons.seed}") as run:
        shutil.rmtree(run.file("checkpoints"), ignore_errors=True)
        taught = lessons.taught(recipe, run)
        started = time.process_time()
        torch.manual_seed(lessons.seed)
        network = start(way, spec, lessons)
        if epochs:
            chosen = Chosen(
                spec=spec, network=spec.build(), warm=None, weights=dict(network.state_dict()),
                parameters=sum(p.numel() for p in network.parameters()),
            )  # fmt: skip
            network = distill(recipe, lessons.material, taught, chosen, run, Silent()).network
        spent = time.process_time() - started
    network.eval()
    splits = {"validation": lessons.material.validation, "test": lessons.material.test}
    labels = {"validation": lessons.material.data.validation, "test": lessons.material.data.test}
    said = {name: decisions(network, part).argmax(-1).numpy() for name, part in splits.items()}
    return {
        "student": student, "way": way, "epochs": epochs, "seed": lessons.seed,
        **{name: float((said[name] == labels[name].labels).mean()) for name in said},
        "cpu_s": spent, "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for seed in options.seeds:
        lessons = Lessons("fashion", seed)
        for student in options.students:
            for epochs in options.epochs:
                for way in options.ways:
                    key = (student, way, epochs, seed)
                    if (not epochs and way in ("fresh", "fitted, slow")) or any(
                        tuple(r[k] for k in ("student", "way", "epochs", "seed")) == key
                        for r in rows_of(RESULTS)
                    ):
                        continue
                    row = learn(lessons, student, way, epochs)
                    add_row(RESULTS, row)
                    print(json.dumps(row), flush=True)


def table() -> None:
    """Print a line a student, schedule and way, with differences paired by seed."""
    print("| student | epochs | way | seeds | test | to fresh | to cut | to fitted | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = rows_of(RESULTS)
    for student, epochs in dict.fromkeys((r["student"], r["epochs"]) for r in rows):
        mine = [r for r in rows if (r["student"], r["epochs"]) == (student, epochs)]
        tests = {
            way: {r["seed"]: r["test"] for r in mine if r["way"] == way} for way in WAYS
        }  # fmt: skip
        for way, own in tests.items():
            if own:
                to = [apart(own, tests[other]) for other in ("fresh", "cut", "fitted")]
                spent = statistics.mean(r["cpu_s"] for r in mine if r["way"] == way)
                print(
                    f"| {student} | {epochs} | {way} | {len(own)} "
                    f"| {statistics.mean(own.values()):.2%} | {' | '.join(to)} | {spent:.0f} |"
                )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--students", nargs="*", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--epochs", nargs="*", type=int, default=[0, 1, 3, 10])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
