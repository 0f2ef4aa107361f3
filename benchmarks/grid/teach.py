"""One job in a process of its own, with one thread: a teacher, a clock, a search or a cell."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.grid.domains import DOMAINS, WORK, Domain
from benchmarks.grid.jobs import BASE, SEARCH_SEED, Job, searches
from benchmarks.grid.material import (
    labelled_alone,
    material_for,
    recipe_of,
    student_for,
    teacher_of,
)
from benchmarks.grid.methods import METHODS, Method
from benchmarks.grid.others import Lesson, by_tool
from tutelage.devices import load_device
from tutelage.errors import TutelageError
from tutelage.export.onnx_float import export_onnx
from tutelage.files import write_json
from tutelage.measure.costs import graph_figures
from tutelage.pipeline.inheriting import own_network
from tutelage.pipeline.learning import distill
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.planning import Chosen, meta_of
from tutelage.pipeline.teaching import Taught, teach
from tutelage.progress import Silent
from tutelage.run import Run, processor_name
from tutelage.students import spec as students
from tutelage.students.spec import StudentSpec, sliced_from
from tutelage.train.distill import decisions

ENERGY_DEVICE = "raspberry-pi-4"
_ROUNDS, _SHORT_S = 2, 8.0  # readings of a time, where one takes less than so long
Rows = dict[str, dict[str, Any]]


def work(job: Job, before: Rows, answer: Path, log: Path) -> None:
    """Do a job and write its row to `answer`; `before` are the rows of what it needs.

    The entry of a child process: whatever goes wrong becomes a row with one line of reason.
    """
    with log.open("w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        torch.set_num_threads(1)
        clock, wall = time.process_time(), time.perf_counter()
        try:
            row = {"state": "done", **_DOES[job.kind](job, DOMAINS[job.domain], before)}
        except Exception as error:  # noqa: BLE001 (the grid goes on, the row says why)
            traceback.print_exc()
            row = {"state": "failed", "reason": reason_of(error)}
        spent = {"cpu_s": time.process_time() - clock, "wall_s": time.perf_counter() - wall}
        where = {"cpu": processor_name(), "torch": str(torch.__version__)}
        sys.stdout.flush()
        write_json(answer, {**spent, **row, **where})


def reason_of(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; free some and run again"
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    return line if isinstance(error, TutelageError) else f"{type(error).__name__}: {line}"


def fit(job: Job, domain: Domain, before: Rows) -> dict[str, Any]:
    """Fit the domain's teacher, or look at the committed one."""
    material = material_for(domain, recipe_of(domain, 0))
    network = teacher_of(job.domain, domain)
    return {
        "test": right_on_test(network, material),
        "parameters": sum(p.numel() for p in network.parameters()),
        "fingerprint": students.weights_hash(network)[:12],
        "counts": [s.count for s in (material.train, material.validation, material.test)],
    }


def describe(job: Job, domain: Domain, before: Rows) -> dict[str, Any]:
    """Return the student of a size, and what one inference of it is estimated to take."""
    material = material_for(domain, recipe_of(domain, 0))
    spec = student_for(domain, job.size, material, teacher_of(job.domain, domain))
    network = spec.build().eval()
    found: dict[str, Any] = {
        "spec": spec.to_json(),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    meta = meta_of(recipe_of(domain, 0), material)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        export_onnx(network, material.shape, path, meta=meta)
        figures = {f.name: f for f in graph_figures(path, load_device(ENERGY_DEVICE))}
    if "energy_j" in figures:
        found |= {"energy": figures["energy_j"].to_json(), "energy_device": ENERGY_DEVICE}
    return found


def ask(job: Job, domain: Domain, before: Rows) -> dict[str, Any]:
    """Measure how much longer asking for features or maps takes than for the decision alone."""
    rounds: list[tuple[float, ...]] = []
    while _goes_on(rounds):
        rounds.append(tuple(_asking(job.domain, domain, asks) for asks in ("decision", job.method)))
    plain, more = (min(times) for times in zip(*rounds, strict=True))
    return {"ratio": more / plain}


class _Epochs(Silent):
    """Notes the processor time at the end of every epoch."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Note the time where an epoch is judged, which is no step."""
        if steps == 0:
            self.ends.append(time.process_time())


def measure_epoch(job: Job, domain: Domain, before: Rows) -> dict[str, Any]:
    """Measure the processor seconds of an epoch, and what a lesson takes besides its epochs.

    Of plain KD, with what asking takes; of another method, beside KD in turn, so that a machine
    that is slower at this time changes neither. The least of several readings counts where a round
    is short, else the only one. `ratio` and `fixed` are in epochs of KD.
    """
    epochs = 2 + domain.epochs // 10

    def times_of(method: str) -> tuple[float, float]:
        own = replace(job, method=method)
        lesson = _lesson(own, domain, before, epochs=epochs, setting=0, seed=SEARCH_SEED)
        return lesson.seconds, min(b - a for a, b in itertools.pairwise(lesson.ends))

    rounds: list[tuple[float, ...]] = []
    while _goes_on(rounds):
        if job.method == BASE:
            first = (_asking(job.domain, domain, "decision"),)
        else:
            first = times_of(BASE)
        rounds.append((*first, *times_of(job.method)))
    *first, whole, epoch = (min(times) for times in zip(*rounds, strict=True))
    fixed = max(0.0, whole - epochs * epoch)
    if job.method == BASE:
        return {"asked_s": first[0], "epoch_s": epoch, "fixed_s": fixed}
    return {"ratio": epoch / first[1], "fixed": fixed / first[1]}


def _goes_on(rounds: list[tuple[float, ...]]) -> bool:
    short = bool(rounds) and sum(rounds[0]) < _SHORT_S
    return len(rounds) < (_ROUNDS if short else 1)


def _asking(name: str, domain: Domain, asks: str) -> float:
    """Return the processor seconds of asking a teacher who has not been asked yet."""
    recipe = recipe_of(domain, SEARCH_SEED, {"losses": _LOSSES_THAT_ASK[asks]})
    material, module = material_for(domain, recipe), teacher_of(name, domain)
    with _scratch() as folder, Run(folder) as run:
        started = time.process_time()
        teach(recipe, material, run, Silent(), trust_code=False, module=module)
        return time.process_time() - started


def search(job: Job, domain: Domain, before: Rows) -> dict[str, Any]:
    """Teach for half the time with one setting and a seed of its own; no test split is read."""
    epochs = max(1, epochs_for(job, domain, before) // 2)
    lesson = _lesson(job, domain, before, epochs=epochs, setting=job.seed, seed=SEARCH_SEED)
    return {"validation": max(lesson.figures), "epochs": epochs}


def cell(job: Job, domain: Domain, before: Rows) -> dict[str, Any]:
    """Teach one student with the setting that the search chose, and test it once."""
    epochs, setting = epochs_for(job, domain, before), chosen_setting(job, before)
    lesson = _lesson(job, domain, before, epochs=epochs, setting=setting, seed=job.seed)
    return {
        "test": right_on_test(lesson.network, lesson.material),
        "validation": max(lesson.figures),
        "best_epoch": lesson.best_epoch,
        "epochs": epochs,
        "setting": METHODS[job.method].settings[setting],
        "asked_s": asked_s(job, before),
        "taught_s": lesson.seconds,
    }


def epochs_for(job: Job, domain: Domain, before: Rows) -> int:
    """Return how many epochs fit into what plain KD takes for its own, asking included."""
    clock = Job(kind="clock", domain=job.domain, size=job.size, method=BASE)
    base, own = (before[replace(clock, method=m).key] for m in (BASE, job.method))
    budget = base["asked_s"] + base["fixed_s"] + domain.epochs * base["epoch_s"]
    epoch = base["epoch_s"] * own.get("ratio", 1.0)
    fixed = base["epoch_s"] * own["fixed"] if "fixed" in own else own["fixed_s"]
    return max(1, round((budget - asked_s(job, before) - fixed) / epoch))


def asked_s(job: Job, before: Rows) -> float:
    """Return the processor seconds that asking takes for this method; none if it asks nothing."""
    asks = METHODS[job.method].asks
    if not asks:
        return 0.0
    clock = Job(kind="clock", domain=job.domain, size=job.size, method=BASE)
    plain = before[clock.key]["asked_s"]
    if asks == "decision":
        return plain
    return plain * before[Job(kind="asking", domain=job.domain, method=asks).key]["ratio"]


def chosen_setting(job: Job, before: Rows) -> int:
    """Return the number of the best setting on validation; the first of equals, 0 unsearched."""
    if not job.searched:
        return 0
    found = [before[s.key]["validation"] for s in searches(job.domain, job.size, job.method)]
    return found.index(max(found)) if found else 0


def right_on_test(network: torch.nn.Module, material: Material) -> float:
    """Return the share of the test split on which the network is right."""
    decided = decisions(network, material.test).argmax(-1).numpy()
    return float((decided == material.data.test.labels).mean())


def _lesson(
    job: Job, domain: Domain, before: Rows, *, epochs: int, setting: int, seed: int
) -> Lesson:
    """Teach one student."""
    method = METHODS[job.method]
    spec = StudentSpec.from_json(
        before[Job(kind="student", domain=job.domain, size=job.size).key]["spec"]
    )
    teacher = teacher_of(job.domain, domain)
    part = {**method.recipe_part(setting, domain.rate), "epochs": epochs}
    if method.tool:
        recipe = recipe_of(domain, seed, {"epochs": epochs, "rate": part["rate"]})
        with _scratch() as folder:
            return by_tool(method.tool, recipe, domain, spec, teacher, part["losses"], folder)
    recipe = recipe_of(domain, seed, part, method.mixup)
    material = material_for(domain, recipe)
    if not method.asks and domain.labels is not None:
        material = labelled_alone(material)
    with _run(job, method.asks or "decision", seed) as run:
        lock = FileLock(_signals(job.domain, seed, method.asks or "decision").with_suffix(".lock"))
        with lock:  # others that ask the same wait, and find the answers
            taught = teach(recipe, material, run, Silent(), trust_code=False, module=teacher)
        started, seen = time.process_time(), _Epochs()
        chosen = _student(spec, method, taught, material, seed)
        learned = distill(recipe, material, taught, chosen, run, seen)
        seconds, history = time.process_time() - started, learned.result["history"]
    return Lesson(
        network=learned.network, material=material, figures=history["figure"],
        best_epoch=history["best_epoch"], seconds=seconds, ends=seen.ends,
    )  # fmt: skip


def _student(
    spec: StudentSpec, method: Method, taught: Taught, material: Material, seed: int
) -> Chosen:
    torch.manual_seed(seed)
    network = spec.build()
    weights = None
    if method.sliced:
        own = own_network(taught.teacher, material.shape)
        assert own is not None
        weights = dict(sliced_from(own[0], spec, some_examples(material)).state_dict())
    count = sum(p.numel() for p in network.parameters())
    return Chosen(spec=spec, network=network, parameters=count, warm=None, weights=weights)


def _signals(domain: str, seed: int, asks: str) -> Path:
    return WORK / "signals" / domain / f"{seed}-{asks}"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Return a folder of this job alone, gone afterwards."""
    (WORK / "runs").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK / "runs", prefix=f"{os.getpid()}-") as name:
        yield Path(name)


@contextlib.contextmanager
def _run(job: Job, asks: str, seed: int) -> Iterator[Run]:
    """Open a run directory for this job; what the teacher says is shared, the rest goes."""
    shared = _signals(job.domain, seed, asks)
    shared.mkdir(parents=True, exist_ok=True)
    with _scratch() as folder:
        (folder / "signals").symlink_to(shared.resolve())
        with Run(folder) as run:
            yield run


_LOSSES_THAT_ASK: dict[str, dict[str, Any]] = {
    "decision": {"dist": 1.0},
    "features": {"dist": 1.0, "features": "auto"},
    "maps": {"dist": 1.0, "attention": "auto"},
}
_DOES: dict[str, Callable[[Job, Domain, Rows], dict[str, Any]]] = {
    "teacher": fit, "student": describe, "asking": ask, "clock": measure_epoch,
    "search": search, "cell": cell,
}  # fmt: skip
