"""The frontier of the students that were tried in a run, as `tutelage plan --frontier` answers."""

from __future__ import annotations

from typing import Any

from tutelage.errors import RecipeError
from tutelage.measure.frontier import AXES, Choice, Placed, Tried, choose_all, place
from tutelage.pipeline.naming import name_spec
from tutelage.plan.costs import Costing
from tutelage.plan.scores import Score, Scores
from tutelage.students.spec import StudentSpec

_SHOWN = (*AXES, "ram_bytes", "macs")


def frontiers(scores: Scores, costing: Costing) -> dict[str, Any]:
    """Return `frontier`, the students that none dominates on the costing's device, and `devices`.

    Of every known device, `devices` holds the student that would do there, or the reason why none
    would. Raises `RecipeError` where no student was tried.
    """
    tried = [t for t in map(_tried, scores.rows.values()) if t is not None]
    if not tried:
        raise RecipeError(
            f"no student was tried yet for this recipe ({scores.path} holds none): "
            f"call tutelage run RECIPE --run {scores.path.parent} first"
        )
    kept = [p for p in place(tried, costing.device, costing.beside) if p.frontier]
    kept.sort(key=lambda p: p.costs["storage_bytes"].value)
    return {
        "frontier": {
            "metric": tried[0].figure.name,
            "tried": len(tried),
            "students": [_student(p) for p in kept],
        },
        "devices": {c.device.name: _device(c) for c in choose_all(tried, costing.beside)},
    }


def _tried(score: Score) -> Tried | None:
    if score.figure is None:
        return None
    return Tried(
        spec=score.spec.to_json(),
        parameters=score.parameters,
        precision=score.precision,
        counted=score.counted,
        figure=score.figure,
        taught=score.taught is not None,
    )


def _student(placed: Placed) -> dict[str, Any]:
    tried = placed.tried
    return {
        "name": name_spec(StudentSpec.from_json(tried.spec)),
        "spec": tried.spec,
        "parameters": tried.parameters,
        "precision": tried.precision,
        "figure": tried.figure.to_json(),
        "from": "taught" if tried.taught else "trial",
        "figures": [placed.costs[n].to_json() for n in _SHOWN if n in placed.costs],
        "on": list(placed.frontier),
    }


def _device(choice: Choice) -> dict[str, Any]:
    best = None if choice.best is None else _student(choice.best)
    if best is not None:
        del best["on"]  # a frontier is of the recipe's device
    return {"title": choice.device.title, "student": best, "reason": choice.reason}
