"""Twelve budgets over five devices: are limits kept, and how good is what ships, by search.

python benchmarks/budgets.py [--set fashion|digits|series|leaves|texts] [--only compact width ...]
                             [--seeds 0 1 2] [--budgets 0 3 7]
python benchmarks/budgets.py --table

Every cell is one whole run of the product with one budget: candidates, short distillations, one
full distillation, export, proof. The budgets of an arm and seed share a run directory, so signals,
scores and students taught before are at hand as they are for a user who changes a limit. Arms:

compact       the families of the task, fresh weights
width         the teacher's structure with fewer channels, the same share everywhere; fresh weights
magnitude     the same structure, starting from the teacher's channels of the largest weights as cut
fitted        the same structure, starting from a slice of the teacher as the product makes it
width2, magnitude2, fitted2
              the same for twice the epochs
teacher       compact, and what is part of the teacher starts from a slice of it
nearest       compact, starting from the smallest student taught before that holds the new one,
              for a quarter or a half of the epochs
sliced        slices of the teacher, layers fitted to its own
auto          compact families and slices of the teacher side by side, starting as `nearest` does
auto2         auto for 1.8 times the epochs, each budget as if it were the first: with its search
              about the time of width2 and the like

The sets are those of benchmarks/budget_sets.py. Seconds are the processor's, of this budget alone;
the first budget's hold the teacher's fitting, too. A plan was falsely feasible where its artifact
missed a limit, so that it was tightened. Regret is the test figure against the best of all arms and
seeds for that budget. Resumable; lines go to benchmarks/results/budgets.json. Rows taught by DIST
alone, the default before, are in budgets_dist.json; those of fresh texts' students at a rate that
was too high say so (`rate`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from budget_sets import SETS
from common import HERE, add_row, rows_of, run_or_table

from tutelage.devices import load_device
from tutelage.errors import InfeasibleError
from tutelage.files import read_json
from tutelage.pipeline import run_recipe
from tutelage.pipeline.feasible import teacher_spec
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import budget_of, costing_of
from tutelage.plan.candidate import most_parameters
from tutelage.plan.sliced import depths, widest_slice
from tutelage.recipe import Recipe
from tutelage.students.slices import channels, convnet

RESULTS = HERE / "results" / "budgets.json"
WORK = HERE / ".work" / "budgets"
ARMS: dict[str, dict[str, Any]] = {
    "compact": {"space": "compact", "start": "fresh"},
    "width": {"start": "fresh"},
    "magnitude": {"start": "teacher"},
    "fitted": {"start": "teacher"},
    "width2": {"start": "fresh"},
    "magnitude2": {"start": "teacher"},
    "fitted2": {"start": "teacher"},
    "teacher": {"space": "compact", "start": "teacher"},
    "nearest": {"space": "compact", "start": "nearest"},
    "sliced": {"space": "sliced"},
    "auto": {"space": "auto"},
    "auto2": {"space": "auto", "start": "fresh"},
}
TIMES = {"width2": 2, "magnitude2": 2, "fitted2": 2, "auto2": 1.8}


def scaled_teacher(recipe: Recipe, material: Material) -> dict[str, Any]:
    """Return the spec of the teacher's structure at the widest share that fits, as JSON."""
    parameters, whole, why = teacher_spec(recipe, material, trust_code=False)
    assert whole is not None, why
    device = load_device(recipe.device)
    costing = costing_of(recipe, material, device, budget_of(recipe, device, 4 * parameters))
    for depth in depths(whole):
        found, _ = widest_slice(depth, costing, most_parameters(parameters))
        if found is not None:
            given: Any = json.loads(json.dumps(found.spec.to_json()))
            return {k: v for k, v in given.items() if k not in material.knobs}
    raise InfeasibleError("the teacher's structure fits at no width")


def by_magnitude(members: Any, _: Any, count: int) -> torch.Tensor:
    """Weigh channels that go together by the sum of their filters' absolute weights.

    Source: Li et al., Pruning filters for efficient ConvNets (ICLR 2017), section 3.1.
    """
    weights = torch.zeros(count)
    for module, own, root in members:
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear):
            sums = module.weight.detach().flatten(1).abs().sum(1)
            weights.index_add_(0, torch.tensor(root), sums[own])
    return weights


@contextmanager
def pruned_by_magnitude() -> Iterator[None]:
    """Within this, slices keep the channels of the largest weights, and no layer is fitted."""
    with (
        mock.patch.object(channels, "_weigh", by_magnitude),
        mock.patch.object(convnet, "fit", lambda *_: None),
        mock.patch.object(convnet, "rescale", lambda *_: None),
    ):
        yield


def cell(which: str, arm: str, seed: int, number: int, material: Material) -> dict[str, Any]:
    """Run one budget; return its line."""
    chosen = SETS[which]
    folder = WORK / f"{which}-{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    shared = WORK / f"{which}-{seed}-signals"
    shared.mkdir(exist_ok=True)
    if not (folder / "signals").exists():  # the arms ask the teacher the same
        (folder / "signals").symlink_to(shared)
    row: dict[str, Any] = {
        "set": which, "arm": arm, "seed": seed, "budget": number,
        "device": chosen.budgets[number][0], "limits": chosen.budgets[number][1],
    }  # fmt: skip
    started = time.process_time()
    try:
        times = TIMES.get(arm, 1)
        recipe = chosen.of(number, seed, ARMS[arm], times)
        if arm.startswith(("width", "magnitude", "fitted")):
            spec = scaled_teacher(recipe, material)
            recipe = chosen.of(number, seed, ARMS[arm] | {"spec": spec}, times)
        with pruned_by_magnitude() if arm.startswith("magnitude") else nullcontext():
            result = run_recipe(recipe, folder, material=material)
    except InfeasibleError as error:
        return {**row, "status": "infeasible", "why": str(error)}
    stages = read_json(folder / "run.json")["stages"]
    last = read_json(folder / "plan.json")["limits"]
    return {
        **row,
        "status": result.proof["status"],
        "tightened": any("tightened" in limit["source"] for limit in last),
        "test": result.figure("student", "accuracy_test").value,
        "teacher": result.figure("teacher", "accuracy_test").value,
        "bytes": result.artifact.stat().st_size,
        "spec": stages["distill"]["result"]["spec"],
        "start": stages["distill"]["result"].get("start"),
        "cpu_s": time.process_time() - started,
        "verdicts": [
            {key: v[key] for key in ("metric", "limit", "value", "kind", "met", "hard")}
            for v in result.proof["verdicts"]
        ],
    }


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for seed in options.seeds:
        for arm in options.only:
            if arm in SETS[options.set].leaves_out:
                continue
            material = SETS[options.set].material(seed)
            for number in options.budgets or range(len(SETS[options.set].budgets)):
                rows = rows_of(RESULTS)
                key = (options.set, arm, seed, number)
                if any((r["set"], r["arm"], r["seed"], r["budget"]) == key for r in rows):
                    continue
                row = cell(*key[:3], number, material)
                add_row(RESULTS, row)
                print(json.dumps({k: v for k, v in row.items() if k != "verdicts"}), flush=True)


def table() -> None:
    """Print a line an arm of each set."""
    print("| set | arm | seeds | budgets | met | false plans | test | regret | processor s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for which in SETS:
        mine = [r for r in rows_of(RESULTS) if r["set"] == which]
        done = [r for r in mine if r["status"] != "infeasible"]
        best = {n: max((r["test"] for r in done if r["budget"] == n), default=0) for n in range(99)}
        for arm in ARMS:
            rows = [r for r in done if r["arm"] == arm]
            if not rows:
                continue
            regret = statistics.mean(best[r["budget"]] - r["test"] for r in rows)
            none = sum(r["arm"] == arm for r in mine) - len(rows)
            print(
                f"| {which} | {arm} | {len({r['seed'] for r in rows})} "
                f"| {len(rows)}{f' ({none} infeasible)' if none else ''} "
                f"| {statistics.mean(r['status'] == 'met' for r in rows):.0%} "
                f"| {statistics.mean(r['tightened'] for r in rows):.0%} "
                f"| {statistics.mean(r['test'] for r in rows):.2%} | {100 * regret:.2f} "
                f"| {statistics.mean(r['cpu_s'] for r in rows):.0f} |"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--set", choices=list(SETS), default="fashion")
    parser.add_argument("--only", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="*", type=int, help="some of the budgets, from 0")


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
