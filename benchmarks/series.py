"""Sensor series to 32 kB: what the int8 file keeps of the teacher, beside the student on its own.

python benchmarks/series.py --unpack                       # the .ts files, from the aeon wheel
python benchmarks/series.py [--only GunPoint ...] [--seeds 0 1 2]
python benchmarks/series.py --table

Each cell is one whole run of the product on the set's own train and test split: a teacher is fitted
on the spot, a student of at most 32 kB is taught and proven. `no teacher` trains the structure that
was chosen on labels alone, with the same views, epochs and schedule. Finished cells are not run
again; lines go to benchmarks/results/series.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

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
METHODS = ("default (dist)", "no teacher")


def unpack() -> None:
    """Download the aeon wheel and unpack the five sets; nothing else of it is used."""
    wheels = WORK / "wheel"
    command = [sys.executable, "-m", "pip", "download", "aeon", "--no-deps", "-d", str(wheels)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob("aeon-*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith(".ts") and Path(name).parent.name in SETS:
                path = WORK / "data" / Path(name).parent.name / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel.read(name))


def recipe_of(name: str, seed: int, method: str) -> Recipe:
    """Return the recipe of one cell."""
    losses: dict[str, Any] = {"dist": 1.0}
    student: dict[str, Any] = {"candidates": 3}
    if method == "no teacher":
        losses = {"cross_entropy": 1.0}
        spec = json.loads((folder_of(name, seed, METHODS[0]) / "student/spec.json").read_text())
        student = {"spec": {k: v for k, v in spec.items() if k != "note"}}
    return Recipe.parse(
        {
            "task": "series",
            "seed": seed,
            "data": {
                "train": str(WORK / "data" / name / f"{name}_TRAIN.ts"),
                "test": str(WORK / "data" / name / f"{name}_TEST.ts"),
            },
            "teacher": {"fit": True},
            "budget": {"storage": "32 kB"},
            "student": student,
            "distill": {"losses": losses},
            "export": {"precision": "int8"},
            "threads": 1,
        }
    )


def folder_of(name: str, seed: int, method: str) -> Path:
    """Return the run directory of one cell."""
    return WORK / "runs" / f"{name}-{seed}-{method.split()[0]}"


def run_cell(name: str, seed: int, method: str) -> dict[str, Any]:
    """Run one cell and return its line."""
    result = run_recipe(
        recipe_of(name, seed, method), folder_of(name, seed, method), progress=Bars()
    )
    kept = next(f for f in result.proof["fidelity"] if f["name"] == "kept")
    manifest = json.loads((result.run / "run.json").read_text())
    return {
        "set": name,
        "seed": seed,
        "method": method,
        "student": result.figure("student", "accuracy_test").value,
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
    """Print the recorded cells."""
    rows = json.loads(RESULTS.read_text())
    print("| set | seeds | teacher | student | no teacher | kept | largest file |")
    print("|---|---|---|---|---|---|---|")
    for name in SETS:
        taught, alone = ([r for r in rows if (r["set"], r["method"]) == (name, m)] for m in METHODS)
        if taught:
            print(
                f"| {name} | {len(taught)} | {_mean(taught, 'teacher')} "
                f"| {_mean(taught, 'student')} | {_mean(alone, 'student') if alone else ''} "
                f"| {_mean(taught, 'kept')} | {max(r['bytes'] for r in taught):,} B |"
            )


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in rows]
    spread = f" (sd {100 * statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{spread}"


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.unpack:
        return unpack()
    if options.table:
        return table()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(r["set"], r["seed"], r["method"]) for r in rows}
    for seed in options.seeds:
        for name in options.only:
            for method in METHODS:
                if (name, seed, method) not in done:
                    rows.append(run_cell(name, seed, method))
                    write_json(RESULTS, rows)
    table()


if __name__ == "__main__":
    main()
