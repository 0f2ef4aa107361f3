"""A limit changes: what the student of the last budget saves as the start of the next.

python benchmarks/warm_starts.py [--sets fashion digits OSULeaf] [--seeds 0 1 2 3 4]
python benchmarks/warm_starts.py --table

A wide student is taught fresh for all epochs, as for a first budget. Then a narrower one of the
same depths, `near` (about 0.85 of its channels, as after a limit was missed by little) or `far`
(half of them), is taught in these ways: fresh for all epochs; fresh for a quarter of them; from a
slice of the wide student for a quarter, at the usual rate and at a third of it, and for a half.
Same signals, views, losses (the task's own) and batch. Weights are chosen on validation, the test
split is read once, by the network in torch. `fashion` is 10,000 images of Fashion-MNIST and
benchmarks/teachers/fashion-mnist; digits and OSULeaf fit a teacher first. Resumable by set, seed
and student; lines go to benchmarks/results/warm_starts.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from typing import Any

import torch
from common import (
    FASHION_MNIST,
    HERE,
    TEACHER,
    add_row,
    apart,
    fashion_mnist,
    rows_of,
    run_or_table,
)

from tutelage.files import read_tensors, write_tensors
from tutelage.pipeline.learning import distill
from tutelage.pipeline.lessons import epochs_for, with_usual
from tutelage.pipeline.material import Material, material_of, read_material, some_examples
from tutelage.pipeline.planning import Chosen
from tutelage.pipeline.teaching import Taught, teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.spec import StudentSpec, sliced_from
from tutelage.train.distill import decisions

RESULTS = HERE / "results" / "warm_starts.json"
WORK = HERE / ".work" / "warm_starts"
_SERIES = HERE / ".work" / "series" / "data"
_PLAIN = {"family": "convnet", "depths": [2, 2, 2], "block": "plain"}
SETS: dict[str, dict[str, Any]] = {
    "fashion": {
        "recipe": {
            "data": {"train": FASHION_MNIST}, "teacher": {"source": str(TEACHER)},
            "augment": {"views": 4, "flip": True, "shift": 2}, "distill": {"epochs": 12},
        },
        "spec": _PLAIN, "wide": [12, 18, 28], "near": [10, 16, 24], "far": [6, 10, 14],
    },
    "digits": {
        "recipe": {
            "data": {"train": "digits"}, "teacher": {"fit": True}, "distill": {"epochs": 60},
        },
        "spec": _PLAIN, "wide": [8, 12, 18], "near": [7, 10, 15], "far": [4, 6, 9],
    },
    "OSULeaf": {
        "recipe": {
            "task": "series", "teacher": {"fit": True},
            "data": {
                "train": str(_SERIES / "OSULeaf" / "OSULeaf_TRAIN.ts"),
                "test": str(_SERIES / "OSULeaf" / "OSULeaf_TEST.ts"),
            },
        },
        "spec": {
            "family": "convnet1d", "depths": [1, 1, 1], "block": "plain", "kernel": 9,
            "stem_stride": 4,
        },
        "wide": [14, 20, 32], "near": [12, 18, 26], "far": [8, 10, 16],
    },
}  # fmt: skip
# How a narrower student is taught: from the wide one, share of the epochs, share of the rate.
WAYS: dict[str, tuple[bool, float, float]] = {
    "fresh": (False, 1.0, 1.0),
    "fresh, quarter": (False, 0.25, 1.0),
    "slice, quarter": (True, 0.25, 1.0),
    "slice, quarter, third of the rate": (True, 0.25, 1 / 3),
    "slice, half": (True, 0.5, 1.0),
}


def recipe_of(which: str, seed: int, **distill: Any) -> Recipe:
    """Return the recipe of a set."""
    given = {**SETS[which]["recipe"], "seed": seed, "threads": 1}
    return Recipe.parse({**given, "distill": {**given.get("distill", {}), **distill}})


class Lessons:
    """The lessons of one set and seed: one teacher, its answers, and students one by one."""

    def __init__(self, which: str, seed: int) -> None:
        self.which, self.seed = which, seed
        recipe = recipe_of(which, seed)
        if which == "fashion":
            base = fashion_mnist(FASHION_MNIST, examples=10_000, flip=True, shift=2, views=4)
            self.material: Material = material_of(base.task, base.data, recipe)
        else:
            self.material = read_material(recipe)
        self.folder = WORK / f"{which}-{seed}"
        self.epochs = epochs_for(recipe, self.material.train.count)

    def taught(self, recipe: Recipe, run: Run) -> Taught:
        """Return the teacher with its answers, fitted and asked once."""
        return teach(recipe, self.material, run, Silent(), trust_code=False)

    def learn(self, width: str, way: str) -> dict[str, Any]:
        """Teach one student; return its figures."""
        warm, share, rate = WAYS[way]
        task, size = self.material.task, SETS[self.which]
        recipe = recipe_of(self.which, self.seed)
        changes = {"epochs": max(1, round(share * self.epochs)), "rate": rate * recipe.distill.rate}
        recipe = with_usual(recipe_of(self.which, self.seed, **changes), "classes", task, 10)
        spec = StudentSpec.from_json({**size["spec"], **self.material.knobs, "widths": size[width]})
        with Run(self.folder) as run:
            shutil.rmtree(run.file("checkpoints"), ignore_errors=True)
            taught = self.taught(recipe, run)
            started = time.process_time()
            torch.manual_seed(self.seed)
            network = spec.build()
            weights = None
            if warm:
                whole = read_tensors(self.folder / "wide.safetensors")[0]
                wide = StudentSpec.from_json(
                    {**size["spec"], **self.material.knobs, "widths": size["wide"]}
                ).build()
                wide.load_state_dict(whole)
                small = sliced_from(wide.eval(), spec, some_examples(self.material))
                weights = dict(small.state_dict())
            count = sum(p.numel() for p in network.parameters())
            chosen = Chosen(
                spec=spec, network=network, parameters=count, warm=None, weights=weights
            )  # fmt: skip
            learned = distill(recipe, self.material, taught, chosen, run, Silent())
            spent = time.process_time() - started
        if width == "wide":
            write_tensors(self.folder / "wide.safetensors", learned.network.state_dict())
        history = learned.result["history"]
        said = decisions(learned.network, self.material.test).argmax(-1).numpy()
        return {
            "set": self.which, "seed": self.seed, "student": width, "way": way,
            "test": float((said == self.material.data.test.labels).mean()),
            "validation": history["figure"][history["best_epoch"]],
            "epochs": learned.result["epochs"], "rate": learned.result["rate"],
            "cpu_s": spent, "parameters": count,
        }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for which in options.sets:
        for seed in options.seeds:
            lessons = None
            for width, way in (
                ("wide", "fresh"), *((w, way) for w in ("near", "far") for way in WAYS)
            ):  # fmt: skip
                key = (which, seed, width, way)
                if any(
                    (r["set"], r["seed"], r["student"], r["way"]) == key for r in rows_of(RESULTS)
                ):
                    continue
                lessons = lessons or Lessons(which, seed)
                row = lessons.learn(width, way)
                add_row(RESULTS, row)
                print(json.dumps(row), flush=True)


def table() -> None:
    """Print a line a set, student and way, with differences to fresh students paired by seed."""
    print("| set | student | way | seeds | epochs | test | to fresh | to fresh, quarter | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for which in SETS:
        mine = [r for r in rows_of(RESULTS) if r["set"] == which]
        for width in ("wide", "near", "far"):
            tests: dict[str, dict[int, float]] = {}
            for r in (r for r in mine if r["student"] == width):
                tests.setdefault(r["way"], {})[r["seed"]] = r["test"]
            for way, own in tests.items():
                some = [r for r in mine if (r["student"], r["way"]) == (width, way)]
                to = [apart(own, tests.get(other, {})) for other in ("fresh", "fresh, quarter")]
                print(
                    f"| {which} | {width} | {way} | {len(own)} | {some[0]['epochs']} "
                    f"| {statistics.mean(own.values()):.2%} | {to[0]} | {to[1]} "
                    f"| {statistics.mean(r['cpu_s'] for r in some):.0f} |"
                )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
