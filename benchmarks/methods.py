"""Which lessons work: methods side by side at equal processor time, on part of Fashion-MNIST.

python benchmarks/methods.py [--only dist kd ...] [--seeds 0 1 2 3 4]
python benchmarks/methods.py --table

Every method teaches the same student (plain convolutions, 8-10-16 channels, two blocks a stage)
on the same images, validation split and augmentation, from the same first weights; a `slice` starts
from the teacher's own channels instead, and pays for choosing them. The budget of processor seconds
is what `kd` takes for `--epochs` epochs and for asking the teacher; each method gets as many epochs
as fit into it by its own measured epoch (one thread, `time.process_time`). A method with a teacher
pays for its signals; `no teacher`, `label smoothing` and `deep supervision alone` ask none, and
train that much longer. The epoch is chosen on validation, the test split is read once, by the
network in torch. Resumable by (method, seed); lines go to benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import FASHION_MNIST, HERE, TEACHER, apart, command, fashion_mnist, machine

from tutelage.files import write_json
from tutelage.pipeline.inheriting import own_network
from tutelage.pipeline.learning import distill
from tutelage.pipeline.material import Material, material_of, some_examples
from tutelage.pipeline.planning import Chosen
from tutelage.pipeline.teaching import Taught, teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.spec import StudentSpec, sliced_from
from tutelage.train.distill import decisions

RESULTS = HERE / "results" / "methods.json"
WORK = HERE / ".work" / "methods"
SPEC = {
    "family": "convnet", "image": [1, 28, 28], "classes": 10, "widths": [8, 10, 16],
    "depths": [2, 2, 2],
}  # fmt: skip
_KD = {"kl": {"weight": 0.5, "temperature": 4.0}, "cross_entropy": 0.5}
_LABELS = {"cross_entropy": 1.0}
_BOTH = {"dist": 1.0, "cross_entropy": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "no teacher": {"losses": _LABELS},
    "label smoothing": {"losses": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}},
    "deep supervision alone": {"losses": {"cross_entropy": 1.0, "deep_supervision": "auto"}},
    "kd": {"losses": _KD},
    "dist": {"losses": {"dist": 1.0}},
    "dist, labels": {"losses": _BOTH},
    "kl, mixup": {"losses": {"kl": 1.0}, "mixup": 0.5},
    "dist, trajectory": {"losses": {"dist": 1.0, "trajectory": "auto"}},
    "dist, deep supervision": {"losses": {"dist": 1.0, "deep_supervision": "auto"}},
    "dist, cka": {"losses": {"dist": 1.0, "cka": "auto"}},
    "no teacher, slice": {"losses": _LABELS, "slice": True},
    "kd, slice": {"losses": _KD, "slice": True},
    "dist, slice": {"losses": {"dist": 1.0}, "slice": True},
    "dist, labels, slice": {"losses": _BOTH, "slice": True},
}
_UNTAUGHT = ("no teacher", "label smoothing", "deep supervision alone", "no teacher, slice")


def recipe_of(method: str, seed: int, epochs: int, options: argparse.Namespace) -> Recipe:
    """Return the recipe of one cell."""
    given = METHODS[method]
    return Recipe.parse(
        {
            "seed": seed,
            "data": {"train": FASHION_MNIST},
            "teacher": {"source": str(TEACHER)},
            "augment": {
                "views": options.views, "flip": True, "mixup": given.get("mixup", 0.0),
            },
            "student": {"spec": SPEC},
            "distill": {
                "losses": given["losses"],
                "epochs": epochs,
            },
            "threads": 1,
        }
    )  # fmt: skip


def cell(method: str, seed: int, epochs: int, base: Material, options: argparse.Namespace) -> Any:
    """Teach one student; return its figures and the processor seconds of signals and teaching."""
    recipe = recipe_of(method, seed, epochs, options)
    material = material_of(base.task, base.data, recipe)
    folder = WORK / f"{method.replace(', ', '-').replace(' ', '_')}-{seed}-{epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    shared = WORK / "signals"
    shared.mkdir(exist_ok=True)
    if not (folder / "signals").exists():  # a method must not wait for answers that are there
        (folder / "signals").symlink_to(shared)
    with Run(folder) as run:
        started = time.process_time()
        taught: Taught = teach(recipe, material, run, Silent(), trust_code=False)
        asked_s = time.process_time() - started
        spec = StudentSpec.from_json(SPEC)
        torch.manual_seed(seed)
        network = spec.build()
        count = sum(p.numel() for p in network.parameters())
        started = time.process_time()
        weights = None
        if METHODS[method].get("slice"):
            own = own_network(taught.teacher, material.shape)
            assert own is not None
            small = sliced_from(own[0], spec, some_examples(material))
            weights = dict(small.state_dict())
        chosen = Chosen(
            spec=spec, network=network, parameters=count, warm=None, weights=weights
        )  # fmt: skip
        learned = distill(recipe, material, taught, chosen, run, Silent())
        spent_s = time.process_time() - started
    history = learned.result["history"]
    right = (
        decisions(learned.network, material.test).argmax(-1).numpy() == material.data.test.labels
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "method": method, "seed": seed, "epochs": epochs, "test": float(right.mean()),
        "validation": max(history["figure"]), "best_epoch": history["best_epoch"],
        "asked_cpu_s": asked_s, "taught_cpu_s": spent_s, "weights": learned.result["weights"],
        "parameters": count, "precision": history["precision"],
    }  # fmt: skip


def measured(path: Path) -> dict[str, Any]:
    """Return what was recorded."""
    return json.loads(path.read_text()) if path.exists() else {"epoch_cpu_s": {}, "rows": []}


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    base = fashion_mnist(
        FASHION_MNIST, examples=options.examples, flip=True, shift=2, views=options.views
    )
    found = measured(options.out)
    settings = {"examples": options.examples, "views": options.views, "epochs": options.epochs}
    if found.setdefault("settings", settings) != settings:
        raise SystemExit(f"{options.out} holds other settings: {found['settings']}; use --out")
    for method in dict.fromkeys(("kd", *options.only)):
        if method not in found["epoch_cpu_s"]:  # the first call pays for the signals, apart
            first = cell(method, 1_000, 1, base, options)
            found["epoch_cpu_s"][method] = first["taught_cpu_s"]
            if first["asked_cpu_s"] > found.setdefault("asked_cpu_s", {}).get(method, 0.0):
                found["asked_cpu_s"][method] = first["asked_cpu_s"]
            _write(options.out, found)
    asked = max(found["asked_cpu_s"].values())
    budget = options.epochs * found["epoch_cpu_s"]["kd"] + asked
    found["budget_cpu_s"], found["signals_cpu_s"] = budget, asked
    for seed in options.seeds:
        for method in options.only:
            if any((r["method"], r["seed"]) == (method, seed) for r in found["rows"]):
                continue
            left = budget - (0.0 if method in _UNTAUGHT else asked)
            epochs = max(1, round(left / found["epoch_cpu_s"][method]))
            row = cell(method, seed, epochs, base, options)
            found = measured(options.out) | {
                key: found[key] for key in ("budget_cpu_s", "signals_cpu_s")
            }
            found["rows"].append(row)
            _write(options.out, found)
            print(json.dumps(row), flush=True)


def _write(path: Path, found: dict[str, Any]) -> None:
    write_json(path, found | {"command": command(), "machine": machine()})


def table(path: Path) -> None:
    """Print means, and paired differences to no teacher and to plain KD with 95 % intervals."""
    found = measured(path)
    rows: dict[str, dict[int, float]] = {}
    for row in found["rows"]:
        rows.setdefault(row["method"], {})[row["seed"]] = row["test"]
    print("| method | seeds | epochs | test | to no teacher | to KD |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        if method in rows:
            mine = rows[method]
            epochs = {r["epochs"] for r in found["rows"] if r["method"] == method}
            differences = [apart(mine, rows.get(other, {})) for other in ("no teacher", "kd")]
            print(
                f"| {method} | {len(mine)} | {'/'.join(map(str, sorted(epochs)))} "
                f"| {statistics.mean(mine.values()):.2%} | {differences[0]} | {differences[1]} |"
            )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=8, help="of KD; the others by time")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        run(options)
    table(options.out)


if __name__ == "__main__":
    main()
