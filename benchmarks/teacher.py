"""Train the Fashion-MNIST teacher (696,042 parameters) and store it as a small safetensors folder.

python benchmarks/teacher.py [--epochs 16]

Resumable. Reads the test split once, at the end. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from tutelage.cli.bars import Bars
from tutelage.pipeline.material import read_material
from tutelage.pipeline.teaching import fit_teacher
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.spec import load
from tutelage.train.distill import decisions

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
HERE = Path(__file__).parent


def main() -> None:
    """Train, test once, copy the folder to benchmarks/teachers/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--data", default=FASHION_MNIST)
    options = parser.parse_args()
    recipe = Recipe.parse(
        {
            "data": {"train": options.data},
            "teacher": {"fit": True, "epochs": options.epochs},
            "augment": {"flip": True},
            "threads": torch.get_num_threads(),
        }
    )
    material = read_material(recipe)
    with Run(HERE / ".work" / "teacher", command="benchmarks/teacher.py") as run:
        folder = fit_teacher(recipe, material, run, Bars())
        history = run.manifest["stages"]["fit"]["result"]["history"]
        seconds = run.manifest["stages"]["fit"]["seconds"]
    network = load(folder)
    decided = decisions(network, material.test).argmax(-1).numpy()
    test = float((decided == material.data.test.labels).mean())
    target = HERE / "teachers" / "fashion-mnist"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("spec.json", "model.safetensors"):
        shutil.copy2(folder / name, target / name)
    row = {"validation": max(history["figure"]), "test": test, "epochs": options.epochs,
           "seconds": seconds, "curve": history["figure"]}  # fmt: skip
    (target / "figures.json").write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
