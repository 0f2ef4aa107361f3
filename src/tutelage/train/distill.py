"""Distillation as a lesson of the loop: batches, signals and the objective put together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from tutelage.audit.metrics import class_score
from tutelage.errors import StudentError
from tutelage.files import hash_json
from tutelage.losses.objective import INSIDE, Objective
from tutelage.passes import Forward, Inputs, call, first_tensor, mapped, source_of
from tutelage.students.branches import Branches
from tutelage.students.inside import Inside
from tutelage.students.taps import TapReader
from tutelage.tasks.values import score
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.types import Batch, Decides, Reading, Tap, energy_map, pooled

_EVALUATION_BATCH = 512
_SORTED = 16  # batches
_ROUNDING = 1e-9
_NOTHING = Inside()


class Distillation:
    """Teaches `student` on one split; with `signals` None it learns from labels alone.

    `taps` are the student's; they are read only when a loss asks for them, and `inside` says what
    is read token by token. Epoch `e` sees view
    `e % views`; view 0 is the untouched example. `examples` limits training to the first ones of a
    fixed random order (short trials). `metric` is what validation is judged by, `forward` how the
    student is called. `validation_decision` is the teacher's; it stands in for labels that
    validation has not. `classes` is how many numbers the student answers with: one where it
    `decides` values.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        train: Split,
        validation: Split,
        *,
        signals: SignalCache | LiveSignals | None = None,
        validation_decision: Tensor | None = None,
        taps: Sequence[Tap] = (),
        inside: Inside = _NOTHING,
        classes: int,
        decides: Decides = "classes",
        views: int,
        batch: int,
        seed: int,
        examples: int | None = None,
        metric: str = "accuracy",
        forward: Forward = call,
    ) -> None:
        self.student, self.objective, self.signals = student, objective, signals
        self.forward = forward
        self.train, self.validation = train, validation
        self.decides: Decides = decides
        self.validation_decision = validation_decision
        self.metric = metric
        self.needs = objective.student_needs
        self.taps = tuple(taps) if self.needs - INSIDE else ()
        self.inside = inside
        # The last tap is the network's own decision but for its head: no branch is early there.
        early = len(self.taps) - 1 if len(self.taps) > 1 else len(self.taps)
        branched = "trajectory" in self.needs
        shapes = [t.shape if branched and i < early else None for i, t in enumerate(self.taps)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.branches = Branches(shapes, classes)
        self.modules: tuple[nn.Module, ...] = (student, self.branches, objective)
        self.views, self.seed = max(1, views), seed
        self.count = min(examples or train.count, train.count)
        self.batch = min(batch, self.count)
        chosen = np.random.default_rng([seed, 7]).permutation(train.count)
        self.chosen = np.sort(chosen[: self.count])
        self.key = self._key()

    def steps(self) -> int:
        """Return the steps of one epoch; a last, smaller batch is left out."""
        return self.count // self.batch

    def _key(self) -> str:
        """Name what is taught, by whom, on what, and how."""
        asked, objective = self.signals, self.objective
        if isinstance(asked, LiveSignals):
            source = asked.teacher.fingerprint
        else:
            source = None if asked is None else asked.key
        terms = [[t.name, t.weight, dict(t.options)] for t in objective.terms]
        weighing: list[Any] = [terms, objective.pairs, objective.share, objective.balance_steps]
        data = [[s.content, s.count] for s in (self.train, self.validation)]
        drawn: list[Any] = [self.views, self.batch, self.seed, self.count]
        if objective.class_weights is not None:
            weighing.append(objective.class_weights)
        if self.metric != "accuracy":
            drawn.append(self.metric)
        if self.train.sizes is not None:
            drawn.append("by size")
        parts = [source, weighing, data, [tap.path for tap in self.taps], drawn]
        return hash_json(parts if self.forward is call else [*parts, source_of(self.forward)])

    def view_of(self, epoch: int) -> int:
        """Return the view that `epoch` sees."""
        return epoch if isinstance(self.signals, LiveSignals) else epoch % self.views

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Batch, Reading | None]]:
        """Yield batches and what the teacher says about them, one prepared ahead if it may be."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.chosen)
        if self.train.sizes is not None:
            order = by_size(order, self.train.sizes, self.batch, random)
        view = self.view_of(epoch)

        def prepare(step: int) -> tuple[Batch, Reading | None]:
            index = torch.from_numpy(order[step * self.batch : (step + 1) * self.batch])
            batch, signals = self.train.batch(index, view), self.signals
            return batch, signals.read(index, view) if isinstance(signals, SignalCache) else None

        if not self.train.ahead:
            yield from map(prepare, range(first, self.steps()))
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(prepare, first)
            for step in range(first, self.steps()):
                ready = ahead.result()
                if step + 1 < self.steps():
                    ahead = pool.submit(prepare, step + 1)
                yield ready

    def loss(self, batch: tuple[Batch, Reading | None]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective's total and its parts."""
        inputs, keep, said = self.asked(*batch)
        value = self.objective(self.read(inputs, keep), said, batch[0].labels)
        return value.total, value.parts

    def asked(
        self, examples: Batch, teacher: Reading | None
    ) -> tuple[Inputs, Tensor | None, Reading | None]:
        """Return a batch's inputs, which positions count, and what the teacher says of it."""
        device = next(self.student.parameters()).device
        inputs = _to(examples.inputs, device)
        keep = None if examples.keep is None else examples.keep.to(device)
        if isinstance(self.signals, LiveSignals):
            teacher = self.signals.read(inputs, keep)
        return inputs, keep, _reading_to(teacher, device)

    def read(self, inputs: Inputs, keep: Tensor | None = None) -> Reading:
        """Return the student's own reading of a batch, with what the losses need."""
        paths = list(dict.fromkeys([*(tap.path for tap in self.taps), *self.inside.paths]))
        if not paths:
            return Reading(decision=_single(self.forward(self.student, inputs)), keep=keep)
        with TapReader(self.student, paths, forward=self.forward) as reader:
            decision, found = reader.read(self.student, inputs)
        seen = dict(zip(paths, found, strict=True))
        outputs = [seen[tap.path] for tap in self.taps]
        maps = tuple(map(_map, self.taps, outputs)) if "maps" in self.needs else ()
        return Reading(
            decision=decision.float(),
            trajectory=self.branches(outputs, keep) if "trajectory" in self.needs else (),
            features=tuple(pooled(x, keep).float() for x in outputs)
            if "features" in self.needs
            else (),
            maps=maps,
            keep=keep,
            **self.inside.of(seen),
        )

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return the metric on validation (R2 of values).

        Without labels it is agreement with the teacher.
        """
        network = modules[0]
        device = next(network.parameters()).device
        said, wanted = [], []
        for start in range(0, self.validation.count, _EVALUATION_BATCH):
            stop = min(start + _EVALUATION_BATCH, self.validation.count)
            batch = self.validation.batch(torch.arange(start, stop), 0)
            output = self.forward(network, _to(batch.inputs, device))
            said.append(self._said(_single(output).cpu()))
            if batch.labels is not None:
                wanted.append(batch.labels)
        if self.decides == "values":
            return score(torch.cat(said), torch.cat(wanted), self.decides)
        if wanted:
            return class_score(self.metric, torch.cat(said).numpy(), torch.cat(wanted).numpy())
        assert self.validation_decision is not None
        right = torch.cat(said) == self._said(self.validation_decision)
        return int(right.sum()) / self.validation.count

    def doubt(self, figure: float) -> float:
        """Return the standard error of a share of the validation examples; 0 of values' R2.

        It is never less than one example: where all three are right, a third is chance.
        """
        if self.decides == "values":
            return 0.0
        one = 1 / self.validation.count
        return max(math.sqrt(max(0.0, figure * (1 - figure)) * one), one * (1 + _ROUNDING))

    def _said(self, decision: Tensor) -> Tensor:
        return decision.argmax(-1) if self.decides == "classes" else decision[:, 0]


def by_size(
    order: Int[np.ndarray, " n"], sizes: Int[np.ndarray, " m"], batch: int,
    random: np.random.Generator,
) -> Int[np.ndarray, " k"]:  # fmt: skip
    """Return `order` in whole batches whose examples are of like size.

    Each run of 16 batches is sorted, then all batches are shuffled: both hang on the order alone.
    """
    batches: list[np.ndarray] = []
    for first in range(0, len(order) - batch + 1, _SORTED * batch):
        part = order[first : first + _SORTED * batch]
        part = part[: len(part) // batch * batch]
        batches.append(part[np.argsort(sizes[part], kind="stable")].reshape(-1, batch))
    return random.permutation(np.concatenate(batches)).reshape(-1)


def decisions(network: nn.Module, split: Split, forward: Forward = call) -> Tensor:
    """Return a network's logits for every untouched example of a split, on the CPU."""
    network.eval()
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, split.count, _EVALUATION_BATCH):
            index = torch.arange(start, min(start + _EVALUATION_BATCH, split.count))
            inputs = _to(split.batch(index, 0).inputs, device)
            found.append(_single(forward(network, inputs)).float().cpu())
    return torch.cat(found)


def early_decisions(lesson: Distillation, split: Split) -> tuple[Tensor, ...]:
    """Return what each branch decides about every untouched example of a split, on the CPU."""
    device = next(lesson.student.parameters()).device
    for module in lesson.modules:
        module.eval()
    found: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for start in range(0, split.count, _EVALUATION_BATCH):
            index = torch.arange(start, min(start + _EVALUATION_BATCH, split.count))
            batch = split.batch(index, 0)
            keep = None if batch.keep is None else batch.keep.to(device)
            said = lesson.read(_to(batch.inputs, device), keep).trajectory
            found.append(tuple(x.float().cpu() for x in said))
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def _map(tap: Tap, output: Tensor) -> Tensor:
    found = energy_map(output)
    if found is None:
        raise StudentError(
            f"tap '{tap.path}' has no height and width, so no map can be read there. "
            "Choose other taps (student.taps), or a loss that needs no maps"
        )
    return found


def _single(output: Any) -> Tensor:
    tensor = first_tensor(output)
    assert tensor is not None
    return tensor.float()


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    def moved(tensor: Tensor) -> Tensor:
        if tensor.ndim == 4:
            return tensor.to(device, memory_format=torch.channels_last, non_blocking=True)
        return tensor.to(device, non_blocking=True)

    return mapped(inputs, moved)


def _reading_to(reading: Reading | None, device: torch.device) -> Reading | None:
    if reading is None or device.type == "cpu":
        return reading
    return reading.changed(lambda x: x.to(device))
