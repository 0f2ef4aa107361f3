"""NVIDIA ModelOpt 0.47 beside `space: auto`: FastNAS and its distillation, at equal size and time.

For each budget of Fashion-MNIST that `budgets.py --only auto` has run, ModelOpt narrows the same
teacher to at most as many parameters and multiply-accumulates as the student that shipped there has
(of these two, what the budget binds), with the same images and as many processor seconds, its
search and its distillation together. It is tested in float32, before any export.

ModelOpt has an environment of its own: `--setup` makes it.

python benchmarks/fastnas.py --setup
python benchmarks/fastnas.py [--seeds 0 1 2] [--budgets 0 3 7] [--rate 0.1]
python benchmarks/fastnas.py --table

Resumable; lines go to benchmarks/results/fastnas.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget_sets import SETS
from budgets import RESULTS as OURS
from common import HERE, TEACHER, add_row, rows_of, run_or_table

from tutelage.devices import load_device
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import budget_of, costing_of
from tutelage.plan.candidate import weigh
from tutelage.students.spec import StudentSpec

ENVIRONMENT = HERE / ".work" / "modelopt-env"
PYTHON = ENVIRONMENT / "bin" / "python"
PACKAGES = ("torch==2.13.0", "nvidia-modelopt==0.47.*", "requests")  # which it does not name
RESULTS = HERE / "results" / "fastnas.json"
BINDS = {0: ("flops",), 3: ("params", "flops"), 7: ("params",)}  # by the number of the budget


def setup() -> None:
    """Make ModelOpt's environment, with this project in it."""
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    install = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    # torchprofile, by which ModelOpt counts, would bring a torchvision with another torch.
    subprocess.run([*install, "--no-deps", "torchprofile<0.1"], check=True)
    subprocess.run([*install, *PACKAGES, "--editable", str(HERE.parent)], check=True)


def write_arrays(folder: Path, material: Material) -> Path:
    """Write the images and labels of all parts as one file of arrays."""
    parts = {name: getattr(material.data, name) for name in ("train", "validation", "test")}
    arrays = {f"{name}_x": part.pixels for name, part in parts.items()}
    path = folder / "arrays.npz"
    np.savez(path, **arrays, **{f"{name}_y": part.labels for name, part in parts.items()})
    return path


def limits_of(ours: dict[str, Any], material: Material) -> dict[str, float | None]:
    """Return the size of the student that shipped, as ModelOpt counts it; None: not limited."""
    recipe = SETS["fashion"].of(ours["budget"], ours["seed"], {})
    device = load_device(recipe.device)
    costing = costing_of(recipe, material, device, budget_of(recipe, device, math.inf))
    student = weigh(StudentSpec.from_json(ours["spec"]), costing)
    sizes = {"params": float(student.parameters), "flops": 2.0 * student.figure("macs")}
    return {name: sizes[name] if name in BINDS[ours["budget"]] else None for name in sizes}


def cell(ours: dict[str, Any], rate: float, material: Material) -> dict[str, Any]:
    """Let ModelOpt do what `ours` did; return its line."""
    with tempfile.TemporaryDirectory(prefix="modelopt-") as name:
        folder = Path(name)
        result = folder / "result.json"
        job = {
            "teacher": str(TEACHER), "arrays": str(write_arrays(folder, material)),
            "mean": material.normalisation.mean, "std": material.normalisation.std,
            "constraints": limits_of(ours, material), "seconds": ours["cpu_s"],
            "rate": rate, "batch": 128, "clip": 5.0, "shift": 2, "flip": True,
            "seed": ours["seed"], "threads": 1, "result": str(result),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        # -P: only what is installed there is to be found.
        command = [str(PYTHON), "-P", str(HERE / "fastnas_child.py"), str(folder / "job.json")]
        subprocess.run(command, check=True)
        found = json.loads(result.read_text())
    keys = {key: job[key] for key in ("constraints", "seconds", "rate", "seed")}
    return {**keys, "budget": ours["budget"], "ours": ours["test"], **found}


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    if options.setup:
        setup()
        return
    if not PYTHON.exists():
        raise SystemExit(f"{ENVIRONMENT} is missing; make it first: {sys.argv[0]} --setup")
    torch.set_num_threads(1)
    auto = [r for r in rows_of(OURS) if (r["set"], r["arm"]) == ("fashion", "auto")]
    for seed in options.seeds:
        material = SETS["fashion"].material(seed)
        for number in options.budgets:
            key = (seed, number, options.rate)
            if any((r["seed"], r["budget"], r["rate"]) == key for r in rows_of(RESULTS)):
                continue
            ours = next((r for r in auto if (r["seed"], r["budget"]) == key[:2]), None)
            if ours is None:
                raise SystemExit(f"run first: budgets.py --only auto --seeds {seed}")
            row = cell(ours, options.rate, material)
            add_row(RESULTS, row)
            print(json.dumps(row), flush=True)


def table() -> None:
    """Print a line a budget and rate: means of the seeds."""
    print("| budget | rate | seeds | ModelOpt | `auto` | s |\n|---|---|---|---|---|---|")
    rows = [r for r in rows_of(RESULTS) if "test" in r]
    for key in sorted({(r["budget"], r["rate"]) for r in rows}):
        mine = [r for r in rows if (r["budget"], r["rate"]) == key]
        means = [statistics.mean(r[k] for r in mine) for k in ("test", "ours", "seconds")]
        print(f"| {key[0]} | {key[1]} | {len(mine)} | {means[0]:.2%} | {means[1]:.2%} "
              f"| {means[2]:.0f} |")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--setup", action="store_true", help="make ModelOpt's environment")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="*", type=int, choices=list(BINDS), default=list(BINDS))
    parser.add_argument("--rate", type=float, default=0.1, help="of its distillation, by SGD")


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
