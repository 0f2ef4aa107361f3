"""Fashion-MNIST with 1 % of its labels: a student taught on all images, beside labels alone.

python benchmarks/few_labels.py [--seeds 0 1 2] [--epochs 4]
python benchmarks/few_labels.py --limit 2000 --labels 100 --epochs 1 --name=-try  # short
python benchmarks/few_labels.py --table

The labels are 600 of the 60,000 training images, stratified, drawn with the seed; others have none.
The teacher is benchmarks/teachers/fashion-mnist, trained on all labels. `taught` distils it by the
default loss on labelled and unlabelled images together. `labels alone` trains the same structure
from the same first weights on the 600 by cross entropy, with the same augmentation, for as long as
`taught` took, its asking of the teacher included. Time is processor time, so that other work on the
machine favours neither; how many epochs it makes is measured on a first short training. Both take
their last averaged weights, so nothing is chosen by labels that a user with 600 would not have. The
torch network reads the test split once.
Finished rows are not run again; lines go to benchmarks/results/few_labels.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import FASHION_MNIST, HERE, TEACHER, command, machine, print_table
from torch import nn

import tutelage
from tutelage.files import write_json
from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.material import Material, material_of, read_material
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.students.families.convnet import ConvNetSpec
from tutelage.students.spec import StudentSpec
from tutelage.tasks import accuracy
from tutelage.tasks.splits import set_aside
from tutelage.tasks.vision.base import Images
from tutelage.tasks.vision.task import arrange
from tutelage.teach.signals import SignalCache
from tutelage.teach.teachers import load_teacher
from tutelage.train.distill import Distillation, decisions
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

RESULTS = HERE / "results" / "few_labels.json"
STUDENT = ConvNetSpec(image=(1, 28, 28), classes=10, widths=(12, 24, 46), depths=(1, 1, 1))
METHODS = ("taught", "labels alone")
BATCH = {"taught": 128, "labels alone": 64}


def material(options: argparse.Namespace, seed: int) -> Material:
    """Return Fashion-MNIST with the labels of a few training images; the others have none."""
    recipe = Recipe.parse(
        {
            "seed": seed,
            "data": {"train": options.data},
            "teacher": {"source": str(TEACHER)},
            "augment": {"flip": True, "shift": 2, "views": options.views},
        }
    )
    whole = read_material(recipe).data
    known = whole.train.take(np.arange(min(options.limit or len(whole.train), len(whole.train))))
    ranks = np.random.default_rng(seed).integers(0, 1 << 62, len(known)).astype(np.uint64)
    few = set_aside(ranks, known.labels, options.labels / len(known))
    data = arrange(
        _part(known, few),
        validation=whole.validation,
        test=whole.test,
        unlabelled=_part(known, ~few, labelled=False),
        seed=seed,
    )
    return material_of(read_material(recipe).task, data, recipe)


def _part(images: Images, chosen: np.ndarray, *, labelled: bool = True) -> Images:
    part = images.take(np.flatnonzero(chosen))
    return part if labelled else dataclasses.replace(part, labels=None, classes=())


def fresh_student(seed: int) -> nn.Module:
    """Build the student with the first weights of `seed`."""
    torch.manual_seed(seed)
    return StudentSpec(family="convnet", knobs=STUDENT).build()


def taught(
    held: Material, options: argparse.Namespace, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Distil the teacher on every training image; return the student and what it took."""
    started = time.process_time()
    example = held.train.batch(torch.arange(2), 0).inputs
    teacher = load_teacher(
        str(TEACHER), classes=10, image_shape=held.shape, example=example,
        open_folder=tutelage.load, bf16=options.bf16,
    )  # fmt: skip
    folder = HERE / ".work" / f"few-labels-{seed}{options.name}" / "signals"
    cache = SignalCache(
        folder, held.train, views=held.views, features=False, maps=False, teacher=teacher
    )
    cache.fill(Silent())
    asked = _asked(folder / "asked.json", time.process_time() - started)
    student, trained = _train(
        held, fresh_student(seed), "taught", seed, options.epochs, views=held.views, signals=cache
    )
    return student, {"epochs": options.epochs, "asking_s": asked, "training_s": trained}


def _asked(path: Path, seconds: float) -> float:
    """Return what asking took in all, also where an earlier call was stopped on the way."""
    spent = seconds + (json.loads(path.read_text()) if path.exists() else 0.0)
    write_json(path, spent)
    return spent


def labels_alone(
    held: Material, options: argparse.Namespace, seed: int, seconds: float
) -> tuple[nn.Module, dict[str, Any]]:
    """Train on the labelled images by cross entropy for about `seconds`."""
    probe = 5  # epochs, after one that warms up
    _train(held, fresh_student(seed), "labels alone", seed, 1)
    _, short = _train(held, fresh_student(seed), "labels alone", seed, probe)
    epochs = max(1, round(seconds / (short / probe)))
    student, trained = _train(held, fresh_student(seed), "labels alone", seed, epochs)
    return student, {"epochs": epochs, "asking_s": 0.0, "training_s": trained}


class _Unchosen(Distillation):
    """A lesson that is not judged on the way: the last weights count as the best."""

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return a figure that grows with every epoch."""
        self.epoch = getattr(self, "epoch", 0) + 1
        return float(self.epoch)


def _train(
    held: Material, student: nn.Module, method: str, seed: int, epochs: int, *,
    views: int = 1_000_000, signals: SignalCache | None = None,
) -> tuple[nn.Module, float]:  # fmt: skip
    assert held.labelled is not None
    lesson = _Unchosen(
        student,
        Objective((Term(name="dist" if signals else "cross_entropy", weight=1.0),)),
        held.train if signals else held.labelled,
        held.validation,
        signals=signals,
        classes=10,
        views=views,
        batch=BATCH[method],
        seed=seed,
    )
    started = time.process_time()
    Trainer(lesson, Schedule(epochs=epochs, seed=seed, precision="float32")).train()
    return student, time.process_time() - started


def run_row(
    method: str, seed: int, options: argparse.Namespace, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Do one row and return its line."""
    held = material(options, seed)
    if method == "taught":
        student, took = taught(held, options, seed)
    else:
        other = next(r for r in rows if r["method"] == "taught" and same(r, seed, options))
        student, took = labels_alone(held, options, seed, other["asking_s"] + other["training_s"])
    decided = decisions(student, held.test).argmax(1).numpy()
    labels = held.data.test.labels
    return {
        "method": method,
        "seed": seed,
        **settings(options),
        "train": held.train.count,
        "labelled": held.labelled.count if held.labelled else 0,
        "test": accuracy(decided, labels, where="the network in torch, test split").to_json(),
        "parameters": sum(p.numel() for p in student.parameters()),
        **took,
        "batch": BATCH[method],
        "machine": machine(),
        "command": command(),
    }


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what makes rows comparable."""
    return {"labels": options.labels, "limit": options.limit, "views": options.views,
            "asked_epochs": options.epochs, "bf16": options.bf16}  # fmt: skip


def same(row: dict[str, Any], seed: int, options: argparse.Namespace) -> bool:
    """Say whether a row was made with this seed and these settings."""
    return row["seed"] == seed and all(row[k] == v for k, v in settings(options).items())


def table(path: Path) -> None:
    """Print the recorded rows, a line a method and setting."""
    rows = json.loads(path.read_text())
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["labels"], row["limit"] or row["train"], row["asked_epochs"], row["method"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (labels, limit, _, method), mine in sorted(groups.items()):
        right = [r["test"]["value"] for r in mine]
        spread = f" ± {statistics.stdev(right):.2%}" if len(right) > 1 else ""
        seconds = statistics.mean(r["asking_s"] + r["training_s"] for r in mine)
        epochs = round(statistics.mean(r["epochs"] for r in mine))
        lines.append([method, labels, limit, len(mine), epochs, f"{seconds:.0f} s",
                      f"{statistics.mean(right):.2%}{spread}"])  # fmt: skip
    print_table(
        ["method", "labels", "images", "seeds", "epochs", "processor", "test accuracy"], lines
    )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--labels", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4, help="of `taught`")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--limit", type=int, help="keep so many training images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=True, help="of asking the teacher"
    )
    parser.add_argument("--data", default=FASHION_MNIST)
    parser.add_argument("--name", default="", help="for trials: other results and signals")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    path = RESULTS.with_stem(f"few_labels{options.name}")
    if options.table:
        return table(path)
    torch.set_num_threads(options.threads)
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in options.seeds:
        for method in METHODS:
            if not any(r["method"] == method and same(r, seed, options) for r in rows):
                rows.append(run_row(method, seed, options, rows))
                write_json(path, rows)
    table(path)


if __name__ == "__main__":
    main()
