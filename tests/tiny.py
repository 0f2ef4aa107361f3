"""A job so small that a whole run takes seconds: 8 x 8 images of three plain shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
    "teacher": {"fit": True, "epochs": 16, "width": 8},
    "device": "nucleo-l4r5",
    "budget": {"storage": "100 kB", "memory": "64 kB"},
    "augment": {"views": 2},
    "student": SMALL,
    "distill": {"epochs": 6, "batch": 32},
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
