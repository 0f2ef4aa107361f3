"""A student that another tool teaches, in its own environment, with this library's rates."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import text_job, torchdistill_job
from benchmarks.grid.domains import Domain
from benchmarks.grid.material import material_for
from benchmarks.tools import TOOLS, told
from tutelage.files import read_tensors
from tutelage.pipeline.inheriting import own_module
from tutelage.pipeline.lessons import schedule_of
from tutelage.pipeline.material import Material
from tutelage.recipe import Recipe
from tutelage.students import spec as students
from tutelage.students.spec import StudentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A student that was taught: by what its epochs are chosen, and the processor's time.

    `seconds` are without asking, `ends` when each epoch was over.
    """

    network: torch.nn.Module
    material: Material
    figures: list[float]
    best_epoch: int
    seconds: float
    ends: list[float]


def by_tool(
    tool: str, recipe: Recipe, domain: Domain, spec: StudentSpec, teacher: nn.Module,
    losses: dict[str, Any], folder: Path,
) -> Lesson:  # fmt: skip
    """Return the student that a tool teaches with its `losses`; its weights begin as ours do."""
    material = material_for(domain, recipe)
    torch.manual_seed(recipe.seed)
    network = spec.build()
    students.save(folder / "student", spec, network)
    own = own_module(teacher, material.shape)
    assert own is not None
    students.save(folder / "teacher", own[1], own[0])
    schedule = schedule_of(recipe, epochs=recipe.distill.epochs or 1, seed=recipe.seed)
    places = {"teacher": folder / "teacher", "student": folder / "student"}
    if TOOLS[tool].task == "text":
        pad = material.knobs["pad"]
        job = text_job.job_for(material, schedule, losses, folder, pad=pad, **places)
    else:
        varied = {"shift": material.augment.shift, "flip": material.augment.flip}
        job = torchdistill_job.job_for(material, schedule, losses, folder, **places, **varied)
    found = told(tool, job)
    network.load_state_dict(read_tensors(Path(job["keep"]))[0])
    figures = [epoch["validation"] for epoch in found["epochs"]]
    return Lesson(
        network=network.eval(), material=material, figures=figures,
        best_epoch=figures.index(max(figures)), seconds=found["cpu_s"],
        ends=list(itertools.accumulate(epoch["whole_cpu_s"] for epoch in found["epochs"])),
    )  # fmt: skip
