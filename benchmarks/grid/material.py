"""The data, the teacher and the student of a domain, as every job of it reads them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from filelock import FileLock
from torch import nn

from benchmarks.grid.domains import WORK, Domain
from tutelage.errors import DataError
from tutelage.pipeline.fitting import fit_teacher
from tutelage.pipeline.inheriting import own_module
from tutelage.pipeline.material import Material, material_of, read_material
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.spec import FAMILIES, StudentSpec
from tutelage.tasks.splits import set_aside

_WIDEST = 512


def recipe_of(
    domain: Domain, seed: int, distill: dict[str, Any] | None = None, mixup: float = 0.0
) -> Recipe:
    """Return the recipe of a domain, with what a job says of `distill` and of mixing."""
    usual = {"batch": domain.batch, "rate": domain.rate}
    given = {**domain.recipe, "seed": seed, "threads": 1}
    if mixup:
        given["augment"] = {**given["augment"], "mixup": mixup}
    return Recipe.parse({**given, "distill": {**usual, **(distill or {})}})


def material_for(domain: Domain, recipe: Recipe) -> Material:
    """Read a domain's data: splits by seed 0, whatever the seed of the recipe, which varies views.

    Raises `DataError` with the command that makes the files where they are not there.
    """
    task, data = _read(domain)
    return material_of(task, data, recipe)


@functools.cache
def _read(domain: Domain) -> tuple[Any, Any]:
    """Return the domain's task and data, read once a process."""
    for path in domain.files:
        if not path.exists():
            raise DataError(f"{path} is missing; make it with: {domain.setup}")
    whole = read_material(recipe_of(domain, 0))
    data = whole.data if domain.classes is None else _of_classes(whole.data, domain.classes)
    if domain.examples is not None and domain.examples < len(data.train):
        chosen = np.random.default_rng(0).permutation(len(data.train))[: domain.examples]
        data = dataclasses.replace(data, train=data.train.take(np.sort(chosen)))
    if domain.labels is not None:
        few = _some(data.validation, domain.labels)
        data = dataclasses.replace(
            data, train=_unlabelled(data.train, domain.labels), validation=data.validation.take(few)
        )
    return whole.task, data


def _of_classes(data: Any, classes: tuple[int, ...]) -> Any:
    """Return the examples of these classes, which are counted anew."""

    def part(examples: Any) -> Any:
        few = examples.take(np.flatnonzero(np.isin(examples.labels, classes)))
        names = tuple(examples.classes[i] for i in classes)
        return dataclasses.replace(few, labels=np.searchsorted(classes, few.labels), classes=names)

    parts = {name: part(getattr(data, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(data, **parts)


def _some(examples: Any, share: float) -> np.ndarray:
    """Return which examples make a stratified share, drawn with seed 0."""
    ranks = np.random.default_rng(0).integers(0, 1 << 62, len(examples)).astype(np.uint64)
    return np.flatnonzero(set_aside(ranks, examples.labels, share))


def _unlabelled(examples: Any, share: float) -> Any:
    labels = np.full_like(examples.labels, -1)
    few = _some(examples, share)
    labels[few] = examples.labels[few]
    return dataclasses.replace(examples, labels=labels)


def labelled_alone(material: Material) -> Material:
    """Return the material without training examples that have no label."""
    assert material.labelled is not None
    return dataclasses.replace(material, train=material.labelled)


def teacher_of(name: str, domain: Domain) -> nn.Module:
    """Return the domain's teacher: the committed one, or one that is fitted once and kept."""
    recipe = recipe_of(domain, 0)
    if not recipe.teacher.fit:
        network = students.load(str(recipe.teacher.source))
        return network if domain.classes is None else _deciding(network, domain.classes)
    folder = WORK / "teachers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), Run(folder) as run:  # others wait, and find it fitted
        return fit_teacher(recipe, material_for(domain, recipe), run, Silent())


def _deciding(network: Any, classes: tuple[int, ...]) -> nn.Module:
    """Return a network that decides between these classes of a convnet's alone."""
    few = type(network)(dataclasses.replace(network.spec, classes=len(classes))).eval()
    of_head = {name: t[list(classes)] for name, t in network.state_dict().items() if "head" in name}
    few.load_state_dict({**network.state_dict(), **of_head})
    return few


def student_for(domain: Domain, size: int, material: Material, teacher: nn.Module) -> StudentSpec:
    """Return the largest student of at most 1/`size` of the teacher's parameters.

    Raises `DataError` where there is none.
    """
    most = sum(p.numel() for p in teacher.parameters()) // size
    for spec in _candidates(domain, material, teacher):
        if sum(p.numel() for p in spec.build().parameters()) <= most:
            return spec
    raise DataError(f"no student of 1/{size} of the teacher ({most} parameters): leave it out")


def _candidates(domain: Domain, material: Material, teacher: nn.Module) -> list[StudentSpec]:
    """Return students of one structure from large to small; slices: whole depth first."""
    if domain.structure is not None:
        family = FAMILIES[material.task.families[0]]
        assert family.sized is not None
        structure = family.structures[domain.structure]
        knobs = [family.sized(structure, w, material.knobs) for w in range(_WIDEST, 1, -2)]
        return [StudentSpec(family=material.task.families[0], knobs=k) for k in knobs]
    own = own_module(teacher, material.shape)
    assert own is not None  # the domains without a structure have teachers that can be sliced
    slicing = FAMILIES[own[1].family].slicing
    assert slicing is not None
    return [
        StudentSpec(family=own[1].family, knobs=slicing.narrower(shallow, step / steps))
        for shallow in slicing.shallower(own[1].knobs)
        for steps in (slicing.steps(own[1].knobs),)
        for step in range(steps, 0, -1)
    ]
