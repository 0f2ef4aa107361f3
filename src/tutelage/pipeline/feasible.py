"""What is possible, before anything is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tutelage.devices import load_device
from tutelage.pipeline.checking import check_recipe, fixed_spec
from tutelage.pipeline.fitting import built_in_parameters
from tutelage.pipeline.lessons import with_losses
from tutelage.pipeline.material import Material, read_material
from tutelage.pipeline.planning import budget_of, costing_of, load_own_student
from tutelage.pipeline.proving import verdicts
from tutelage.pipeline.teaching import open_teacher
from tutelage.plan.compact import Candidate, structures_of, weigh, widest
from tutelage.plan.costs import Costing, cost_of, missed_limits
from tutelage.progress import Progress, Silent, track
from tutelage.recipe import Recipe
from tutelage.records import Limit
from tutelage.students.spec import StudentSpec


def plan_recipe(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None, trust_code: bool = False
) -> dict[str, Any]:
    """Return the feasibility table in the shape of a run's answer, with `candidates` added.

    Nothing is trained and nothing is written. The first candidate that fits stands for the student.
    """
    started = time.monotonic()
    progress = progress or Silent()
    material, device = read_material(recipe), load_device(recipe.device)
    recipe = with_losses(recipe, material.decides)
    check_recipe(recipe, material)
    parameters = _teacher_parameters(recipe, material, trust_code)
    limits = budget_of(recipe, device, 4 * parameters)
    costing = costing_of(recipe, material, device, limits)
    rows = _rows(recipe, material, costing, parameters, trust_code, progress)
    fitting = [c for _, c in rows if not c.missed]
    best = fitting[0] if fitting else rows[0][1]
    budget = [v.to_json() for v in verdicts(limits, best.figures)]
    return {
        "status": "feasible" if fitting else "infeasible",
        "run": str(folder),
        "task": recipe.task,
        "device": device.name,
        "teacher": {"metric": "parameters", "value": parameters},
        "student": {"metric": "parameters", "value": best.parameters},
        "budget": budget or [_bare(limit) for limit in limits],
        "artifacts": [],
        "candidates": [
            {
                "name": name,
                "spec": c.spec.to_json() if c.spec.family != "own" else None,
                "parameters": c.parameters,
                "figures": [f.to_json() for f in c.figures],
                "missed": list(c.missed),
                "fits": not c.missed,
            }
            for name, c in rows
        ],
        "seconds": round(time.monotonic() - started, 2),
    }


def _rows(
    recipe: Recipe, material: Material, costing: Costing, parameters: int, trust_code: bool,
    progress: Progress,
) -> list[tuple[str, Candidate]]:  # fmt: skip
    own = load_own_student(recipe, material, trust_code=trust_code)
    if own is not None:
        figures = cost_of(own, costing)
        candidate = Candidate(
            spec=StudentSpec(family="own", knobs=None),
            parameters=sum(p.numel() for p in own.parameters()),
            figures=figures,
            missed=missed_limits(figures, costing.limits),
        )
        return [(str(recipe.student.source), candidate)]
    if recipe.student.spec is not None:
        spec = fixed_spec(recipe.student.spec, material)
        return [(_name(spec), weigh(spec, costing))]
    rows: list[tuple[str, Candidate]] = []
    structures = structures_of(material.task.families)
    for family, structure in track(structures, len(structures), "Costing structures", progress):
        most = max(2_000, parameters // 2)
        best, narrowest = widest(family, structure, costing, material.knobs, most)
        candidate = narrowest if best is None else best
        rows.append((_name(candidate.spec), candidate))
    return sorted(rows, key=lambda row: (len(row[1].missed), -row[1].figure("macs")))


def _name(spec: StudentSpec) -> str:
    knobs = spec.to_json()
    if "widths" in knobs:
        widths, depths = "-".join(map(str, knobs["widths"])), knobs["depths"]
        return f"{knobs['block']} {widths} x{depths[0]}"
    sizes = ("hidden", "embedding", "layers", "blocks", "window")
    said = ", ".join(f"{k} {knobs[k]}" for k in sizes if k in knobs)
    return f"{spec.family} {said}"


def _teacher_parameters(recipe: Recipe, material: Material, trust_code: bool) -> int:
    if recipe.teacher.fit is True:
        return built_in_parameters(recipe, material)
    return open_teacher(recipe, material, trust_code=trust_code).parameters


def _bare(limit: Limit) -> dict[str, Any]:
    return {
        "metric": limit.metric,
        "limit": limit.value,
        "hard": limit.hard,
        "source": limit.source,
        "value": None,
        "kind": None,
        "margin": None,
        "met": None,
    }
