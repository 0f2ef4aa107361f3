"""What is possible, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.devices import load_device
from tutelage.errors import InfeasibleError, StudentError
from tutelage.files import read_json
from tutelage.pipeline.checking import check_recipe, fixed_spec, shrinks_of
from tutelage.pipeline.class_names import with_classes
from tutelage.pipeline.elastic import elastic_specs
from tutelage.pipeline.fitting import built_in_parameters, encoder_to_fit
from tutelage.pipeline.foreign import UNLIKE, sliceable
from tutelage.pipeline.frontiers import frontiers
from tutelage.pipeline.inheriting import own_module
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import Material, read_material
from tutelage.pipeline.naming import name_spec
from tutelage.pipeline.planning import budget_of, costing_of, load_own_student
from tutelage.pipeline.proving import verdicts
from tutelage.pipeline.slicing import built_in_whole, not_sliced
from tutelage.pipeline.teaching import open_teacher
from tutelage.pipeline.trials import scores_of
from tutelage.plan.candidate import Candidate, most_parameters, stand_in, weigh, weighed
from tutelage.plan.compact import structures_of, widest
from tutelage.plan.costs import Costing
from tutelage.plan.elastic import widest_cut
from tutelage.plan.estimates import estimator
from tutelage.plan.refusal import advice, amount, largest_ratio, name_of, shortfall
from tutelage.plan.scores import Score
from tutelage.plan.sliced import depths, widest_slice
from tutelage.progress import Progress, Silent, track
from tutelage.recipe import Recipe
from tutelage.recipe_language import LANGUAGE
from tutelage.records import Limit, WouldDo
from tutelage.students.spec import StudentSpec


def plan_recipe(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None, trust_code: bool = False,
    frontier: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the feasibility table in the shape of a run's answer, with `candidates` added.

    Nothing is trained and nothing is written. Where students were tried in `folder` before, for
    this teacher and data, the answer is read off what is stored of them, with their figures; new
    structures are costed only where none of those fits, and how good each would be is estimated
    from those that were tried, where these are enough. The first candidate that fits stands for
    the student; where none does, `would_do` names what would. With `frontier`, what `frontiers`
    returns is added; raises `RecipeError` where nothing was tried in `folder` yet.
    """
    if recipe.task == LANGUAGE:
        from tutelage.pipeline.language.feasible import plan_language

        return plan_language(recipe, folder, progress=progress, frontier=frontier)
    started = time.monotonic()
    progress = progress or Silent()
    read = read_material(recipe, progress)
    material, device = with_classes(recipe, read, trust_code=trust_code), load_device(recipe.device)
    recipe = with_usual(
        recipe, material.decides, material.task, len(material.classes),
        labelled=material.well_labelled,
    )  # fmt: skip
    check_recipe(recipe, material)
    free = recipe.student.spec is None and recipe.student.source is None
    scores = scores_of(recipe, material, folder)
    known = _known_parameters(folder) if free and scores.rows else None
    parameters = known or teacher_spec(recipe, material, trust_code)[0]
    limits = budget_of(recipe, device, 4 * parameters)
    costing = costing_of(recipe, material, device, limits)
    drawn = frontiers(scores, costing) if frontier else {}
    own = load_own_student(recipe, material, trust_code=trust_code)
    stored = scores.scored(costing) if known else ()
    rows = [(_named(score), c) for score, c in stored]
    trials = [score.figure for score, _ in stored]
    fresh: list[tuple[str, Candidate]] = []
    if all(c.missed for _, c in stored):
        if free and recipe.student.space == "elastic":
            fresh = [_cut(material, teacher_spec(recipe, material, trust_code)[1], costing)]
        elif not (free and recipe.student.space == "sliced"):
            fresh = _rows(recipe, material, costing, parameters, own, progress)
        if free and recipe.student.space in ("auto", "sliced"):
            _, whole, unlike = teacher_spec(recipe, material, trust_code)
            why = not_sliced(recipe, material, whole, unlike)
            if why and recipe.student.space == "sliced":
                raise StudentError(why)
            if whole is not None and not why:
                fresh += _slices(whole, costing, parameters, progress)
            fresh = _in_order(fresh)
        rows, trials = [*fresh, *rows], [*[None] * len(fresh), *trials]
    estimates = _estimates([score for score, _ in stored], fresh, len(rows))
    table = list(zip(rows, trials, estimates, strict=True))
    fitting = [c for _, c in rows if not c.missed]
    if not fitting:  # the nearest comes first, as the refusal names it
        table.sort(key=lambda row: largest_ratio(row[0][1], limits))
    best = fitting[0] if fitting else table[0][0][1]
    budget = [v.to_json() for v in verdicts(limits, best.figures)]
    would_do = None
    if not fitting:
        every = [c for _, c in rows]
        networks = [own] if own is not None else (stand_in(c.spec) for c in every)
        would_do = shortfall(every, networks, costing).would_do.to_json()
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
                "trial": None if figure is None else figure.to_json(),
                "estimate": estimate,
            }
            for (name, c), figure, estimate in table
        ],
        "from_scores": bool(stored),
        "would_do": would_do,
        **drawn,
        "seconds": round(time.monotonic() - started, 2),
    }


def raise_if_infeasible(answer: dict[str, Any]) -> None:
    """Raise `InfeasibleError` where no candidate fits, naming what the first one misses."""
    if answer["status"] != "infeasible":
        return
    parts = []
    for row in answer["budget"]:
        if row["hard"] and not row["met"]:
            limit = Limit(metric=row["metric"], value=row["limit"])
            parts.append(
                f"{name_of(limit)} is limited to {amount(limit, row['limit'])} and "
                f"'{answer['candidates'][0]['name']}' needs {amount(limit, row['value'])}"
            )
    said = advice(WouldDo.from_json(answer["would_do"]))
    raise InfeasibleError(f"no student fits {answer['device']}: {'; '.join(parts)}. {said}")


def _rows(
    recipe: Recipe, material: Material, costing: Costing, parameters: int, own: nn.Module | None,
    progress: Progress,
) -> list[tuple[str, Candidate]]:  # fmt: skip
    if own is not None:
        spec = StudentSpec(family="own", knobs=None)
        return [(str(recipe.student.source), weighed(spec, own, costing))]
    if recipe.student.spec is not None:
        spec = fixed_spec(recipe.student.spec, material)
        return [(name_spec(spec), weigh(spec, costing))]
    rows: list[tuple[str, Candidate]] = []
    structures = structures_of(material.task.families, shrinks_of(recipe, material))
    for family, structure in track(structures, len(structures), "Costing structures", progress):
        most = most_parameters(parameters)
        best, narrowest = widest(family, structure, costing, material.knobs, most)
        candidate = narrowest if best is None else best
        rows.append((name_spec(candidate.spec), candidate))
    return _in_order(rows)


def _slices(
    whole: StudentSpec, costing: Costing, parameters: int, progress: Progress
) -> list[tuple[str, Candidate]]:
    """Return of each of the teacher's depths the widest slice that fits, or the narrowest."""
    specs, rows = depths(whole), []
    for spec in track(specs, len(specs), "Costing slices of the teacher", progress):
        best, narrowest = widest_slice(spec, costing, most_parameters(parameters))
        candidate = narrowest if best is None else best
        rows.append((f"{name_spec(candidate.spec)}, sliced", candidate))
    return rows


def _cut(
    material: Material, teacher: StudentSpec | None, costing: Costing
) -> tuple[str, Candidate]:
    """Return the widest cut of the elastic student that fits, or the narrowest."""
    whole, least, _ = elastic_specs(material, teacher)
    candidate = widest_cut(whole, least, costing)
    return f"{name_spec(candidate.spec)}, cut", candidate


def _in_order(rows: list[tuple[str, Candidate]]) -> list[tuple[str, Candidate]]:
    return sorted(rows, key=lambda row: (len(row[1].missed), -row[1].figure("macs")))


def _estimates(
    tried: Sequence[Score], fresh: Sequence[tuple[str, Candidate]], count: int
) -> list[dict[str, Any] | None]:
    """Return what each of `count` rows is estimated to become; the `fresh` ones, which are first.

    None for those that were tried, and for all where too few were.
    """
    law = estimator(tried)
    found: list[dict[str, Any] | None] = [None] * count
    if law is not None:
        for i, (_, candidate) in enumerate(fresh):
            if candidate.counted is not None:
                found[i] = law.of(candidate.parameters, candidate.counted).to_json()
    return found


def _named(score: Score) -> str:
    how = ", sliced by scores" if score.by_scores else ", sliced"
    return name_spec(score.spec) + (how if score.space == "sliced" else "")


def _known_parameters(folder: Path) -> int | None:
    """Return the teacher's parameters as the run in `folder` noted them, so as not to load it."""
    path = folder / "run.json"
    stages = read_json(path)["stages"] if path.exists() else {}
    return stages["teacher"]["result"]["parameters"] if "teacher" in stages else None


def teacher_spec(
    recipe: Recipe, material: Material, trust_code: bool
) -> tuple[int, StudentSpec | None, str]:
    """Return the teacher's parameters, and its spec where it can be sliced, or why it cannot."""
    if recipe.teacher.fit is True:
        return built_in_parameters(recipe, material), built_in_whole(recipe, material), UNLIKE
    if recipe.teacher.fit:
        module = encoder_to_fit(recipe, material)
        own = own_module(module, material.shape)
        parameters = sum(p.numel() for p in module.parameters())
        return parameters, None if own is None else own[1], UNLIKE
    teacher = open_teacher(recipe, material, trust_code=trust_code)
    own, unlike = sliceable(teacher, material.shape)
    return teacher.parameters, None if own is None else own[1], unlike


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
