"""The data as every stage uses it: three splits, each a pure function from index and view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import DataError, RecipeError
from tutelage.files import hash_json
from tutelage.losses import LOSSES
from tutelage.pipeline.lessons import SMALL
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.recipe_data import AugmentPart
from tutelage.records import SideFile
from tutelage.tasks import Task, find_task, wilson_interval
from tutelage.tasks.splits import rare_classes
from tutelage.tasks.values import Target
from tutelage.teach.signals import Split
from tutelage.types import Batch, Decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What was read: the task's own data, its splits, how inputs are scaled and varied.

    `labelled` are the training examples with a label, unmixed (`train` itself where all are so),
    None where the data has no labels; then `classes` are the teacher's. Where labels are values
    there are no `classes`, and `target` is the unit in which networks learn. `chosen_by` is the
    recipe's metric. `live`: training examples never look the same twice, so the teacher is asked as
    they come.
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
    labelled: Split | None
    validation: Split
    test: Split
    notes: tuple[str, ...]
    chosen_by: str = "accuracy"
    live: bool = False

    @property
    def metric(self) -> str:
        """What decisions are judged by: the recipe's, or the teacher where there are no labels."""
        if self.target is not None:
            return "r2"
        return "agreement" if self.labelled is None else self.chosen_by

    @property
    def well_labelled(self) -> bool:
        """Whether half of the training examples or more have a label."""
        return self.labelled is not None and 2 * self.labelled.count >= self.train.count

    def interval(self, value: float, n: int) -> tuple[float, float] | None:
        """Return the 95 % interval of a share of `n` decisions; None for what is no such share."""
        return wilson_interval(value, n) if self.metric in ("accuracy", "agreement") else None

    @property
    def content(self) -> str:
        """Hash of everything that shapes a batch."""
        return hash_json([self.train.content, self.validation.content, self.test.content])

    @property
    def beside(self) -> tuple[SideFile, ...]:
        """The files that ship beside every artifact."""
        files = self.task.beside(self.data)
        return tuple(SideFile(name=name, bytes=len(content)) for name, content in files.items())

    @property
    def decides(self) -> Decides:
        """What a decision is."""
        return "classes" if self.target is None else "values"

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


def spread_over(split: Split, most: int) -> Tensor:
    """Return up to `most` positions spread evenly over all of a split."""
    return torch.linspace(0, split.count - 1, min(most, split.count)).round().long().unique()


def some_examples(material: Material, count: int = 256) -> Any:
    """Return the inputs of `count` untouched training examples, spread evenly over all of them."""
    return material.train.batch(spread_over(material.train, count), 0).inputs


def read_material(
    recipe: Recipe, progress: Progress | None = None, given: tuple[Any, Any] | None = None
) -> Material:
    """Read, check and split the recipe's data; raises `DataError` or `RecipeError`.

    `given` are (inputs, labels) from Python, in the place of the training data's path.
    """
    task, part = find_task(recipe.task), recipe.data
    options = options_of(recipe, task)
    if "tokenizer" in task.keys and "tokenizer" not in options:
        own = Path(recipe.teacher.source or "") / "tokenizer.json"
        if own.is_file():
            options["tokenizer"] = str(own.parent)
    if "tokenizer" in task.keys:
        options["progress"] = progress
    train = part.train if given is None else given
    data = task.load(
        train, part.test, validation_share=part.validation, seed=recipe.seed, **options
    )  # fmt: skip
    return material_of(task, data, recipe)


def options_of(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Return what the recipe's data says to the task; raises `RecipeError` for a foreign key."""
    options = recipe.data.options()
    for key in options:
        if key not in task.keys:
            raise RecipeError(
                f"data.{key} is nothing that the task '{task.name}' reads; it knows "
                f"{', '.join(sorted(task.keys)) or 'validation'}"
            )
    return options


def _labelled(
    examples: Any, whole: Split, augment: Any, split: Callable[..., Split], *, values: bool
) -> Split | None:
    """Return the split of the examples that have a label, which no other example is mixed with.

    It is the whole one where all have a label and nothing is mixed.
    """
    if examples.labels is None:
        return None
    known = examples if values else labelled_examples(examples)
    mixes = getattr(augment, "mixup", 0.0)
    if known is examples and not mixes:
        return whole
    return split("train", known, varied=replace(augment, mixup=0.0) if mixes else augment)


def labelled_examples(examples: Any) -> Any:
    """Return the examples that have a label: all themselves where none is without."""
    known = np.flatnonzero(examples.labels >= 0)
    return examples if len(known) == len(examples) else examples.take(known)


def _wanted(recipe: Recipe, *, values: bool) -> AugmentPart:
    """Return what the recipe says of augmentation; no mixing by default where labels are read."""
    labelled = any(
        name in LOSSES and "label" in LOSSES[name].reads for name in recipe.distill.losses
    )
    if recipe.augment.mixup is None and (labelled or values):
        return recipe.augment.model_copy(update={"mixup": 0.0})
    return recipe.augment


def _views(recipe: Recipe, augment: Any, count: int) -> int:
    """Return how many variants of each example are asked about: more where they cost little."""
    if not augment:
        return 1
    return recipe.augment.views or (4 if count >= SMALL else 24)


def material_of(task: Task, data: Any, recipe: Recipe) -> Material:
    """Make the splits of data that is already read."""
    normalisation = task.normalisation(data.train)
    target = Target.fit(data.train.labels) if task.decides(data) == "values" else None
    augment = task.augment(data.train, _wanted(recipe, values=target is not None))

    def split(name: str, examples: Any, *, varied: Any = None) -> Split:
        def batch(index: Tensor, view: int) -> Batch:
            made = task.batch(
                examples,
                index.numpy(),
                view=0 if varied is None else view,
                seed=recipe.seed,
                augment=augment if varied is None else varied,
                normalisation=normalisation,
            )
            if target is None or made.labels is None:
                return made
            return replace(made, labels=target.standard(made.labels))

        transform = {"normalisation": asdict(normalisation)}
        if target is not None:
            transform["target"] = asdict(target)
        if varied is not None:
            transform |= {"augment": asdict(varied), "seed": recipe.seed}
        content = hash_json({"examples": examples.fingerprint, **transform})
        return Split(name=name, count=len(examples), content=content, batch=batch)

    train = split("train", data.train, varied=augment)
    if len(data.train) < 2:
        raise DataError(f"{recipe.data.train} leaves fewer than 2 examples to train on; add more")
    known = data.train.labels if target is None else None
    rare = rare_classes(known, data.train.classes, recipe.metric)
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
        train=train,
        labelled=_labelled(data.train, train, augment, split, values=target is not None),
        validation=split("validation", data.validation),
        test=split("test", data.test),
        chosen_by=recipe.metric,
        notes=(*data.notes, *rare),
    )
