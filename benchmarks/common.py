"""What the benchmark scripts share: the pair, the data, fair timing, tables and result files."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from tutelage.devices.profile import cpu_name
from tutelage.files import read_json, write_json
from tutelage.pipeline.material import Material, material_of, read_material
from tutelage.recipe import Recipe
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.spec import StudentSpec, load

HERE = Path(__file__).parent
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
TEACHER = HERE / "teachers" / "fashion-mnist"
TEACHER_SPEC = ConvNetSpec(image=(1, 28, 28), classes=10, widths=(32, 64, 128), depths=(2, 2, 2))
STUDENTS: dict[str, tuple[int, ...]] = {
    "10k": (6, 12, 22), "20k": (8, 16, 32), "78k": (16, 32, 64),
}  # fmt: skip


def student_spec(name: str) -> StudentSpec:
    """Return the student called `name` in `STUDENTS`."""
    knobs = ConvNetSpec(image=(1, 28, 28), classes=10, widths=STUDENTS[name], depths=(1, 1, 1))
    return StudentSpec(family="convnet", knobs=knobs)


def fresh_student(name: str, seed: int) -> nn.Module:
    """Build a student with the fresh weights of `seed`."""
    torch.manual_seed(seed)
    return student_spec(name).build()


def open_teacher(folder: Path) -> tuple[nn.Module, str]:
    """Return the teacher and what it is; an untrained one of the same shape when there is none."""
    if (folder / "model.safetensors").is_file():
        return load(folder), str(folder.name)
    print(f"no teacher in {folder}: an untrained one of the same shape stands in. Speeds hold, "
          "accuracies mean nothing; benchmarks/teacher.py trains it", file=sys.stderr)  # fmt: skip
    torch.manual_seed(0)
    return ConvNet(TEACHER_SPEC).eval(), "untrained, of the same shape"


def fashion_mnist(
    data: str, *, examples: int | None, flip: bool, shift: int, views: int
) -> Material:
    """Read Fashion-MNIST; `examples` keeps that many of the training part, drawn with seed 0."""
    recipe = Recipe.parse(
        {
            "data": {"train": data},
            "teacher": {"fit": True},
            "augment": {"flip": flip, "shift": shift, "views": views},
        }
    )
    material = read_material(recipe)
    if examples is None or examples >= material.train.count:
        return material
    chosen = np.sort(np.random.default_rng(0).permutation(material.train.count)[:examples])
    fewer = dataclasses.replace(material.data, train=material.data.train.take(chosen))
    return material_of(material.task, fewer, recipe)


def ratio_of_medians(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, draws: int = 2_000
) -> dict[str, Any]:
    """Return median(first) / median(second) with a 95 % interval.

    Each argument holds blocks of readings in seconds, taken in turn (A B A B). The interval is a
    bootstrap over pairs of neighbouring blocks, so slow drift of the machine widens it.
    """
    pairs = list(zip(first, second, strict=True))
    middles = [(float(np.median(a)), float(np.median(b))) for a, b in pairs]
    random = np.random.default_rng(0)

    def ratio(index: np.ndarray) -> float:
        top, bottom = ([middles[i][side] for i in index] for side in (0, 1))
        return float(np.median(top) / np.median(bottom))

    every = np.arange(len(pairs))
    drawn = [ratio(random.choice(every, len(every))) for _ in range(draws)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "first_s": float(np.median([a for a, _ in middles])),
        "second_s": float(np.median([b for _, b in middles])),
        "ratio": ratio(every),
        "interval": [float(low), float(high)],
        "blocks": len(pairs),
        "readings": sum(map(len, first)),
    }


def interval(values: Sequence[float], sign: str = "") -> str:
    """Return the mean with its 95 % interval (Student's t); `sign` "+" shows that of the mean."""
    if len(values) < 2:
        return f"{values[0]:{sign}.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):{sign}.2f} ± {half:.2f}"


def apart(mine: dict[int, float], other: dict[int, float]) -> str:
    """Return the mean difference in points, paired by seed, with its 95 % interval."""
    both = sorted(set(mine) & set(other))
    if len(both) < 2 or mine == other:
        return ""
    return interval([100 * (mine[seed] - other[seed]) for seed in both], "+")


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, load, versions."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("tutelage", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def command() -> str:
    """Return the command line that made a result, as it can be typed again."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file and say where."""
    write_json(path, result)
    print(f"\nwritten: {path}")


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, the first to the left."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a resumable script recorded."""
    return read_json(path)["rows"] if path.exists() else []


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Record one more row, with the command and the machine."""
    rows = [*rows_of(path), row]
    write_json(path, {"rows": rows, "command": command(), "machine": machine()})


def run_or_table(
    about: str | None, add: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None], table: Callable[[], None],
) -> None:  # fmt: skip
    """Parse the command line, measure what is missing unless `--table`, and print the table."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add(parser)
    parser.add_argument("--table", action="store_true", help="print what is recorded")
    options = parser.parse_args()
    if not options.table:
        run(options)
    table()
