"""Distillation as a lesson of the loop: batches, signals and the objective put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import StudentError
from tutelage.files import hash_json
from tutelage.losses.objective import Objective
from tutelage.students.branches import Branches
from tutelage.students.taps import TapReader
from tutelage.tasks.values import score
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.types import Batch, Decides, Reading, Tap, energy_map, pooled

_EVALUATION_BATCH = 512


class Distillation:
    """Teaches `student` on one split; with `signals` None it learns from labels alone.

    `taps` are the student's; they are read only when a loss asks for them. Epoch `e` sees view
    `e % views`; view 0 is the untouched example. `examples` limits training to the first ones of a
    fixed random order (short trials). `classes` is how many numbers the student answers with: one
    where it `decides` values.
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
        classes: int,
        decides: Decides = "classes",
        views: int,
        batch: int,
        seed: int,
        examples: int | None = None,
    ) -> None:
        self.student, self.objective, self.signals = student, objective, signals
        self.train, self.validation = train, validation
        self.decides: Decides = decides
        self.validation_decision = validation_decision
        self.needs = objective.student_needs
        self.taps = tuple(taps) if self.needs else ()
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
        weighing = [terms, objective.pairs, objective.share, objective.balance_steps]
        data = [[s.content, s.count] for s in (self.train, self.validation)]
        drawn = [self.views, self.batch, self.seed, self.count]
        return hash_json([source, weighing, data, [tap.path for tap in self.taps], drawn])

    def view_of(self, epoch: int) -> int:
        """Return the view that `epoch` sees."""
        return epoch if isinstance(self.signals, LiveSignals) else epoch % self.views

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Batch, Reading | None]]:
        """Yield batches and what the teacher says about them, one prepared ahead."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.chosen)
        view = self.view_of(epoch)

        def prepare(step: int) -> tuple[Batch, Reading | None]:
            index = torch.from_numpy(order[step * self.batch : (step + 1) * self.batch])
            batch, signals = self.train.batch(index, view), self.signals
            return batch, signals.read(index, view) if isinstance(signals, SignalCache) else None

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(prepare, first)
            for step in range(first, self.steps()):
                ready = ahead.result()
                if step + 1 < self.steps():
                    ahead = pool.submit(prepare, step + 1)
                yield ready

    def loss(self, batch: tuple[Batch, Reading | None]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective's total and its parts."""
        examples, teacher = batch
        device = next(self.student.parameters()).device
        inputs = _to(examples.inputs, device)
        if isinstance(self.signals, LiveSignals):
            teacher = self.signals.read(inputs)
        labels = None if examples.labels is None else examples.labels.to(device)
        value = self.objective(self.read(inputs), _reading_to(teacher, device), labels)
        return value.total, value.parts

    def read(self, inputs: Tensor) -> Reading:
        """Return the student's own reading of a batch, with what the losses need."""
        if not self.taps:
            return Reading(decision=_single(self.student(inputs)))
        with TapReader(self.student, [tap.path for tap in self.taps]) as reader:
            decision, outputs = reader.read(self.student, inputs)
        maps = tuple(map(_map, self.taps, outputs)) if "maps" in self.needs else ()
        return Reading(
            decision=decision.float(),
            trajectory=self.branches(outputs) if "trajectory" in self.needs else (),
            features=tuple(pooled(x).float() for x in outputs) if "features" in self.needs else (),
            maps=maps,
        )

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return accuracy (R2 of values) on validation.

        Without labels it is that of agreement with the teacher.
        """
        network = modules[0]
        device = next(network.parameters()).device
        said, wanted = [], []
        for start in range(0, self.validation.count, _EVALUATION_BATCH):
            stop = min(start + _EVALUATION_BATCH, self.validation.count)
            batch = self.validation.batch(torch.arange(start, stop), 0)
            said.append(self._said(_single(network(_to(batch.inputs, device))).cpu()))
            if batch.labels is None:
                assert self.validation_decision is not None
                wanted.append(self._said(self.validation_decision[start:stop]))
            else:
                wanted.append(batch.labels)
        return score(torch.cat(said), torch.cat(wanted), self.decides)

    def _said(self, decision: Tensor) -> Tensor:
        return decision.argmax(-1) if self.decides == "classes" else decision[:, 0]


def decisions(network: nn.Module, split: Split) -> Tensor:
    """Return a network's logits for every untouched example of a split, on the CPU."""
    network.eval()
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, split.count, _EVALUATION_BATCH):
            index = torch.arange(start, min(start + _EVALUATION_BATCH, split.count))
            found.append(_single(network(_to(split.batch(index, 0).inputs, device))).float().cpu())
    return torch.cat(found)


def _map(tap: Tap, output: Tensor) -> Tensor:
    found = energy_map(output)
    if found is None:
        raise StudentError(
            f"tap '{tap.path}' has no height and width, so no map can be read there. "
            "Choose other taps (student.taps), or a loss that needs no maps"
        )
    return found


def _single(output: Any) -> Tensor:
    from tutelage.students.taps import first_tensor

    tensor = first_tensor(output)
    assert tensor is not None
    return tensor.float()


def _to(inputs: Tensor, device: torch.device) -> Tensor:
    if inputs.ndim == 4:
        return inputs.to(device, memory_format=torch.channels_last, non_blocking=True)
    return inputs.to(device, non_blocking=True)


def _reading_to(reading: Reading | None, device: torch.device) -> Reading | None:
    if reading is None or device.type == "cpu":
        return reading
    return Reading(
        decision=reading.decision.to(device),
        trajectory=tuple(x.to(device) for x in reading.trajectory),
        features=tuple(x.to(device) for x in reading.features),
        maps=tuple(x.to(device) for x in reading.maps),
    )
