"""The data as every stage uses it: three splits, each a pure function from index and view."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import DataError, RecipeError
from tutelage.files import hash_json
from tutelage.pipeline.lessons import SMALL
from tutelage.recipe import Recipe
from tutelage.tasks import Task, find_task
from tutelage.tasks.values import Target
from tutelage.teach.signals import Split
from tutelage.types import Batch, Decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What was read: the task's own data, its splits, how inputs are scaled and varied.

    Labels are classes, or values; then there are no `classes`, and `target` is the unit in which
    networks learn.
    """

    task: Task
    data: Any
    classes: tuple[str, ...]
    target: Target | None
    shape: tuple[int, ...]
    normalisation: Any
    augment: Any
    views: int
    knobs: dict[str, Any]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...]

    @property
    def content(self) -> str:
        """Hash of everything that shapes a batch."""
        return hash_json([self.train.content, self.validation.content, self.test.content])

    @property
    def decides(self) -> Decides:
        """What a decision is."""
        return "classes" if self.target is None else "values"

    @property
    def metric(self) -> str:
        """The figure by which validation chooses and which heads the summary."""
        return "accuracy" if self.target is None else "r2"

    @property
    def outputs(self) -> int:
        """How many numbers a network answers with."""
        return len(self.classes) if self.target is None else 1

    def said(self, decision: Float[np.ndarray, "n k"]) -> np.ndarray:
        """Return what decisions say: class numbers, or values in the user's unit."""
        return decision.argmax(1) if self.target is None else self.target.in_unit(decision)

    def to_json(self, source: str) -> dict[str, Any]:
        """Return what the report says about the data."""
        target = {} if self.target is None else {"target": asdict(self.target)}
        return {
            **target,
            "source": source,
            "task": self.task.name,
            "classes": list(self.classes),
            "counts": {s.name: s.count for s in (self.train, self.validation, self.test)},
            "shape": list(self.shape),
            "fingerprint": self.content,
            "notes": list(self.notes),
        }


def read_material(recipe: Recipe) -> Material:
    """Read, check and split the recipe's data; raises `DataError` or `RecipeError`."""
    task, part = find_task(recipe.task), recipe.data
    options = part.options()
    for key in options:
        if key not in task.keys:
            raise RecipeError(
                f"data.{key} is nothing that the task '{task.name}' reads; it knows "
                f"{', '.join(sorted(task.keys))}"
            )
    if "tokenizer" in task.keys and "tokenizer" not in options:
        own = Path(recipe.teacher.source or "") / "tokenizer.json"
        if own.is_file():
            options["tokenizer"] = str(own.parent)
    data = task.load(
        part.train, part.test, validation_share=part.validation, seed=recipe.seed, **options
    )
    return material_of(task, data, recipe)


def _views(recipe: Recipe, augment: Any, count: int) -> int:
    """Return how many variants of each example are asked about: more where they cost little."""
    if not augment:
        return 1
    return recipe.augment.views or (4 if count >= SMALL else 24)


def material_of(task: Task, data: Any, recipe: Recipe) -> Material:
    """Make the splits of data that is already read."""
    normalisation = task.normalisation(data.train)
    augment = task.augment(data.train, recipe.augment)
    target = Target.fit(data.train.labels) if task.decides(data) == "values" else None

    def split(name: str, examples: Any, *, varied: bool) -> Split:
        def batch(index: Tensor, view: int) -> Batch:
            made = task.batch(
                examples,
                index.numpy(),
                view=view if varied else 0,
                seed=recipe.seed,
                augment=augment,
                normalisation=normalisation,
            )
            if target is None or made.labels is None:
                return made
            return replace(made, labels=target.standard(made.labels))

        transform = {"normalisation": asdict(normalisation)}
        if target is not None:
            transform["target"] = asdict(target)
        if varied:
            transform |= {"augment": asdict(augment), "seed": recipe.seed}
        content = hash_json({"examples": examples.fingerprint, **transform})
        return Split(name=name, count=len(examples), content=content, batch=batch)

    if len(data.train) < 2:
        raise DataError(f"{recipe.data.train} leaves fewer than 2 examples to train on; add more")
    return Material(
        task=task,
        data=data,
        classes=tuple(data.train.classes),
        target=target,
        shape=tuple(task.input_shape(data.train)),
        normalisation=normalisation,
        augment=augment,
        views=_views(recipe, augment, len(data.train)),
        knobs={**task.knobs(data.train), "classes": 1 if target else len(data.train.classes)},
        train=split("train", data.train, varied=True),
        validation=split("validation", data.validation, varied=False),
        test=split("test", data.test, varied=False),
        notes=tuple(data.notes),
    )
