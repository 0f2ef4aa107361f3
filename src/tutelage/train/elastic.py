"""Teaching a network that holds many: the sandwich rule as a lesson of the loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.files import hash_json
from tutelage.losses.decision import kl
from tutelage.losses.objective import Objective
from tutelage.students.elastic import Nested, Spec, cut_of, drawn
from tutelage.train.distill import Distillation
from tutelage.types import Batch, Reading

_DRAWN = 2


class ElasticLesson(Distillation):
    """Teaches in every step the whole student, the smallest and two that are drawn between.

    The whole learns as in any distillation. Of the others each learns by `smaller`, losses of the
    decision alone, from the same signals; with `inside` also from what the whole said (KL, no
    gradient to it). What is drawn is a function of seed, epoch and step. `examples` renew the norms
    before a cut is judged: validation is the mean of the whole's figure and the smallest's.
    Source: Yu and Huang (1903.05134), section 3.
    """

    def __init__(
        self, student: Any, objective: Objective, smaller: Objective, *args: Any, least: Spec,
        examples_for_norms: Tensor, inside: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        self.least, self.weight = least, inside
        super().__init__(student, objective, *args, **options)
        self.whole: Spec = student.spec
        self.smaller, self.examples_for_norms = smaller, examples_for_norms
        self.nested = Nested(student)
        self.modules = (*self.modules, smaller)
        self.key = hash_json([self.key, repr(least), inside, [repr(t) for t in smaller.terms]])

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """Yield batches, what the teacher says, and the smaller networks of each step."""
        for step, batch in enumerate(super().batches(epoch, first), first):
            random = np.random.default_rng([self.seed, epoch, step, 13])
            specs = [drawn(self.whole, self.least, random) for _ in range(_DRAWN)]
            yield *batch, [self.least, *specs]

    def loss(self, batch: tuple[Batch, Reading | None, list[Spec]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of the totals of all networks; the parts are the whole's."""
        examples, teacher, specs = batch
        inputs, keep, said = self.asked(examples, teacher)
        own = self.read(inputs, keep)
        value = self.objective(own, said, examples.labels)
        total = value.total
        for spec in specs:
            decision = self.nested(spec, inputs).float()
            total = total + self.smaller(Reading(decision=decision), said, examples.labels).total
            if self.weight:
                total = total + self.weight * kl(decision, own.decision.detach(), temperature=1.0).mean()
        return total / (1 + len(specs)), value.parts

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return the mean of the validation figures of the whole network and the smallest."""
        network: Any = modules[0]
        cuts = [cut_of(network, spec, self.examples_for_norms) for spec in (self.whole, self.least)]
        return sum(super(ElasticLesson, self).evaluate((cut,)) for cut in cuts) / len(cuts)
