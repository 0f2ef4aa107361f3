"""Fashion-MNIST: a vision transformer teaches a convnet, and a convnet a vision transformer.

python benchmarks/vision_transformers.py --fit [--epochs 6]     # the transformer, into .work/
python benchmarks/vision_transformers.py --student cnn --method dist --seed 0
python benchmarks/vision_transformers.py --student vit --method trajectory --seed 0
python benchmarks/vision_transformers.py --all                         # every row that is missing
python benchmarks/vision_transformers.py --table

`--fit` trains the transformer (506,074 parameters) on the labels. The students' structures are
fixed (19,810 and 72,898 parameters). `cnn` learns from the transformer, `vit` from the committed
convnet. Methods: `dist`; `default` (dist, and features of taps); `trajectory` (dist, and the early
decisions); `kl-mixup` (kl, and another image mixed in, up to a half); `none` (labels alone). All
see the same images, views and epochs. Each row is one whole run of the product down to the int8
file, is resumable, and reads the test split once; its line goes to
benchmarks/results/transformers.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tutelage
from tutelage.cli.bars import Bars
from tutelage.files import hash_json, write_json
from tutelage.losses.objective import Objective, Term
from tutelage.pipeline import run_recipe
from tutelage.pipeline.material import read_material
from tutelage.recipe import Recipe
from tutelage.run import Run, machine, versions
from tutelage.students.spec import StudentSpec, load, save
from tutelage.train.distill import Distillation, decisions
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

HERE = Path(__file__).parent
WORK = HERE / ".work" / "transformers"
RESULTS = HERE / "results" / "transformers.json"
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
_IMAGE = {"image": [1, 28, 28], "classes": 10}
TEACHER = {"family": "vit", **_IMAGE, "patch": 4, "layers": 6, "hidden": 96, "heads": 4,
           "inner": 192}  # fmt: skip
STUDENTS: dict[str, dict[str, Any]] = {
    "cnn": {"family": "convnet", "widths": [8, 16, 32], "depths": [1, 1, 1]},
    "vit": {"family": "vit", "patch": 4, "layers": 3, "hidden": 48, "heads": 3, "inner": 96},
}
METHODS: dict[str, dict[str, Any]] = {
    "dist": {"dist": 1.0},
    "default": {"dist": 1.0, "features": 4.0},
    "trajectory": {"dist": 1.0, "trajectory": "auto"},
    "kl-mixup": {"kl": 1.0},
    "none": {"cross_entropy": 1.0},
}
MIXUP = {"kl-mixup": 0.5}
TEACHERS = {"cnn": WORK / "vit", "vit": HERE / "teachers" / "fashion-mnist"}


def fit(options: argparse.Namespace) -> None:
    """Train the transformer that teaches; read the test split once, at the end."""
    recipe = Recipe.parse(
        {
            "data": {"train": options.data},
            "teacher": {"fit": True},
            "augment": {"flip": True},
            "threads": options.threads,
        }
    )
    torch.set_num_threads(options.threads)
    material, spec = read_material(recipe), StudentSpec.from_json(TEACHER)

    def train() -> tuple[Any, list[Path]]:
        torch.manual_seed(0)
        network = spec.build()
        term = Term(name="cross_entropy", weight=1.0, options={"label_smoothing": 0.05})
        lesson = Distillation(
            network, Objective((term,)), material.train, material.validation, classes=10,
            views=1_000_000, batch=128, seed=0,
        )  # fmt: skip
        schedule = Schedule(epochs=options.epochs or 6, rate=2e-3, weight_decay=5e-2, ema=0.99)
        trainer = Trainer(
            lesson, schedule, checkpoint=run.file("checkpoints/teacher.safetensors"),
            progress=Bars(), label="Training the transformer",
        )  # fmt: skip
        figure = trainer.train().figure
        test = decisions(network.eval(), material.test).argmax(-1).numpy()
        right = float((test == material.data.test.labels).mean())
        return {"validation": figure, "test": right}, save(run.file("teacher"), spec, network)

    with Run(WORK / "fit", command="benchmarks/vision_transformers.py") as run:
        inputs = hash_json([material.content, TEACHER, options.epochs or 6, options.threads])
        done = run.stage("fit", inputs, train)
        print(json.dumps({**done.result, "seconds": run.manifest["stages"]["fit"]["seconds"]}))
        shutil.copytree(run.file("teacher"), TEACHERS["cnn"], dirs_exist_ok=True)
    print(f"{sum(p.numel() for p in load(TEACHERS['cnn']).parameters()):,} parameters")


def fewer(options: argparse.Namespace) -> Path:
    """Write `examples` of the training images, drawn with seed 0, and the test images, as .npz."""
    from tutelage.tasks.vision.reading import read_splits

    folder = WORK / f"data-{options.examples}"
    if not (folder / "test.npz").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = read_splits(options.data)
        assert found.test is not None
        drawn = np.random.default_rng(0).permutation(len(found.train))[: options.examples]
        train = found.train.take(np.sort(drawn))
        for name, images in (("train", train), ("test", found.test)):
            np.savez(folder / f"{name}.npz", x=images.pixels, y=images.labels)
    return folder


def recipe_of(options: argparse.Namespace, student: str, method: str, seed: int) -> Recipe:
    """Return the recipe of one row."""
    folder = fewer(options)
    return Recipe.parse(
        {
            "seed": seed,
            "data": {"train": str(folder / "train.npz"), "test": str(folder / "test.npz")},
            "teacher": {"source": str(TEACHERS[student]), "precision": "bf16"},
            "augment": {"views": options.views, "flip": True, "mixup": MIXUP.get(method, 0.0)},
            "student": {"spec": STUDENTS[student]},
            "distill": {"losses": METHODS[method], "epochs": options.epochs or 25},
            "export": {"precision": "int8"},
            "threads": options.threads,
        }
    )


def row_of(options: argparse.Namespace, student: str, method: str, seed: int) -> dict[str, Any]:
    """Run one row and return it."""
    mixed = "-mixed" if method in MIXUP else ""
    asked = f"{student}-{options.examples}-{options.views}-{seed}{mixed}"
    folder = WORK / "runs" / f"{asked}-{options.epochs or 25}-{method}"
    shared = WORK / f"signals-{asked}"
    shared.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "signals").exists():  # the methods of one seed ask the same questions
        (folder / "signals").symlink_to(shared)
    result = run_recipe(recipe_of(options, student, method, seed), folder, progress=Bars())
    manifest = json.loads((folder / "run.json").read_text())
    learned = manifest["stages"]["distill"]["result"]
    return {
        "student": student,
        "method": method,
        "seed": seed,
        "examples": options.examples,
        "views": options.views,
        "epochs": options.epochs or 25,
        "parameters": learned["parameters"],
        "teacher_parameters": manifest["stages"]["teacher"]["result"]["parameters"],
        "weights": learned["weights"],
        "bytes": result.artifact.stat().st_size,
        "artifact": result.proof["chosen"],
        "accuracy": result.figure("student", "accuracy_test").value,
        "validation": result.figure("student", "accuracy_validation").value,
        "float_validation": max(learned["history"]["figure"]),
        "teacher_accuracy": result.figure("teacher", "accuracy_test").value,
        "seconds": {k: v["seconds"] for k, v in manifest["stages"].items()},
        "threads": options.threads,
        "version": tutelage.__version__,
        "versions": versions(),
        "machine": machine(),
        "command": " ".join(sys.argv),
    }


_SAME = ("student", "method", "seed", "examples", "views", "epochs")


def recorded() -> list[dict[str, Any]]:
    """Return the rows that are done."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def record(options: argparse.Namespace) -> None:
    """Run the rows that are asked for and not there yet."""
    students = list(STUDENTS) if options.student is None else [options.student]
    methods = list(METHODS) if options.method is None else [options.method]
    seeds = [0, 1, 2] if options.seed is None else [options.seed]
    for seed, student, method in ((a, b, c) for a in seeds for b in students for c in methods):
        key = (student, method, seed, options.examples, options.views, options.epochs or 25)
        if any(tuple(r[k] for k in _SAME) == key for r in recorded()):
            continue
        row = row_of(options, student, method, seed)
        write_json(RESULTS, sorted([*recorded(), row], key=lambda r: [r[k] for k in _SAME]))
        print(json.dumps(row))


def table() -> None:
    """Print the recorded rows, a line a student and method."""
    print("| student | method | images | epochs | seeds | student test | teacher test | bytes |")
    print("|---|---|---|---|---|---|---|---|")
    rows = recorded()
    for group in sorted({tuple(r[k] for k in ("student", "examples", "epochs")) for r in rows}):
        for method in METHODS:
            mine = [
                r
                for r in rows
                if (r["student"], r["examples"], r["epochs"]) == group and r["method"] == method
            ]
            if not mine:
                continue
            figures = [r["accuracy"] for r in mine]
            spread = f" ± {statistics.stdev(figures):.2%}" if len(figures) > 1 else ""
            print(
                f"| {group[0]} | {method} | {group[1]:,} | {group[2]} | {len(mine)} "
                f"| {statistics.mean(figures):.2%}{spread} | {mine[0]['teacher_accuracy']:.2%} "
                f"| {max(r['bytes'] for r in mine):,} |"
            )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", action="store_true", help="train the transformer that teaches")
    parser.add_argument("--student", choices=list(STUDENTS))
    parser.add_argument("--method", choices=list(METHODS))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--all", action="store_true", help="every student, method and seed 0-2")
    parser.add_argument("--epochs", type=int, help="25; with --fit 6")
    parser.add_argument("--examples", type=int, default=10_000, help="training images of a student")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", default=FASHION_MNIST)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
    elif options.fit:
        fit(options)
    elif options.all or options.student or options.method or options.seed is not None:
        record(options)
    else:
        parser.error("say --fit, --all, --table, or a student, a method or a seed")


if __name__ == "__main__":
    main()
