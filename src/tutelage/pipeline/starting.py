"""The student before its first lesson: fresh, or started from the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import RecipeError, TeacherError
from tutelage.pipeline.teaching import Taught
from tutelage.recipe import Recipe
from tutelage.students.spec import StudentSpec, tensors_hash
from tutelage.teach.inside import module_of
from tutelage.teach.starting import start_from


def first_student(
    recipe: Recipe,
    spec: StudentSpec,
    taught: Taught,
    weights: Mapping[str, Tensor] | None = None,
    of: str = "the teacher",
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the student as it starts, and say what it took over from the teacher.

    Its weights hang on the recipe's seed and on the teacher alone; `weights` are a slice's own, of
    the teacher unless `of` names another network.
    """
    torch.manual_seed(recipe.seed)
    network = spec.build()
    if weights is not None:
        network.load_state_dict(weights)
        how = "" if recipe.student.space == "elastic" else ", fitted to it"
        return network, (f"the weights of {of}, of the channels and blocks that stay{how}",)
    module = module_of(taught.teacher)
    if recipe.student.start != "teacher" or not hasattr(network, "embedding"):
        return network, ()  # what embeds no tokens starts from a slice or fresh
    if module is None:
        raise TeacherError(
            "student.start: teacher takes over weights, and this teacher gives decisions only; "
            "leave it out, or give the teacher as a Hugging Face folder"
        )
    return network, start_from(network, module)


def refuse_start(recipe: Recipe) -> None:
    """Refuse a start from the teacher for a student that is given whole."""
    if recipe.student.start == "teacher":
        raise RecipeError(
            "student.start: teacher is for built-in students, and this one was given as it is to "
            "start; remove it"
        )


def start_key(recipe: Recipe, weights: Mapping[str, Tensor] | None = None) -> list[Any]:
    """Return what the hash of a stage that trains must hold of the start; nothing for a fresh."""
    if recipe.student.space == "elastic":
        return [["start", "elastic", None if weights is None else tensors_hash(weights)]]
    if weights is not None:
        return [["start", "sliced", tensors_hash(weights)]]
    return [["start", "teacher"]] if recipe.student.start == "teacher" else []
