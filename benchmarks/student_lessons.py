"""Losses and learning rate, by student: what the defaults are to be.

python benchmarks/student_lessons.py [--set texts mails images leaves] [--students textconv ...]
                                     [--losses kd ...] [--rates 0.003 ...] [--seeds 0 1 2 3 4]
                                     [--epochs 6]
python benchmarks/student_lessons.py --table

Every row is one distillation, the best epoch chosen on validation, the test split read once, by the
torch network. `usual` losses and rates are the product's own. `texts` are those of budgets.py (a
third of the sections, 64 tokens, MiniLM fitted with seed 0), `mails` a third of SpamAssassin's
likewise, `images` 10,000 of Fashion-MNIST with the committed teacher, `leaves` OSULeaf with a
fitted `resnet1d`. A `slice` begins with the teacher's weights, others fresh. Seeds are of first
weights, order and views. Resumable; lines go to benchmarks/results/student_lessons.json.
"""

from __future__ import annotations

import argparse
import itertools
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
from tutelage.pipeline.inheriting import own_network
from tutelage.pipeline.learning import distill
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.planning import Chosen
from tutelage.pipeline.teaching import teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as specs
from tutelage.students.spec import sliced_from
from tutelage.train.distill import decisions

RESULTS = HERE / "results" / "student_lessons.json"
WORK = HERE / ".work" / "student_lessons"
KD = {"kl": {"weight": 0.5, "temperature": 4.0}, "cross_entropy": 0.5}
LOSSES: dict[str, dict[str, Any] | None] = {
    "usual": None,
    "labels": {"cross_entropy": 1.0},
    "dist": {"dist": 1.0},
    "kl": {"kl": 1.0},
    "dist, kl": {"dist": 1.0, "kl": 0.3},
    "dist, labels": {"dist": 1.0, "cross_entropy": 1.0},
    "kl, labels": {"kl": 1.0, "cross_entropy": 0.5},
    "kd": KD,
}
_TEXT: dict[str, dict[str, Any]] = {
    f"encoder of {hidden}": {
        "family": "encoder", "layers": layers, "hidden": hidden, "heads": -(-hidden // 32),
        "inner": 2 * hidden, "embedding": max(10, hidden // 4),
    }
    for layers, hidden in ((2, 20), (2, 64), (2, 160), (4, 128), (6, 384))
} | {
    "textconv": {"family": "textconv", "embedding": 78, "kernel": 5},
    "slice": {
        "family": "encoder", "layers": 3, "hidden": 128, "heads": 4, "inner": 512, "norm": "post",
    },
}  # fmt: skip
STUDENTS: dict[str, dict[str, dict[str, Any]]] = {
    "texts": _TEXT,
    "mails": _TEXT,
    "images": {
        "vit": {"family": "vit", "patch": 4, "layers": 3, "hidden": 48, "heads": 3, "inner": 96},
        "convnet": {"family": "convnet", "widths": [8, 16, 32], "depths": [1, 1, 1]},
    },
    "leaves": {
        "gru": {"family": "gru", "hidden": 32, "window": 18},
        "convnet": {"family": "convnet1d", "widths": [12, 24, 24], "depths": [1, 1, 1]},
    },
}
SET_OF = {"images": "fashion"}
EPOCHS = {"texts": 6, "mails": 6, "images": 10, "leaves": 300}


def recipe_of(
    which: str, student: str, losses: str, rate: float | None, seed: int, epochs: int
) -> Recipe:
    """Return the recipe of one row."""
    given = {"spec": STUDENTS[which][student]}
    whole = SETS[SET_OF.get(which, which)].of(0, seed, given)
    asked: dict[str, Any] = {"epochs": epochs}
    if LOSSES[losses] is not None:
        asked["losses"] = LOSSES[losses]
    if rate is not None:
        asked["rate"] = rate
    return Recipe.parse({**whole.model_dump(exclude_unset=True, mode="json"), "distill": asked})


def teacher_of(which: str, material: Material) -> nn.Module:
    """Return the one teacher of a set; one that is fitted is kept."""
    recipe = recipe_of(which, next(iter(STUDENTS[which])), "usual", None, 0, 1)
    if not recipe.teacher.fit:
        return specs.load(Path(str(recipe.teacher.source)))
    with Run(WORK / which / "teacher") as run:
        return fit_teacher(recipe, material, run, Silent())


def row_of(
    recipe: Recipe, material: Material, teacher: nn.Module, folder: Path, *, sliced: bool
) -> dict[str, Any]:
    """Teach one student in a run directory and test it."""
    recipe = with_usual(recipe, material.decides, material.task, len(material.classes))
    spec = fixed_spec(dict(recipe.student.spec or {}), material)
    network = spec.build()
    count = sum(p.numel() for p in network.parameters())
    with Run(folder) as run:
        taught = teach(recipe, material, run, Silent(), trust_code=False, module=teacher)
        began, weights = time.process_time(), None
        if sliced:
            own = own_network(taught.teacher, material.shape)
            assert own is not None
            weights = sliced_from(own[0], spec, some_examples(material, 1_024)).state_dict()
        chosen = Chosen(
            spec=spec, network=network, parameters=count, warm=None,
            weights=None if weights is None else dict(weights),
        )  # fmt: skip
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
        material = SETS[SET_OF.get(which, which)].material(0)
        teacher = teacher_of(which, material)
        of_set = [name for name in STUDENTS[which] if name in (options.students or STUDENTS[which])]
        for seed, student, losses, rate in itertools.product(
            options.seeds, of_set, options.losses, options.rates or [None]
        ):
            epochs = options.epochs or EPOCHS[which]
            name = {
                "set": which, "student": student, "losses": losses, "rate": rate, "seed": seed,
                "epochs": epochs,
            }  # fmt: skip
            if any(name.items() <= row.items() for row in rows_of(RESULTS)):
                continue
            recipe = recipe_of(which, student, losses, rate, seed, epochs)
            folder = WORK / which / f"{seed}-{student}"
            row = row_of(recipe, material, teacher, folder, sliced=student == "slice")
            add_row(RESULTS, name | row)
            print(json.dumps(name | row), flush=True)


def table() -> None:
    """Print a line a student, losses and rate, beside the first line of it, paired by seed."""
    rows = rows_of(RESULTS)
    print("| set | student | epochs | losses | rate | seeds | test | to the first | processor s |")
    print("|---|---|---|---|---|---|---|---|---|")
    blocks: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, dict[str, Any]]]] = {}
    for row in rows:
        block = blocks.setdefault((row["set"], row["student"], row["epochs"]), {})
        block.setdefault((row["losses"], row["rate"]), {})[row["seed"]] = row
    for (which, student, epochs), block in sorted(blocks.items()):
        tests = {
            name: {s: r["test"] for s, r in sorted(mine.items())} for name, mine in block.items()
        }
        first = next(iter(tests.values()))
        for (losses, rate), mine in block.items():
            test = tests[losses, rate]
            print(
                f"| {which} | {student} | {epochs} | {losses} "
                f"| {'usual' if rate is None else f'{rate:g}'} | {len(mine)} "
                f"| {interval([100 * x for x in test.values()])} | {apart(test, first)} "
                f"| {statistics.mean(r['cpu_s'] for r in mine.values()):.0f} |"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--set", nargs="*", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--students", nargs="*", help="some of them; all of the set by default")
    parser.add_argument("--losses", nargs="*", choices=list(LOSSES), default=["usual"])
    parser.add_argument("--rates", nargs="*", type=float, help="the product's own when unset")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="6 of texts, 10 of images, 300 of leaves")


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
