"""A loader of the user's own as material, for two networks that are given."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import RecipeError, StudentError, TeacherError, TutelageError
from tutelage.passes import Forward, Inputs, call, count_of, first_tensor, mapped, run_once
from tutelage.pipeline.material import Material, material_of, options_of
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.tasks.given.loaders import read_loader
from tutelage.tasks.given.task import GivenTask
from tutelage.teach.checks import as_decision


def is_loader(data: Any) -> bool:
    """Say whether data is neither a path nor (inputs, labels)."""
    return not isinstance(data, (str, Path, tuple))


def loader_material(
    recipe: Recipe,
    loader: Any,
    validation: Any,
    *,
    teacher: nn.Module | None,
    student: nn.Module,
    forwards: tuple[Forward, Forward],
    progress: Progress,
) -> Material:
    """Make material of a loader, and of a second one to choose by, where there is one.

    The classes are the student's outputs, of which the teacher must have as many; each network is
    asked once about two examples, by its pass of `forwards` (teacher, student). Raises `DataError`
    for loaders, `StudentError` and `TeacherError` for networks that cannot be used.
    """
    task = GivenTask()
    _check_recipe(recipe, task)
    if validation is loader and iter(loader) is loader:
        raise RecipeError("validation= is the same generator as the data: make a second one")
    read = partial(read_loader, seed=recipe.seed, progress=progress)
    found = read(loader, name="the data")
    held = None if validation is None else read(validation, name="validation=")
    two, _ = found.source.read(torch.arange(min(2, len(found.keys))).numpy(), 0)
    classes = _outputs(student, two, forwards[1], "student", StudentError)
    if teacher is not None:
        floats = (p.dtype for p in teacher.parameters() if p.is_floating_point())
        dtype = next(floats, torch.float32)
        seen = mapped(two, lambda x: x.to(dtype) if x.is_floating_point() else x)
        asked = two if forwards[0] is not call else seen
        theirs = _outputs(teacher, asked, forwards[0], "teacher", TeacherError)
        if theirs != classes:
            raise TeacherError(
                f"the teacher decides among {theirs} classes and the student among {classes}: give "
                "the student the teacher's classes, in the same order"
            )
    data = task.load(
        found, validation=held, classes=classes, validation_share=recipe.data.validation,
        seed=recipe.seed,
    )  # fmt: skip
    made = material_of(task, data, recipe)
    return replace(made, live=found.varies, train=replace(made.train, ahead=not found.varies))


def _check_recipe(recipe: Recipe, task: GivenTask) -> None:
    options_of(recipe, task)
    if "task" in recipe.model_fields_set:
        raise RecipeError("task=: a loader's examples are taken as they come; leave it out")
    if recipe.data.test is not None:
        raise RecipeError("data.test: nothing is tested here; leave it out")
    if recipe.teacher.fit:
        raise RecipeError("a teacher is not fitted on a loader: give a trained one, as a module")
    if recipe.teacher.mean is not None:
        raise RecipeError("teacher.mean: a loader's inputs are never changed: give a forward=")


def _outputs(
    network: nn.Module, two: Inputs, forward: Forward, who: str, error: type[TutelageError]
) -> int:
    """Return how many classes a network decides among; raises `error` where it gives no logits."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    moved = mapped(two, lambda x: x.to(device))
    try:
        answer = run_once(lambda inputs: forward(network, inputs), network, moved, error)
    except error as cause:
        raise error(f"{cause}; or say how it reads them: forward=") from cause
    logits = first_tensor(answer)
    if logits is None or not logits.is_floating_point():
        what = type(answer).__name__ if logits is None else f"{logits.dtype} numbers"
        raise error(
            f"the {who}'s forward pass returns {what} and no logits: return a float tensor "
            "[batch, classes], or an output that holds it as .logits"
        )
    count = count_of(two)
    if who == "teacher":
        logits = as_decision(logits, count)
    if logits.ndim != 2 or len(logits) != count:
        said = " x ".join(map(str, logits.shape)) or "one number"
        raise error(
            f"the {who} answers {count} examples with {said}: return [batch, classes], or give a "
            "forward= that does"
        )
    if logits.shape[1] < 2:
        raise error(f"the {who} has one output: give it one a class, at least two")
    return logits.shape[1]
