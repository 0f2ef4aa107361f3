"""Whose classes the student decides among: the data's, or the teacher's where it has no labels."""

from __future__ import annotations

import dataclasses

from torch import nn

from tutelage.errors import RecipeError, TeacherError
from tutelage.pipeline.material import Material
from tutelage.pipeline.teaching import open_teacher
from tutelage.recipe import Recipe


def with_classes(
    recipe: Recipe, material: Material, *, trust_code: bool, module: nn.Module | None = None
) -> Material:
    """Return the material with the teacher's classes, where its data has no labels.

    They are those of `teacher.classes`, else the names that came with the teacher, else "0", "1"
    and so on. `module` is a teacher given from Python. Raises `TeacherError` for one that cannot
    be used, or that labels would be needed to fit.
    """
    if material.labelled is not None:
        return material
    if recipe.teacher.fit and module is None:
        raise TeacherError(
            f"teacher.fit learns from labels, and {recipe.data.train} has none: name a teacher "
            "that is trained in teacher.source, or the column of labels in data.label_column (of "
            "tutelage init: --label-column)"
        )
    teacher = open_teacher(recipe, material, trust_code=trust_code, module=module)
    if teacher.classes < 2:
        raise TeacherError(
            "the teacher says one number an example, so there is nothing to decide: give a "
            "classifier with an output a class"
        )
    named = recipe.teacher.classes or teacher.names
    names = tuple(named or (str(number) for number in range(teacher.classes)))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"the teacher's classes name '{twice}' twice: correct teacher.classes")
    knobs = {**material.knobs, "classes": len(names)}
    return dataclasses.replace(material, classes=names, knobs=knobs)
