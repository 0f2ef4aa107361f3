"""What the training loop costs, and what the signal cache saves.

1. Seconds a step of tutelage's `Trainer` and `Distillation` (signals from the cache) against a bare
   PyTorch loop that does the same mathematics: model, loss, AdamW, schedule, clipping, averaged
   weights. Both read the same ready-made batches, so nothing hides the cost of the loop. Each block
   is one epoch from the same weights, the two in turn (A B A B); after the first pair the weights
   of both are compared, so that the mathematics is known to be the same. Aim: at most 1.10.
2. Training from the cache against the teacher in the loop (`LiveSignals`), augmentation included.
   Aim: at most 0.5. Every question to the teacher is counted: one for each example and view.

python benchmarks/loop.py [--students 20k 78k] [--losses dist kl] [--blocks 8] [--steps 100]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    FASHION_MNIST,
    HERE,
    STUDENTS,
    TEACHER,
    command,
    fashion_mnist,
    fresh_student,
    machine,
    open_teacher,
    print_table,
    ratio_of_medians,
    write_result,
)
from torch import Tensor, nn

from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.material import Material
from tutelage.progress import Silent
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.train.distill import Distillation
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule
from tutelage.types import Batch, Reading

BATCH, VIEWS = 128, 2
SCHEDULE = Schedule(epochs=1, batch=BATCH, rate=1e-2, checkpoint_s=1e9)


class Clock(Silent):
    """A progress that notes when each step ended: by the clock, and in CPU time of all threads.

    On a machine that does other work besides, CPU time is the steadier of the two.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Note the beginning."""
        self.marks = []
        self.advance()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Note the end of a step; the end of an epoch is none."""
        if steps:
            self.marks.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> tuple[list[float], list[float]]:
        """Return wall and CPU seconds of each step but the first, which warms up."""
        wall, cpu = np.diff(np.array(self.marks), axis=0)[1:].T.tolist()
        return wall, cpu


class Counting:
    """A teacher that counts what it is asked."""

    def __init__(self, teacher: TorchTeacher) -> None:
        self.teacher, self.fingerprint = teacher, teacher.fingerprint
        self.examples = 0

    def read(
        self, inputs: Tensor, *, features: bool, maps: bool, keep: Tensor | None = None
    ) -> Reading:
        """Pass the question on."""
        self.examples += len(inputs)
        return self.teacher.read(inputs, features=features, maps=maps, keep=keep)


@dataclass(slots=True, kw_only=True)
class Table:
    """Every view of every example, ready to be indexed."""

    inputs: list[Tensor] = field(default_factory=list)
    labels: Tensor
    logits: list[Tensor] = field(default_factory=list)

    def batch(self, index: Tensor, view: int) -> Batch:
        """Look a batch up."""
        return Batch(
            inputs=self.inputs[view][index], labels=self.labels[index], index=index, view=view
        )


def main() -> None:
    """Measure both, print a table each, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=FASHION_MNIST)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="folder of the teacher")
    parser.add_argument("--students", nargs="+", default=["20k", "78k"], choices=list(STUDENTS))
    parser.add_argument("--losses", nargs="+", default=["dist", "kl"], choices=["dist", "kl"])
    parser.add_argument("--blocks", type=int, default=8, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=100, help="steps a block")
    parser.add_argument("--live-steps", type=int, default=20, help="the same, of part 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loop.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, named = open_teacher(options.teacher)
    teacher = TorchTeacher(network, classes=10, image_shape=(1, 28, 28))
    overhead = measure_overhead(options, teacher)
    cache = measure_cache(options, teacher)
    where = machine(("accelerate",))
    result = {"command": command(), "machine": where, "teacher": named,
              "parameters": teacher.parameters, "overhead": overhead, "cache": cache}  # fmt: skip
    write_result(options.out, result)


def measure_overhead(options: argparse.Namespace, teacher: TorchTeacher) -> list[dict[str, Any]]:
    """Return one row a student and loss: tutelage's seconds a step over the bare loop's."""
    count = options.steps * BATCH
    material = fashion_mnist(options.data, examples=count, flip=True, shift=2, views=VIEWS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = _filled(material, teacher, Path(folder))
        table = _table(material, cache)
        for name in options.students:
            for loss in options.losses:
                rows.append(_compare_loops(name, loss, options.blocks, table, cache))
    print("\nseconds a step, signals from the cache, against a bare loop")
    _print_rows("tutelage", "bare", rows)
    worst = max(row["weights_apart"] for row in rows)
    print(f"after an epoch the weights of the two loops lie at most {worst:.1e} apart")
    return rows


def _compare_loops(
    name: str, loss: str, blocks: int, table: Table, cache: SignalCache
) -> dict[str, Any]:
    start = fresh_student(name, 0)
    split = Split(name="train", count=len(table.labels), content="", batch=table.batch)
    # One example is enough to validate on: what is timed is the loop, not the validation.
    held = Split(name="validation", count=1, content="", batch=table.batch)

    def ours() -> tuple[nn.Module, Clock, float]:
        network, clock = copy.deepcopy(start), Clock()
        objective = Objective((Term(name=loss, weight=1.0),))
        lesson = Distillation(
            network, objective, split, held, signals=cache, classes=10, views=VIEWS,
            batch=BATCH, seed=0,
        )  # fmt: skip
        trainer = Trainer(lesson, SCHEDULE, progress=clock)
        begin = time.perf_counter()
        trainer.train()
        return network, clock, time.perf_counter() - begin

    def bare() -> tuple[nn.Module, Clock, float]:
        network, clock = copy.deepcopy(start), Clock()
        begin = time.perf_counter()
        average = bare_loop(network, BARE_LOSSES[loss], table, clock)
        return average, clock, time.perf_counter() - begin

    first, second = (run()[0].state_dict() for run in (ours, bare))  # warms both up, too
    apart = max(
        float((mine - second[name]).abs().max())
        for name, mine in first.items()
        if mine.is_floating_point()
    )
    if apart > 1e-5:  # rounding alone, were it done in another order, is amplified by AdamW
        raise SystemExit(f"{name}, {loss}: the loops end {apart:.2g} apart; they are not the same")
    return {"student": name, "loss": loss, "weights_apart": apart, **_in_turn(ours, bare, blocks)}


def bare_loop(
    network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], table: Table, clock: Clock
) -> nn.Module:
    """Train one epoch, as one would by hand; return the averaged network."""
    network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": SCHEDULE.weight_decay},
              {"params": others, "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=SCHEDULE.rate, fused=True)
    average = copy.deepcopy(network)
    kept = [t for t in average.state_dict().values() if t.is_floating_point()]
    moving = [t for t in network.state_dict().values() if t.is_floating_point()]
    order = np.random.default_rng([0, 0]).permutation(len(table.labels))
    total = len(table.labels) // BATCH
    running = torch.zeros(())
    clock.start("", total)
    for step in range(total):
        index = torch.from_numpy(order[step * BATCH : (step + 1) * BATCH])
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.rate_at(step, total)
        value = loss(network(table.inputs[0][index]), table.logits[0][index])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), SCHEDULE.clip)
        optimizer.step()
        decay = min(SCHEDULE.ema, (2 + step) / (11 + step))
        torch._foreach_lerp_(kept, moving, 1 - decay)  # pyright: ignore
        running += value.detach()
        clock.advance()
    return average.eval()


def _bare_dist(student: Tensor, teacher: Tensor) -> Tensor:
    def standard(values: Tensor, dim: int) -> Tensor:
        centred = values - values.mean(dim=dim, keepdim=True)
        return centred * (centred.square().sum(dim=dim, keepdim=True) + 1e-8).rsqrt()

    p, q = student.softmax(dim=1), teacher.softmax(dim=1)
    inter = 1 - (standard(p, 1) * standard(q, 1)).sum(dim=1)
    intra = 1 - len(p) * (standard(p, 0) * standard(q, 0)).mean(dim=1)
    return (inter + intra).mean()


def _bare_kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = (student / 4).log_softmax(1), (teacher / 4).log_softmax(1)
    return 16 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


BARE_LOSSES = {"dist": _bare_dist, "kl": _bare_kl}


def measure_cache(options: argparse.Namespace, teacher: TorchTeacher) -> list[dict[str, Any]]:
    """Return one row a student: seconds a step from the cache over those with the teacher."""
    count = options.live_steps * BATCH
    material = fashion_mnist(options.data, examples=count, flip=True, shift=2, views=VIEWS)
    counting, rows = Counting(teacher), []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        cache = _filled(material, counting, Path(folder))
        fill_s = (time.perf_counter() - begin) / (count * VIEWS)
        filled = counting.examples
        live = LiveSignals(counting, features=False, maps=False)
        for name in options.students:
            rows.append(_compare_signals(name, options.blocks, material, cache, live, counting))
            rows[-1] |= {"asked_to_fill": filled, "examples_times_views": count * VIEWS,
                         "fill_s_per_example_and_view": fill_s}  # fmt: skip
    print("\nseconds a step, from the cache, against the teacher in the loop")
    _print_rows("cache", "live", rows)
    for r in rows:
        print(f"{r['student']}: an epoch of {count} examples asked the teacher "
              f"{r['asked_from_cache_per_epoch']:.0f} times from the cache, "
              f"{r['asked_live_per_epoch']:.0f} times live")  # fmt: skip
    print(
        f"filling asked {filled} questions for {count} examples x {VIEWS} views "
        f"(2 more to learn the shapes), {fill_s * 1e3:.2f} ms each"
    )
    return rows


def _compare_signals(
    name: str, blocks: int, material: Material, cache: SignalCache, live: LiveSignals,
    counting: Counting,
) -> dict[str, Any]:  # fmt: skip
    start = fresh_student(name, 0)
    held = Split(name="validation", count=1, content="", batch=material.validation.batch)
    asked = {"cache": 0, "live": 0}

    def epoch(kind: str, signals: SignalCache | LiveSignals) -> tuple[nn.Module, Clock, float]:
        network, clock, before = copy.deepcopy(start), Clock(), counting.examples
        lesson = Distillation(
            network, Objective((Term(name="dist", weight=1.0),)), material.train, held,
            signals=signals, classes=10, views=VIEWS, batch=BATCH, seed=0,
        )  # fmt: skip
        trainer = Trainer(lesson, SCHEDULE, progress=clock)
        begin = time.perf_counter()
        trainer.train()
        asked[kind] += counting.examples - before
        return network, clock, time.perf_counter() - begin

    times = _in_turn(lambda: epoch("cache", cache), lambda: epoch("live", live), blocks)
    return {"student": name, "loss": "dist", **times,
            "asked_from_cache_per_epoch": asked["cache"] / blocks,
            "asked_live_per_epoch": asked["live"] / blocks}  # fmt: skip


def _in_turn(
    first: Callable[[], tuple[nn.Module, Clock, float]],
    second: Callable[[], tuple[nn.Module, Clock, float]],
    blocks: int,
) -> dict[str, Any]:
    """Run both in turn; compare a step by the clock and in CPU time, and the whole block."""
    wall, cpu, whole = (([], []) for _ in range(3))
    for number in range(blocks):
        sides = (0, 1) if number % 2 == 0 else (1, 0)  # neither is always the second
        for side in sides:
            _, clock, seconds = (first, second)[side]()
            by_wall, by_cpu = clock.seconds()
            wall[side].append(by_wall)
            cpu[side].append(by_cpu)
            whole[side].append([seconds])
    return {"wall": ratio_of_medians(*wall), "cpu": ratio_of_medians(*cpu),
            "whole_block": ratio_of_medians(*whole)}  # fmt: skip


def _filled(material: Material, teacher: Any, folder: Path) -> SignalCache:
    cache = SignalCache(
        folder, material.train, views=VIEWS, features=False, maps=False, teacher=teacher
    )
    cache.fill(Silent())
    return cache


def _table(material: Material, cache: SignalCache) -> Table:
    every = torch.arange(material.train.count)
    batches = [material.train.batch(every, view) for view in range(VIEWS)]
    labels = batches[0].labels
    assert labels is not None
    return Table(
        inputs=[b.inputs for b in batches],
        labels=labels,
        logits=[cache.read(every, view).decision for view in range(VIEWS)],
    )


def _print_rows(first: str, second: str, rows: list[dict[str, Any]]) -> None:
    print_table(
        ("student, loss", first, second, "ratio", "95 % interval", "in CPU time", "95 % interval",
         "whole block"),
        [
            (f"{r['student']}, {r['loss']}", f"{r['wall']['first_s'] * 1e3:.2f} ms",
             f"{r['wall']['second_s'] * 1e3:.2f} ms", f"{r['wall']['ratio']:.3f}",
             _span(r["wall"]), f"{r['cpu']['ratio']:.3f}", _span(r["cpu"]),
             f"{r['whole_block']['ratio']:.3f}")
            for r in rows
        ],
    )  # fmt: skip


def _span(found: dict[str, Any]) -> str:
    return "{:.3f} to {:.3f}".format(*found["interval"])


if __name__ == "__main__":
    main()
