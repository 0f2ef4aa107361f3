"""Once taught, many sizes: cuts of one elastic student beside students that are taught each alone.

python benchmarks/elastic.py [--set fashion|digits] [--seeds 0 1 2]
python benchmarks/elastic.py --table

The elastic student (`tutelage.train.elastic`) is taught once, by the sandwich rule; at each of four
sizes its first channels are cut out, norms recalibrated, and judged as they are and after a little
further teaching. Everything starts from channels of the same teacher (`fresh` apart), and learns by
DIST from the same signals, data, views and batches, one thread:

elastic, cut        a cut of the elastic student, not taught further
elastic, N more     taught for N epochs more, at a third of the rate
slice, N epochs     a slice of the teacher of that size, taught for N epochs at that rate
same time           such a slice, taught for a quarter of the elastic student's seconds
whole schedule      such a slice, taught for as many epochs as the elastic student
fresh               the same with fresh weights

`fashion` is 10,000 images of Fashion-MNIST (2,000 to validate) and
benchmarks/teachers/fashion-mnist, `digits` the set of the demo with a teacher that is fitted first,
of the same seed. Seconds are the processor's, of teaching and choosing channels alone. The test
split is read once, by the network in torch. Resumable by (set, seed, arm, size); lines go to
benchmarks/results/elastic.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from common import (
    FASHION_MNIST,
    HERE,
    TEACHER,
    add_row,
    fashion_mnist,
    rows_of,
    run_or_table,
)
from torch import nn

from tutelage.files import read_tensors, write_tensors
from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.inheriting import own_network
from tutelage.pipeline.lessons import batch_for, schedule_of
from tutelage.pipeline.material import Material, material_of, read_material, some_examples
from tutelage.pipeline.teaching import Taught, teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.slices.elastic import cut_of, ordered
from tutelage.students.spec import StudentSpec, sliced_from
from tutelage.train.distill import Distillation, decisions
from tutelage.train.elastic import ElasticLesson
from tutelage.train.loop import Trainer

RESULTS = HERE / "results" / "elastic.json"
WORK = HERE / ".work" / "elastic"
SIZES: dict[str, list[tuple[int, ...]]] = {
    "fashion": [(16, 32, 64), (12, 24, 48), (8, 16, 32), (4, 8, 16)],
    "digits": [(16, 32), (12, 24), (8, 16), (4, 8)],
}
DEPTH, EPOCHS = {"fashion": 1, "digits": 2}, {"fashion": 4, "digits": 40}
MORE = {"fashion": (1,), "digits": (2,)}
ARMS = (
    "elastic", "elastic, cut", "elastic, 1 more", "elastic, 2 more", "slice, 1 epochs",
    "slice, 2 epochs", "same time", "whole schedule", "fresh",
)  # fmt: skip
_NORMS = 1_024  # examples that renew norms


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every arm of one seed has at hand."""

    which: str
    seed: int
    recipe: Recipe
    material: Material
    taught: Taught

    def spec(self, size: tuple[int, ...]) -> StudentSpec:
        """Return the student of these widths."""
        knobs = {k: list(v) if isinstance(v, tuple) else v for k, v in self.material.knobs.items()}
        depths = [DEPTH[self.which]] * len(size)
        return StudentSpec.from_json(
            {**knobs, "family": "convnet", "widths": list(size), "depths": depths}
        )

    def slice(self, size: tuple[int, ...]) -> Any:
        """Return the teacher's channels of that size."""
        own = own_network(self.taught.teacher, self.material.shape)
        assert own is not None
        return sliced_from(own[0], self.spec(size), some_examples(self.material))


def recipe_of(which: str, seed: int) -> Recipe:
    """Return the recipe of one seed."""
    fashion = which == "fashion"
    teacher = {"source": str(TEACHER)} if fashion else {"fit": True, "epochs": 40}
    return Recipe.parse(
        {
            "seed": seed,
            "data": {"train": FASHION_MNIST if fashion else "digits"},
            "teacher": teacher,
            "augment": {"views": 4, "flip": True} if fashion else {},
            "distill": {"precision": "float32"},
            "threads": 1,
        }
    )


def ground_of(which: str, seed: int) -> Ground:
    """Read the data and ask the teacher."""
    recipe = recipe_of(which, seed)
    if which == "digits":
        material = read_material(recipe)
    else:
        base = fashion_mnist(FASHION_MNIST, examples=10_000, flip=True, shift=2, views=4)
        few = base.data.validation.take(torch.arange(2_000).numpy())
        material = material_of(base.task, dataclasses.replace(base.data, validation=few), recipe)
    folder = WORK / f"{which}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with Run(folder) as run:
        taught = teach(recipe, material, run, Silent(), trust_code=False)
    return Ground(which=which, seed=seed, recipe=recipe, material=material, taught=taught)


def learn(
    ground: Ground, network: nn.Module, epochs: int, kind: type[Any] = Distillation,
    rate: float | None = None, **more: Any,
) -> None:  # fmt: skip
    """Teach a student from the teacher's signals."""
    material, recipe = ground.material, ground.recipe
    lesson = kind(
        network, Objective((Term(name="dist", weight=1.0),)), material.train,
        material.validation, signals=ground.taught.train, classes=material.outputs,
        views=material.views, batch=batch_for(recipe, material.train.count), seed=ground.seed,
        **more,
    )  # fmt: skip
    changes = {} if rate is None else {"rate": rate}
    schedule = schedule_of(recipe, epochs=epochs, seed=ground.seed, **changes)
    Trainer(lesson, schedule, progress=Silent()).train()


def elastic_student(ground: Ground) -> Any:
    """Teach the elastic student, and keep it."""
    sizes = SIZES[ground.which]
    network: Any = ordered(ground.slice(sizes[0]), some_examples(ground.material))
    learn(
        ground, network, EPOCHS[ground.which], ElasticLesson,
        smaller=Objective((Term(name="dist", weight=1.0),)), least=ground.spec(sizes[-1]).knobs,
        norms=some_examples(ground.material, _NORMS),
    )  # fmt: skip
    write_tensors(WORK / f"{ground.which}-{ground.seed}.safetensors", network.state_dict())
    return network


def student(ground: Ground, arm: str, size: tuple[int, ...], rows: list[Any]) -> tuple[Any, int]:
    """Return one student as the arm makes it, and the epochs that it was taught for."""
    spec, epochs, rate = ground.spec(size), EPOCHS[ground.which], ground.recipe.distill.rate
    if "more" in arm or "epochs" in arm:
        epochs, rate = int(arm.split()[1]), rate / 3
    if arm.startswith("elastic"):
        network: Any = ground.spec(SIZES[ground.which][0]).build()
        path = WORK / f"{ground.which}-{ground.seed}.safetensors"
        network.load_state_dict(read_tensors(path)[0])
        network = cut_of(network, spec.knobs, some_examples(ground.material, _NORMS))
        if arm == "elastic, cut":
            return network, 0
    elif arm == "fresh":
        torch.manual_seed(ground.seed)
        network = spec.build()
    else:
        network = ground.slice(size)
    if arm == "same time":
        mine = [r for r in rows if (r["set"], r["seed"]) == (ground.which, ground.seed)]
        whole = next(r["cpu_s"] for r in mine if r["arm"] == "elastic")
        one = next(r for r in mine if r["arm"].startswith("slice") and r["size"] == list(size))
        epochs = max(1, round(whole / len(SIZES[ground.which]) / (one["cpu_s"] / one["epochs"])))
    learn(ground, network, epochs, rate=rate)
    return network, epochs


def cell(ground: Ground, arm: str, size: tuple[int, ...], rows: list[Any]) -> dict[str, Any]:
    """Return one line."""
    started = time.process_time()
    if arm == "elastic":
        network, epochs = elastic_student(ground), EPOCHS[ground.which]
    else:
        network, epochs = student(ground, arm, size, rows)
    spent = time.process_time() - started
    row = {
        "set": ground.which, "seed": ground.seed, "arm": arm, "size": list(size), "epochs": epochs,
        "parameters": sum(p.numel() for p in network.parameters()), "cpu_s": spent,
    }  # fmt: skip
    for split in ("validation", "test"):
        said = decisions(network, getattr(ground.material, split)).argmax(-1).numpy()
        row[split] = float((said == getattr(ground.material.data, split).labels).mean())
    return row


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    for seed in options.seeds:
        ground = None
        for arm in options.only or arms_of(options.set):
            for size in SIZES[options.set][: 1 if arm == "elastic" else None]:
                key = (options.set, seed, arm, list(size))
                if any((r["set"], r["seed"], r["arm"], r["size"]) == key for r in rows_of(RESULTS)):
                    continue
                ground = ground or ground_of(options.set, seed)
                row = cell(ground, arm, size, rows_of(RESULTS))
                add_row(RESULTS, row)
                print(json.dumps(row), flush=True)


def arms_of(which: str) -> list[str]:
    """Return the arms of a set, but for `fresh`, in the order in which they must be measured."""
    more = MORE[which]
    return [
        "elastic", "elastic, cut", *(f"elastic, {n} more" for n in more),
        *(f"slice, {n} epochs" for n in more), "same time", "whole schedule",
    ]  # fmt: skip


def table() -> None:
    """Print the mean test figure at every size, and seconds in all, an arm a line."""
    for which, sizes in SIZES.items():
        mine = [r for r in rows_of(RESULTS) if r["set"] == which]
        if not mine:
            continue
        names = " | ".join("-".join(map(str, size)) for size in sizes)
        print(f"\n| {which} | seeds | {names} | mean | processor s, all sizes |")
        print("|---|---|" + "---|" * (len(sizes) + 2))
        for arm in ARMS[1:]:
            rows = [r for r in mine if r["arm"] == arm]
            if not rows:
                continue
            seeds = {r["seed"] for r in rows}
            spent = sum(r["cpu_s"] for r in rows) / len(seeds)
            if arm.startswith("elastic"):
                once = [r["cpu_s"] for r in mine if r["arm"] == "elastic" and r["seed"] in seeds]
                spent += statistics.mean(once)
            by_size = [[r["test"] for r in rows if r["size"] == list(size)] for size in sizes]
            shown = " | ".join(f"{statistics.mean(x):.2%}" if x else "" for x in by_size)
            mean = statistics.mean(r["test"] for r in rows)
            print(f"| {arm} | {len(seeds)} | {shown} | {mean:.2%} | {spent:.0f} |")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--set", choices=list(SIZES), default="fashion")
    parser.add_argument("--only", nargs="*", choices=ARMS, help="in the order in which they depend")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
