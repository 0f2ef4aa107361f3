"""Teaching a network that holds many: the sandwich rule as a lesson of the loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.files import hash_json
from tutelage.losses.objective import Objective
from tutelage.students.slices.elastic import Nested, Spec, cut_of, drawn
from tutelage.train.distill import Distillation
from tutelage.types import Batch, Reading

_DRAWN = 2


class ElasticLesson(Distillation):
    """Teaches in every step the whole student, the smallest one and two drawn between.

    The whole learns as in any distillation, the others by `smaller`, losses of the decision alone,
    from the same signals. Which are drawn is a function of seed, epoch and step. The validation
    figure is the mean of the whole's and the smallest's, with batch norms renewed by `norms`,
    training examples. After Yu and Huang (1903.05134), section 3; there the smaller ones learn from
    the whole, here there is a teacher to ask.
    """

    def __init__(
        self, student: Any, objective: Objective, *args: Any, smaller: Objective, least: Spec,
        norms: Float[Tensor, "b ..."], **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(student, objective, *args, **options)
        self.whole: Spec = student.spec
        self.least, self.smaller, self.norms = least, smaller, norms
        self.nested = Nested(student)
        self.modules = (*self.modules, smaller)
        terms = [[t.name, t.weight, dict(t.options)] for t in smaller.terms]
        self.key = hash_json([self.key, list(least.widths), terms, len(norms)])

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """Yield batches, what the teacher says about them, and the smaller networks of the step."""
        for step, batch in enumerate(super().batches(epoch, first), first):
            random = np.random.default_rng([self.seed, epoch, step, 13])
            others = [drawn(self.whole, self.least, random) for _ in range(_DRAWN)]
            yield *batch, [self.least, *others]

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of the totals of all networks; the parts are the whole's."""
        examples: Batch = batch[0]
        given, keep, said = self.asked(examples, batch[1])
        inputs: Any = given
        value = self.objective(self.read(given, keep), said, examples.labels)
        totals = [value.total]
        for spec in batch[2]:
            reading = Reading(decision=self.nested(spec, inputs).float())
            totals.append(self.smaller(reading, said, examples.labels).total)
        return torch.stack(totals).mean(), value.parts

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return the mean of the validation figures of the whole network and the smallest one."""
        cuts = [cut_of(modules[0], spec, self.norms) for spec in (self.whole, self.least)]
        return sum(super(ElasticLesson, self).evaluate((cut,)) for cut in cuts) / len(cuts)
