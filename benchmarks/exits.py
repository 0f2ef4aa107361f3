"""Early exits: what teaches branches best, what that costs the final decision, and what it saves.

python benchmarks/exits.py [--arms none labels ...] [--seeds 0 1 2 3 4]
python benchmarks/exits.py --table

Every arm teaches the same student (plain convolutions, 8-10-16 channels, two blocks a stage) by
DIST on part of Fashion-MNIST, from the same first weights; branches stand behind stages 1 and 2,
and are taught by labels, by the teacher's trajectory, or by its final decision. `none` has no
branches; those of `inside` arms have one more behind the first block, where a third of the
operations are done; `narrow` arms are what exits compete with: students with fewer channels and
operations, and no branches. All arms learn for the same epochs; the table says what processor time
that took (one thread; asking the teacher is the same for all and left out). The epoch is chosen on
validation.
Thresholds are then chosen on validation so that stopping early loses at most `--lost` of the
decisions there, at least mean cost in multiply-accumulates (branches included), and read on the
test split once. Every cell keeps its decisions, so `--table` can count again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    FASHION_MNIST,
    HERE,
    TEACHER,
    apart,
    command,
    fashion_mnist,
    interval,
    machine,
    print_table,
)

from tutelage.audit.exits import choose_stops, confidence, stops
from tutelage.export.artifact import ArtifactMeta
from tutelage.export.exits import path_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.files import read_tensors, write_json, write_tensors
from tutelage.pipeline.lessons import schedule_of
from tutelage.pipeline.material import Material, material_of
from tutelage.pipeline.taps import build_lesson, pair_taps
from tutelage.pipeline.teaching import teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.exits import ExitingNetwork, fresh_exits
from tutelage.students.spec import StudentSpec
from tutelage.students.taps import describe_taps
from tutelage.train.distill import decisions, early_decisions
from tutelage.train.loop import Trainer

RESULTS = HERE / "results" / "exits.json"
WORK = HERE / ".work" / "exits"
STAGES = ("stages.0", "stages.1", "stages.2")
INSIDE = ("stages.0.0", *STAGES)


@dataclass(frozen=True, slots=True)
class Arm:
    """What teaches the branches, behind which taps but the last, in a student of which widths."""

    losses: dict[str, Any] = field(default_factory=dict)
    taps: tuple[str, ...] = STAGES
    widths: tuple[int, ...] = (8, 10, 16)

    @property
    def spec(self) -> dict[str, Any]:
        """The student's structure, as JSON."""
        return {
            "family": "convnet", "image": [1, 28, 28], "classes": 10,
            "widths": list(self.widths), "depths": [2, 2, 2],
        }  # fmt: skip


_KL = {"decision_everywhere": {"weight": 1.0, "by": "kl"}}
_TRAJECTORY = {"trajectory": 1.0}
ARMS = {
    "none": Arm(),
    "labels": Arm({"deep_supervision": 1.0}),
    "trajectory": Arm(_TRAJECTORY),
    "decision": Arm({"decision_everywhere": 1.0}),
    "decision by kl": Arm(_KL),
    "both": Arm({"decision_everywhere": 0.5, "trajectory": 0.5}),
    "inside, labels": Arm({"deep_supervision": 1.0}, taps=INSIDE),
    "inside, trajectory": Arm(_TRAJECTORY, taps=INSIDE),
    "inside, decision by kl": Arm(_KL, taps=INSIDE),
    "narrow 7-10-16": Arm(widths=(7, 10, 16)),
    "narrow 7-9-14": Arm(widths=(7, 9, 14)),
    "narrow 6-10-16": Arm(widths=(6, 10, 16)),
}


def recipe_of(arm: str, seed: int, options: argparse.Namespace) -> Recipe:
    """Return the recipe of one cell."""
    return Recipe.parse(
        {
            "seed": seed,
            "data": {"train": FASHION_MNIST},
            "teacher": {"source": str(TEACHER)},
            "augment": {"views": options.views, "flip": True},
            "student": {"spec": ARMS[arm].spec, "taps": list(ARMS[arm].taps)},
            "distill": {
                "losses": {"dist": 1.0, **ARMS[arm].losses}, "epochs": options.epochs,
                "precision": "float32",
            },
            "threads": 1,
        }
    )  # fmt: skip


def cell(arm: str, seed: int, base: Material, options: argparse.Namespace) -> Any:
    """Teach one student, keep its decisions, return its row."""
    recipe = recipe_of(arm, seed, options)
    material = material_of(base.task, base.data, recipe)
    folder = decided(arm, seed).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    (WORK / "signals").mkdir(exist_ok=True)
    if not (folder / "signals").exists():
        (folder / "signals").symlink_to(WORK / "signals")
    with Run(folder) as run:
        taught = teach(recipe, material, run, Silent(), trust_code=False)
        spec = StudentSpec.from_json(ARMS[arm].spec)
        torch.manual_seed(seed)
        network = spec.build()
        started = time.process_time()
        paired = pair_taps(recipe, material, taught, network)
        lesson = build_lesson(recipe, material, taught, network, paired)
        history = Trainer(
            lesson, schedule_of(recipe, epochs=options.epochs, seed=seed),
            checkpoint=run.file("checkpoint.safetensors"),
        ).train()  # fmt: skip
        spent_s = time.process_time() - started
    kept: dict[str, torch.Tensor] = {}
    for name in ("validation", "test"):
        split = getattr(material, name)
        said = early_decisions(lesson, split) if ARMS[arm].losses else ()
        for i, each in enumerate([*(s for s in said if len(s)), decisions(network, split)]):
            kept[f"{name}.{i}"] = each.contiguous()
    write_tensors(decided(arm, seed), kept)
    shutil.rmtree(folder)
    right = kept[f"test.{len(kept) // 2 - 1}"].argmax(1).numpy() == material.data.test.labels
    return {
        "arm": arm, "seed": seed, "taught_cpu_s": spent_s,
        "test": float(right.mean()), "validation": max(history.figure),
    }  # fmt: skip


def decided(arm: str, seed: int) -> Path:
    """Return where a cell's decisions lie: each exit's and the final one, of both splits."""
    return WORK / f"{arm.replace(' ', '_').replace(',', '')}-{seed}.safetensors"


def measured(path: Path) -> dict[str, Any]:
    """Return what was recorded."""
    return json.loads(path.read_text()) if path.exists() else {"rows": []}


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    base = fashion_mnist(
        FASHION_MNIST, examples=options.examples, flip=True, shift=2, views=options.views
    )
    found = measured(options.out)
    settings = {"examples": options.examples, "views": options.views, "epochs": options.epochs}
    if found.setdefault("settings", settings) != settings:
        raise SystemExit(f"{options.out} holds other settings: {found['settings']}; use --out")
    for seed in options.seeds:
        for arm in options.arms:
            if any((r["arm"], r["seed"]) == (arm, seed) for r in found["rows"]):
                continue
            found["rows"].append(cell(arm, seed, base, options))
            write(options.out, found)
            print(json.dumps(found["rows"][-1]), flush=True)


def write(path: Path, found: dict[str, Any]) -> None:
    """Write what was found so far."""
    write_json(path, found | {"command": command(), "machine": machine()})


def costs_of(arm: str) -> Any:
    """Return the multiply-accumulates of every way through the student with its exits."""
    network = StudentSpec.from_json(ARMS[arm].spec).build().eval()
    taps = describe_taps(network, torch.zeros(2, 1, 28, 28), ARMS[arm].taps)
    exits = fresh_exits(taps, 10)
    meta = ArtifactMeta(
        task="vision", classes=tuple("0123456789"), shape=(1, 28, 28), mean=(0.0,), std=(1.0,),
        version="",
    )  # fmt: skip
    path = export_onnx(
        ExitingNetwork(network, exits).eval(), (1, 28, 28), WORK / "e.onnx", meta=meta
    )
    return path_costs(path, lambda counted: counted.macs)


def stopping(arm: str, seed: int, labels: dict[str, np.ndarray], costs: Any, most: float) -> Any:
    """Choose thresholds on validation, and return what they come to there and on test."""
    kept = read_tensors(decided(arm, seed))[0]
    said = {name: [kept[f"{name}.{i}"].numpy() for i in range(len(kept) // 2)] for name in labels}
    right = {
        name: np.stack([x.argmax(1) == labels[name] for x in each]) for name, each in said.items()
    }
    sure = {name: np.stack([confidence(x) for x in each[:-1]]) for name, each in said.items()}
    chosen = choose_stops(sure["validation"], right["validation"], costs, most)
    place = stops(sure["test"], chosen.used, chosen.thresholds)
    asked = [*chosen.used, len(right["test"]) - 1]
    after = np.choose(place, [right["test"][i] for i in asked])
    price = costs(chosen.used)
    mean = float(np.mean([price[i] for i in place]))
    return {
        "branches": [float(r.mean()) for r in right["test"][:-1]],
        "used": list(chosen.used),
        "stopped": float((place < len(chosen.used)).mean()),
        "lost_validation": chosen.lost,
        "lost_test": float(right["test"][-1].mean() - after.mean()),
        "saved": 1 - mean / chosen.whole,
        "operations": mean,
        "test": float(after.mean()),
    }


def table(options: argparse.Namespace) -> None:
    """Print means with 95 % intervals; differences to `none` and `labels` are paired by seed."""
    found = measured(options.out)
    base = fashion_mnist(
        FASHION_MNIST, examples=options.examples, flip=True, shift=2, views=options.views
    )
    labels = {name: np.asarray(getattr(base.data, name).labels) for name in ("validation", "test")}
    costs = {arm: costs_of(arm) for arm in {row["arm"] for row in found["rows"]}}
    for row in found["rows"]:
        if not ARMS[row["arm"]].losses:
            row["operations"] = costs[row["arm"]](())[0]
        elif decided(row["arm"], row["seed"]).exists():
            row["exits"] = {
                str(most): stopping(row["arm"], row["seed"], labels, costs[row["arm"]], most)
                for most in options.lost
            }
    write_json(options.out, found)
    by = {
        arm: {r["seed"]: r for r in found["rows"] if r["arm"] == arm}
        for arm in ARMS
        if any(r["arm"] == arm for r in found["rows"])
    }
    _print_branches(by)
    _print_stops({arm: of for arm, of in by.items() if all("exits" in r for r in of.values())}, by)


Found = dict[str, dict[int, dict[str, Any]]]


def _print_branches(by: Found) -> None:
    tests = {arm: {s: r["test"] for s, r in rows.items()} for arm, rows in by.items()}
    rows = []
    for arm, of in by.items():
        early = [first(row["exits"])["branches"] for row in of.values() if "exits" in row]
        rows.append(
            [
                arm, len(of), f"{statistics.mean(row['taught_cpu_s'] for row in of.values()):.0f}",
                interval([100 * row["test"] for row in of.values()]),
                *(apart(tests[arm], tests.get(other, {})) for other in ("none", "labels")),
                " ".join(f"{100 * x:.1f}" for x in np.mean(early, axis=0)) if early else "",
            ]
        )  # fmt: skip
    head = ["arm", "seeds", "CPU s", "final test", "to none", "to labels", "branches"]
    print_table(head, rows)


def _print_stops(stopped: Found, by: Found) -> None:
    """Print what stopping saves, and beside it what narrower students save."""
    whole = {s: (r["operations"], r["test"]) for s, r in by.get("none", {}).items()}
    rows = [
        [
            arm, f"{float(most):.1%}",
            *(
                interval([100 * r["exits"][most][key] for r in of.values()])
                for key in ("stopped", "saved", "lost_test")
            ),
            *_beside({s: r["exits"][most] for s, r in of.items()}, whole),
        ]
        for arm, of in stopped.items()
        for most in map(str, first(of)["exits"])
    ]  # fmt: skip
    rows += [
        [arm, *[""] * 4, *_beside(of, whole)] for arm, of in by.items() if not ARMS[arm].losses
    ]
    head = ["arm", "may lose", "stop early", "operations saved", "lost on test (points)"]
    print_table([*head, "operations of none's", "test", "to none"], rows)


def _beside(of: dict[int, dict[str, Any]], whole: dict[int, tuple[float, float]]) -> list[str]:
    shares = [100 * r["operations"] / whole[s][0] for s, r in of.items() if s in whole]
    return [
        interval(shares) if shares else "",
        interval([100 * r["test"] for r in of.values()]),
        apart({s: r["test"] for s, r in of.items()}, {s: test for s, (_, test) in whole.items()}),
    ]


def first(rows: dict[Any, Any]) -> Any:
    """Return the first value."""
    return next(iter(rows.values()))


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--lost", nargs="*", type=float, default=[0.001, 0.005])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        run(options)
    table(options)


if __name__ == "__main__":
    main()
