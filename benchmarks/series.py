"""Sensor series to 32 kB or less: what the int8 file keeps of the teacher, beside no teacher.

python benchmarks/series.py --unpack                       # the .ts files, from the aeon wheel
python benchmarks/series.py [--only GunPoint ...] [--seeds 0 1 2] [--kilobytes 8]
python benchmarks/series.py --table

Each cell is one whole run of the product on the set's own train and test split, proven on the int8
file. The first method of a set and seed fits a teacher on the spot and, for each size, chooses the
structure; the others take over the structure, and the teacher unless they name one, with the same
views, epochs and schedule. `mixup`: a second series is mixed in, up to a half. Defaults are chosen
on the sets for development (`--only ArrowHead OSULeaf PickupGestureWiimoteZ`). Finished cells are
not run again; lines go to benchmarks/results/series.json. Rows of an earlier default, with the
inception teacher, are in series_inception.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

import tutelage
from tutelage.cli.bars import Bars
from tutelage.files import write_json
from tutelage.pipeline import run_recipe
from tutelage.recipe import Recipe
from tutelage.run import machine, versions

HERE = Path(__file__).parent
WORK = HERE / ".work" / "series"
RESULTS = HERE / "results" / "series.json"
SETS = ("BasicMotions", "ItalyPowerDemand", "GunPoint", "ACSF1", "JapaneseVowels")
DEVELOPMENT = ("ArrowHead", "OSULeaf", "PickupGestureWiimoteZ")
METHODS: dict[str, dict[str, Any]] = {
    "default (rocket; kl, mixup)": {"losses": {"kl": 1.0}, "mixup": 0.5},
    "no teacher": {"losses": {"cross_entropy": 1.0}, "mixup": 0.0},
    "no teacher, mixup": {"losses": {"cross_entropy": 1.0}, "mixup": 0.5},
    "rocket; kl": {"losses": {"kl": 1.0}, "mixup": 0.0},
    "rocket; dist": {"losses": {"dist": 1.0}, "mixup": 0.0},
    "rocket; dist, mixup": {"losses": {"dist": 1.0}, "mixup": 0.5},
    "inception; kl, mixup": {"losses": {"kl": 1.0}, "mixup": 0.5, "network": "inception"},
    "inception; dist": {"losses": {"dist": 1.0}, "mixup": 0.0, "network": "inception"},
}
FIRST = next(iter(METHODS))
SIZES = (32, 8)  # kilobytes of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run."""

    set: str
    seed: int
    method: str
    kilobytes: int

    @property
    def folder(self) -> Path:
        """The run directory."""
        method = "".join(c for c in self.method.replace(" ", "-") if c.isalnum() or c == "-")
        return WORK / "runs" / f"{self.set}-{self.seed}-{self.kilobytes}-{method}"


def unpack() -> None:
    """Download the aeon wheel and unpack the sets; nothing else of it is used."""
    wheels = WORK / "wheel"
    command = [sys.executable, "-m", "pip", "download", "aeon", "--no-deps", "-d", str(wheels)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob("aeon-*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith(".ts") and Path(name).parent.name in (*SETS, *DEVELOPMENT):
                path = WORK / "data" / Path(name).parent.name / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel.read(name))


def recipe_of(cell: Cell) -> Recipe:
    """Return the recipe of one cell."""
    name, method = cell.set, METHODS[cell.method]
    teacher: dict[str, Any] = {"fit": True}
    student: dict[str, Any] = {"candidates": 3}
    if cell.method != FIRST:
        first = replace(cell, method=FIRST).folder
        spec = json.loads((first / "student/spec.json").read_text())
        student = {"spec": {k: v for k, v in spec.items() if k != "note"}}
        teacher = {
            "source": str(replace(cell, method=FIRST, kilobytes=SIZES[0]).folder / "teacher")
        }
        if "network" in method:
            teacher = {"fit": True, "network": method["network"]}
    elif cell.kilobytes != SIZES[0]:
        teacher = {"source": str(replace(cell, kilobytes=SIZES[0]).folder / "teacher")}
    return Recipe.parse(
        {
            "task": "series",
            "seed": cell.seed,
            "data": {
                "train": str(WORK / "data" / name / f"{name}_TRAIN.ts"),
                "test": str(WORK / "data" / name / f"{name}_TEST.ts"),
            },
            "teacher": teacher,
            "budget": {"storage": f"{cell.kilobytes} kB"},
            "augment": {"mixup": method["mixup"]},
            "student": student,
            "distill": {"losses": method["losses"]},
            "export": {"precision": "int8"},
            "threads": 1,
        }
    )


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run one cell and return its line."""
    result = run_recipe(recipe_of(cell), cell.folder, progress=Bars())
    kept = next(f for f in result.proof["fidelity"] if f["name"] == "kept")
    manifest = json.loads((result.run / "run.json").read_text())
    return {
        **asdict(cell),
        "student": result.figure("student", "accuracy_test").value,
        "validation": result.figure("student", "accuracy_validation").value,
        "teacher": result.figure("teacher", "accuracy_test").value,
        "kept": kept["value"],
        "bytes": result.artifact.stat().st_size,
        "spec": manifest["stages"]["distill"]["result"]["spec"],
        "seconds": round(result.seconds, 1),
        "version": tutelage.__version__,
        "versions": versions(),
        "machine": machine(),
        "command": " ".join(sys.argv),
    }


def table() -> None:
    """Print the recorded cells: a line a set, a column a method; (runs, sd) behind each."""
    rows = json.loads(RESULTS.read_text())
    for size in sorted({r["kilobytes"] for r in rows}, reverse=True):
        here = [r for r in rows if r["kilobytes"] == size]
        methods = [m for m in METHODS if any(r["method"] == m for r in here)]
        print(f"\n{size} kB\n\n| set | teacher | {' | '.join(methods)} | largest file |")
        print("|---" * (len(methods) + 3) + "|")
        for name in (*SETS, *DEVELOPMENT):
            mine = {m: [r for r in here if (r["set"], r["method"]) == (name, m)] for m in methods}
            first = mine[FIRST]
            if first:
                figures = " | ".join(_mean(found, "student") for found in mine.values())
                largest = max(r["bytes"] for found in mine.values() for r in found)
                print(f"| {name} | {_mean(first, 'teacher')} | {figures} | {largest:,} B |")
        for title, names in (("the five sets", SETS), ("sets for development", DEVELOPMENT)):
            rows_of = {
                m: [r for r in here if r["method"] == m and r["set"] in names] for m in methods
            }
            kept = " | ".join(_mean(found, "kept") for found in rows_of.values())
            print(f"| kept, {title} | | {kept} | |")


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in rows]
    if not values:
        return ""
    spread = f", sd {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%} ({len(values)}{spread})"


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--only", nargs="*", choices=(*SETS, *DEVELOPMENT), default=list(SETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--kilobytes", type=int, choices=SIZES, default=SIZES[0])
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.unpack:
        return unpack()
    if options.table:
        return table()
    sizes = dict.fromkeys((SIZES[0], options.kilobytes))  # the teacher is that of the first size
    for seed in options.seeds:
        for name in options.only:
            for size in sizes:
                first = [FIRST] if size != options.kilobytes else []
                for method in first or dict.fromkeys((FIRST, *options.methods)):
                    record(Cell(set=name, seed=seed, method=method, kilobytes=size))
    table()


def record(cell: Cell) -> None:
    """Run a cell that is not there yet, and write its line among those that others wrote."""
    same = asdict(cell)
    with FileLock(f"{RESULTS}.lock"):
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if not any({k: r[k] for k in same} == same for r in rows):
        row = run_cell(cell)
        with FileLock(f"{RESULTS}.lock"):
            rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            write_json(RESULTS, [*rows, row])


if __name__ == "__main__":
    main()
