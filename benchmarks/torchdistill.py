"""tutelage beside torchdistill 1.1.5: accuracy on the test set, and seconds an epoch.

Both get the same teacher, the same student with the same first weights, the same images, batch,
normalisation, epochs, SGD with Nesterov momentum, clipping and rate in every step, and the same
loss: alpha * cross entropy + (1 - alpha) * T^2 * KL. Both keep the epoch that is best on validation
and test it once. `--augment none` (the default) shows both the same pixels; with `flip-shift` each
draws its own, tutelage from `--views` stored views. torchdistill trains with its DistillationBox
and the loop of its example; `torchdistill-cached` is the same with its `cache_output` (only for
`none`: its cache knows no views). tutelage's time to fill its cache is shown counted in.

torchdistill has an environment of its own: the first line makes it (about 6 GB). To compare on one
torch, start this script with that environment's python; tutelage is installed there, too.

python benchmarks/tools.py torchdistill
python benchmarks/torchdistill.py [--epochs 10] [--seeds 0 1 2] [--examples 10000]

Resumable: a finished (tool, seed) with the same settings is not run again.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    FASHION_MNIST,
    HERE,
    STUDENTS,
    TEACHER,
    TEACHER_SPEC,
    command,
    fashion_mnist,
    fresh_student,
    machine,
    open_teacher,
    print_table,
    student_spec,
)
from scipy import stats
from tools import TOOLS as OTHERS
from tools import told
from torch import nn
from torchdistill_job import job_for

from tutelage.files import read_json, sha256_file, write_json
from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.material import Material
from tutelage.progress import Silent
from tutelage.students import spec as students
from tutelage.students.spec import StudentSpec
from tutelage.teach.signals import SignalCache
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.train.distill import Distillation, decisions
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule
from tutelage.types import Batch, Reading

TOOLS = ("tutelage", "torchdistill", "torchdistill-cached")
SHIFT, HELD_BATCH = 2, 512


def main() -> None:
    """Run what is missing, print the table, write the result."""
    options = _options()
    if "torchdistill-cached" in options.tools and options.augment != "none":
        raise SystemExit("torchdistill's cache knows no views: use it with --augment none only")
    torch.set_num_threads(options.threads)
    teacher, named = open_teacher(options.teacher)
    varied = options.augment != "none"
    material = fashion_mnist(
        options.data, examples=options.examples, flip=varied, shift=SHIFT if varied else 0,
        views=options.views,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="torchdistill-") as name:
        folder = Path(name)
        source = options.teacher
        if not (source / "model.safetensors").is_file():
            source = folder / "teacher"
            students.save(source, StudentSpec(family="convnet", knobs=TEACHER_SPEC), teacher)
        settings = _settings(options, material, sha256_file(source / "model.safetensors"))
        runs = read_json(options.out)["runs"] if options.out.exists() else []
        for seed in options.seeds:
            for tool in options.tools:
                if _find(runs, tool, seed, settings) is None:
                    print(f"{tool}, seed {seed}", file=sys.stderr)
                    if tool == "tutelage":
                        found = _tutelage(seed, settings, material, teacher)
                    else:
                        found = _torchdistill(tool, seed, settings, material, source, folder)
                    runs.append({"tool": tool, "seed": seed, "settings": settings, **found})
                    _write(options.out, runs, named)
    _report(options, runs, settings)
    _write(options.out, runs, named)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=FASHION_MNIST)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="folder of the teacher")
    parser.add_argument("--student", default="78k", choices=list(STUDENTS))
    parser.add_argument("--tools", nargs="+", default=list(TOOLS[:2]), choices=TOOLS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, help="of the training part; all when unset")
    parser.add_argument("--augment", choices=["none", "flip-shift"], default="none")
    parser.add_argument("--views", type=int, default=4, help="that tutelage stores and cycles")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the labels")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in both")
    parser.add_argument("--workers", type=int, default=1, help="of torchdistill's data loaders")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "torchdistill.json")
    return parser.parse_args()


def _settings(options: argparse.Namespace, material: Material, teacher: str) -> dict[str, Any]:
    """Return everything that shapes a run; plain JSON."""
    names = ("student", "epochs", "augment", "batch", "rate", "temperature", "alpha", "threads",
             "workers")  # fmt: skip
    views = 1 if options.augment == "none" else options.views
    return {
        **{name: getattr(options, name) for name in names},
        "views": views, "shift": SHIFT, "warmup": 0.1, "floor": 0.001, "clip": 5.0,
        "examples": material.train.count, "content": material.content, "teacher": teacher,
        "torch": torch.__version__,
    }  # fmt: skip


def _find(
    runs: list[dict[str, Any]], tool: str, seed: int, settings: dict[str, Any]
) -> dict[str, Any] | None:
    same = (r for r in runs if (r["tool"], r["seed"], r["settings"]) == (tool, seed, settings))
    return next(same, None)


def _torchdistill(
    tool: str, seed: int, settings: dict[str, Any], material: Material, teacher: Path, folder: Path
) -> dict[str, Any]:
    first = folder / f"student-{seed}"
    student = fresh_student(settings["student"], seed)
    students.save(first, student_spec(settings["student"]), student)
    schedule, alpha = _schedule(settings, seed), settings["alpha"]
    varied = settings["augment"] != "none"
    loss = {"temperature": settings["temperature"], "alpha": alpha, "reduction": "batchmean"}
    job = job_for(
        material, schedule, {"KDLoss": loss}, folder,
        cache=str(folder / f"cache-{seed}") if tool == "torchdistill-cached" else None,
        teacher=teacher, student=first, workers=settings["workers"],
        shift=SHIFT if varied else 0, flip=varied,
    )  # fmt: skip
    return told("torchdistill", job)


class _Timed(Distillation):
    """Notes when an epoch begins, when its training ends and when its validation ends."""

    marks: list[dict[str, float]]

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Batch, Reading | None]]:
        """Note the beginning, then go on as usual."""
        self.marks.append({"begin": time.perf_counter(), "begin_cpu": _cpu_s()})
        yield from super().batches(epoch, first)

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Note the end of training and of validation."""
        self.marks[-1] |= {"trained": time.perf_counter(), "trained_cpu": _cpu_s()}
        figure = super().evaluate(modules)
        self.marks[-1]["end"] = time.perf_counter()
        return figure


def _tutelage(
    seed: int, settings: dict[str, Any], material: Material, network: nn.Module
) -> dict[str, Any]:
    student, alpha = fresh_student(settings["student"], seed), settings["alpha"]
    objective = Objective(
        (
            Term(name="kl", weight=1 - alpha, options={"temperature": settings["temperature"]}),
            Term(name="cross_entropy", weight=alpha),
        )
    )
    schedule = _schedule(settings, seed)
    teacher = TorchTeacher(network, classes=10, image_shape=(1, 28, 28))
    with tempfile.TemporaryDirectory() as name:
        begin = time.perf_counter()
        cache = SignalCache(
            Path(name), material.train, views=settings["views"], features=False, maps=False,
            teacher=teacher,
        )  # fmt: skip
        cache.fill(Silent())
        fill_s = time.perf_counter() - begin
        lesson = _Timed(
            student, objective, material.train, material.validation, signals=cache, classes=10,
            views=settings["views"], batch=settings["batch"], seed=seed,
        )  # fmt: skip
        lesson.marks = []
        history = Trainer(lesson, schedule, checkpoint=Path(name) / "state.safetensors").train()
    right = decisions(student, material.test).argmax(-1).numpy() == material.data.test.labels
    epochs = [
        {"train_s": m["trained"] - m["begin"], "train_cpu_s": m["trained_cpu"] - m["begin_cpu"],
         "whole_s": m["end"] - m["begin"], "loss": loss, "validation": figure}
        for m, loss, figure in zip(lesson.marks, history.loss, history.figure, strict=True)
    ]  # fmt: skip
    return {
        "test": float(right.mean()), "epochs": epochs, "fill_s": fill_s,
        "versions": machine(("accelerate",))["versions"], "threads": torch.get_num_threads(),
    }  # fmt: skip


def _schedule(settings: dict[str, Any], seed: int) -> Schedule:
    return Schedule(
        epochs=settings["epochs"], batch=settings["batch"], optimizer="sgd", shape="cosine",
        rate=settings["rate"], weight_decay=0.0, warmup=settings["warmup"],
        floor=settings["floor"], ema=0.0, clip=settings["clip"], precision="float32", seed=seed,
    )  # fmt: skip


def _report(
    options: argparse.Namespace, runs: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    rows, accuracy = [], {}
    for tool in options.tools:
        found = [_find(runs, tool, seed, settings) for seed in options.seeds]
        mine = [run for run in found if run is not None]
        accuracy[tool] = np.array([run["test"] for run in mine])
        epochs = [epoch for run in mine for epoch in run["epochs"]]
        fill = float(np.median([run["fill_s"] for run in mine])) / settings["epochs"]
        train, cpu, whole = (
            float(np.median([e[k] for e in epochs])) for k in ("train_s", "train_cpu_s", "whole_s")
        )
        spread = accuracy[tool].std(ddof=1) if len(mine) > 1 else float("nan")
        rows.append((
            tool, mine[0]["versions"]["torch"], len(mine), f"{100 * accuracy[tool].mean():.2f} %",
            f"{100 * spread:.2f}", f"{train:.2f} s", f"{train + fill:.2f} s", f"{cpu:.2f} s",
            f"{whole:.2f} s",
        ))  # fmt: skip
    print_table(
        ("tool", "torch", "seeds", "test", "sd", "epoch", "with cache filled", "CPU an epoch",
         "with validation"),
        rows,
    )  # fmt: skip
    for other in [tool for tool in options.tools if tool != "tutelage" and "tutelage" in accuracy]:
        apart = 100 * (accuracy["tutelage"] - accuracy[other])
        if len(apart) > 1:
            half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
            print(f"tutelage - {other}: {apart.mean():+.2f} points, 95 % interval +-{half:.2f}")
    if len({row[1] for row in rows}) > 1:
        python = OTHERS["torchdistill"].python
        print(f"two versions of torch; for one, start this script with {python}")


def _write(path: Path, runs: list[dict[str, Any]], teacher: str) -> None:
    where = machine(("accelerate",))
    write_json(path, {"command": command(), "machine": where, "teacher": teacher, "runs": runs})


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
