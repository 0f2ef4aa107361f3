"""Fashion-MNIST to 100, 40 and 20 kB: what the int8 file keeps of the teacher's test accuracy.

python benchmarks/fashion.py --size 40 --seed 0 [--epochs 25] [--threads 2]
python benchmarks/fashion.py --table

Each call is one whole run of the product (signals, candidates, distillation, export, proof) and
is resumable; its line goes to benchmarks/results/fashion.json. `--no-teacher` trains the structure
that the run with the same size and seed chose on labels alone, for the same epochs and views.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import tutelage
from tutelage.cli.bars import Bars
from tutelage.files import write_json
from tutelage.pipeline import run_recipe
from tutelage.recipe import Recipe
from tutelage.run import machine, versions

HERE = Path(__file__).parent
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
RESULTS = HERE / "results" / "fashion.json"
TARGETS = {100: 0.997, 40: 0.988, 20: 0.970}


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe of one cell."""
    losses: dict[str, Any] = {"cross_entropy": 1.0} if options.no_teacher else {"dist": 1.0}
    if options.losses is not None:
        losses = json.loads(options.losses)
    student: dict[str, Any] = {"candidates": options.candidates}
    if options.spec is None and (options.no_teacher or options.spec_of is not None):
        like = HERE / ".work" / f"fashion-{options.size}-{options.spec_of or options.seed}"
        spec = json.loads((like / "student" / "spec.json").read_text())
        student = {"spec": {k: v for k, v in spec.items() if k != "note"}}
    if options.spec is not None:
        student = {"spec": json.loads(options.spec)}
    student["start"] = options.start
    return Recipe.parse(
        {
            "seed": options.seed,
            "data": {"train": options.data},
            "teacher": {"source": str(HERE / "teachers" / "fashion-mnist"), "precision": "bf16"},
            "budget": {"storage": f"{options.size} kB"},
            "augment": {
                "views": options.views,
                "flip": True,
                "mixup": options.mixup,
                "erase": options.erase,
            },
            "student": student,
            "distill": {
                "losses": losses,
                "epochs": options.epochs,
                "precision": options.precision,
                **({} if options.rate is None else {"rate": options.rate}),
            },
            "threads": options.threads,
        }
    )


def run_cell(options: argparse.Namespace) -> None:
    """Run one cell and record it."""
    kind = "-labels" if options.no_teacher else ""
    folder = HERE / ".work" / f"fashion-{options.size}-{options.seed}{kind}{options.name}"
    shared = HERE / ".work" / f"signals-{options.seed}"
    shared.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "signals").exists():  # the sizes of one seed ask the same questions
        (folder / "signals").symlink_to(shared)
    result = run_recipe(recipe_of(options), folder, progress=Bars())
    manifest = json.loads((folder / "run.json").read_text())
    kept = next(f for f in result.proof["fidelity"] if f["name"] == "kept")
    row = {
        "size_kb": options.size,
        "seed": options.seed,
        "method": "no teacher" if options.no_teacher else options.losses or "default (dist)",
        "epochs": options.epochs,
        "views": options.views,
        "mixup": options.mixup,
        "erase": options.erase,
        "precision": options.precision,
        "start": options.start,
        "rate": options.rate,
        "bytes": result.artifact.stat().st_size,
        "artifact": result.proof["chosen"],
        "student": result.figure("student", "accuracy_test").value,
        "student_validation": result.figure("student", "accuracy_validation").value,
        "teacher": result.figure("teacher", "accuracy_test").value,
        "kept": kept["value"],
        "spec": manifest["stages"]["distill"]["result"]["spec"],
        "parameters": manifest["stages"]["distill"]["result"]["parameters"],
        "seconds": {k: v["seconds"] for k, v in manifest["stages"].items()},
        "threads": options.threads,
        "version": tutelage.__version__,
        "versions": versions(),
        "machine": machine(),
        "command": " ".join(sys.argv),
    }
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    same = (
        "size_kb",
        "seed",
        "method",
        "epochs",
        "views",
        "mixup",
        "erase",
        "precision",
        "start",
        "rate",
    )
    usual = {"start": "fresh", "erase": 0.0}
    rows = [r for r in rows if any(r.get(k, usual.get(k)) != row[k] for k in same)] + [row]
    write_json(RESULTS, sorted(rows, key=lambda r: (r["size_kb"], r["method"], r["seed"])))
    print(json.dumps(row))


def table() -> None:
    """Print the recorded cells, a line a size and method."""
    rows = json.loads(RESULTS.read_text())
    print("| limit | method | seeds | bytes | student test | kept | target |")
    print("|---|---|---|---|---|---|---|")
    for size in sorted({r["size_kb"] for r in rows}, reverse=True):
        for method in sorted({r["method"] for r in rows if r["size_kb"] == size}):
            mine = [r for r in rows if r["size_kb"] == size and r["method"] == method]
            kept = [r["kept"] for r in mine]
            spread = f" ± {statistics.stdev(kept):.2%}" if len(kept) > 1 else ""
            print(
                f"| {size} kB | {method} | {len(mine)} | {max(r['bytes'] for r in mine):,} "
                f"| {statistics.mean(r['student'] for r in mine):.2%} "
                f"| {statistics.mean(kept):.2%}{spread} | {TARGETS[size]:.1%} |"
            )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, choices=sorted(TARGETS), default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default=FASHION_MNIST)
    parser.add_argument("--no-teacher", action="store_true")
    parser.add_argument("--spec-of", type=int, help="reuse the structure of this seed's run")
    parser.add_argument("--spec", help="a fixed structure as JSON, instead of candidates")
    parser.add_argument("--losses", help="the recipe's losses as JSON, instead of dist alone")
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--erase", type=float, default=0.0, help="share of an image blanked")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--start", choices=("fresh", "teacher"), default="fresh")
    parser.add_argument("--rate", type=float, help="instead of the recipe's default")
    parser.add_argument("--name", default="", help="appended to the run directory's name")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    table() if options.table else run_cell(options)


if __name__ == "__main__":
    main()
