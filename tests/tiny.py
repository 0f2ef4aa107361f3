"""A job so small that a whole run takes seconds: 8 x 8 images of three plain shapes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CLASSES = 3


def images(
    count: int = 300, *, shape: tuple[int, int, int] = (8, 8, 1), classes: int = CLASSES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return uint8 images and labels; a bright band of rows tells the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pixels = random.integers(0, 60, (count, *shape))
    height = shape[0]
    for i, label in enumerate(labels):
        first = int(label) * height // classes
        pixels[i, first : max(first + 1, first + height // classes)] += 180
    return pixels.astype(np.uint8), labels


def write_data(path: Path, **options: Any) -> Path:
    """Save `images` as .npz."""
    x, y = images(**options)
    np.savez(path, x=x, y=y)
    return path


SMALL = {"spec": {"family": "convnet", "widths": [4, 8], "depths": [1, 1]}}
RECIPE: dict[str, Any] = {
    "data": {"train": "data.npz", "validation": 0.2},
    "teacher": {"fit": True, "epochs": 40, "width": 8},
    "device": "nucleo-l4r5",
    "budget": {"storage": "100 kB", "memory": "64 kB"},
    "augment": {"views": 2},
    "student": SMALL,
    "distill": {"epochs": 8, "batch": 32},
    "threads": 1,
}


def recipe(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the tiny recipe; a key of `changes` takes the place of the whole part."""
    return {**RECIPE, **(changes or {})}


def write_recipe(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write recipe.yaml into a folder and return its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(changes)), encoding="utf-8")
    return path


def hashes(run: Path, *parts: str) -> dict[str, str]:
    """Return the hash of every file under `parts` of a run directory."""
    found = {}
    for part in parts:
        top = run / part
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file():
                name = path.relative_to(run).as_posix()
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one call of the command line answered."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The object of `--json`: the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def cli(*arguments: str | Path) -> Said:
    """Call the command line in this process; whatever it does not handle is raised."""
    from tutelage.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run([str(argument) for argument in arguments])
    return Said(status=status, out=out.getvalue(), err=err.getvalue())
