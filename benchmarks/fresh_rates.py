"""The learning rate of students with fresh weights, by family: what the default is to be.

python benchmarks/fresh_rates.py [--set texts images leaves] [--students textconv ...]
                                 [--rates 0.003 ...] [--seeds 0 1 2 3 4] [--epochs 6]
python benchmarks/fresh_rates.py --table

Every row is one distillation with the product's losses of that task, the best epoch chosen on
validation, the test split read once, by the torch network. `texts` are those of budgets.py (a third
of the sections, 64 tokens, MiniLM fitted with seed 0), `images` 10,000 of Fashion-MNIST with the
committed teacher, `leaves` OSULeaf with a fitted `resnet1d`. Seeds are of first weights, order and
views. Resumable; lines go to benchmarks/results/fresh_rates.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from budget_sets import SETS
from common import HERE, add_row, apart, interval, rows_of, run_or_table
from torch import nn

from tutelage.pipeline.checking import fixed_spec
from tutelage.pipeline.fitting import fit_teacher
from tutelage.pipeline.learning import distill
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import Chosen
from tutelage.pipeline.teaching import teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as specs
from tutelage.train.distill import decisions

RESULTS = HERE / "results" / "fresh_rates.json"
WORK = HERE / ".work" / "fresh_rates"
USUAL = 0.01
STUDENTS: dict[str, dict[str, dict[str, Any]]] = {
    "texts": {
        f"encoder of {hidden}": {
            "family": "encoder", "layers": layers, "hidden": hidden, "heads": -(-hidden // 32),
            "inner": 2 * hidden, "embedding": max(10, hidden // 4),
        }
        for layers, hidden in ((2, 20), (2, 64), (2, 160), (4, 128), (6, 384))
    } | {
        "textconv": {"family": "textconv", "embedding": 78, "kernel": 5},
    },
    "images": {
        "vit": {"family": "vit", "patch": 4, "layers": 3, "hidden": 48, "heads": 3, "inner": 96},
        "convnet": {"family": "convnet", "widths": [8, 16, 32], "depths": [1, 1, 1]},
    },
    "leaves": {
        "gru": {"family": "gru", "hidden": 32, "window": 18},
        "convnet": {"family": "convnet1d", "widths": [12, 24, 24], "depths": [1, 1, 1]},
    },
}  # fmt: skip
SET_OF = {"texts": "texts", "images": "fashion", "leaves": "leaves"}
EPOCHS = {"texts": 6, "images": 10, "leaves": 300}


def recipe_of(which: str, student: str, rate: float, seed: int, epochs: int) -> Recipe:
    """Return the recipe of one row."""
    chosen = SETS[SET_OF[which]]
    given = {"spec": STUDENTS[which][student], "start": "fresh"}
    whole = chosen.of(0, seed, given).model_dump(exclude_unset=True, mode="json")
    whole["distill"] = {"epochs": epochs, "rate": rate}
    return Recipe.parse(whole)


def teacher_of(which: str, material: Material) -> nn.Module:
    """Return the one teacher of a set; that of texts is fitted once and kept."""
    recipe = recipe_of(which, next(iter(STUDENTS[which])), USUAL, 0, 1)
    if not recipe.teacher.fit:
        return specs.load(Path(str(recipe.teacher.source)))
    with Run(WORK / which / "teacher") as run:
        return fit_teacher(recipe, material, run, Silent())


def row_of(recipe: Recipe, material: Material, teacher: nn.Module, folder: Path) -> dict[str, Any]:
    """Teach one student in a run directory and test it."""
    recipe = with_usual(recipe, material.decides, material.task, len(material.classes))
    spec = fixed_spec(dict(recipe.student.spec or {}), material)
    torch.manual_seed(recipe.seed)
    network = spec.build()
    count = sum(p.numel() for p in network.parameters())
    with Run(folder) as run:
        taught = teach(recipe, material, run, Silent(), trust_code=False, module=teacher)
        began = time.process_time()
        chosen = Chosen(spec=spec, network=network, parameters=count, warm=None)
        learned = distill(recipe, material, taught, chosen, run, Silent())
        seconds = time.process_time() - began
    history = learned.result["history"]
    right = decisions(learned.network, material.test).argmax(-1).numpy()
    return {
        "parameters": count,
        "validation": max(history["figure"]),
        "best_epoch": history["best_epoch"],
        "test": float((right == material.data.test.labels).mean()),
        "cpu_s": seconds,
    }


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for which in options.set:
        material = SETS[SET_OF[which]].material(0)
        teacher = teacher_of(which, material)
        for seed in options.seeds:
            for student in options.students or STUDENTS[which]:
                for rate in options.rates if student in STUDENTS[which] else ():
                    epochs = options.epochs or EPOCHS[which]
                    name = {
                        "set": which, "student": student, "rate": rate, "seed": seed,
                        "epochs": epochs,
                    }  # fmt: skip
                    if any(name.items() <= row.items() for row in rows_of(RESULTS)):
                        continue
                    recipe = recipe_of(which, student, rate, seed, epochs)
                    row = row_of(recipe, material, teacher, WORK / which / str(seed))
                    add_row(RESULTS, name | row)
                    print(json.dumps(name | row), flush=True)


def table() -> None:
    """Print a line a student, length and rate, beside the usual rate, paired by seed."""
    rows = rows_of(RESULTS)
    print("| set | student | epochs | rate | seeds | test | to 0.01 | processor s |")
    print("|---|---|---|---|---|---|---|---|")
    for which, student, epochs, rate in sorted(
        {(r["set"], r["student"], r["epochs"], r["rate"]) for r in rows}
    ):
        mine, usual = (
            {r["seed"]: r for r in rows if [r[k] for k in ("set", "student", "epochs", "rate")]
             == [which, student, epochs, x]}
            for x in (rate, USUAL)
        )  # fmt: skip
        tests, others = ({s: r["test"] for s, r in these.items()} for these in (mine, usual))
        print(
            f"| {which} | {student} | {epochs} | {rate:g} | {len(mine)} "
            f"| {interval([100 * x for x in tests.values()])} | {apart(tests, others)} "
            f"| {statistics.mean(r['cpu_s'] for r in mine.values()):.0f} |"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--set", nargs="*", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--students", nargs="*", help="some of them; all of the set by default")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.03, 0.01, 0.003, 0.001])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="6 of texts, 10 of images, 300 of leaves")


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
