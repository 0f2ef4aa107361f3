"""Choosing the student: spaces of students, their costs, short trials.

A space is one module here with a function that returns candidates inside the limits; `SPACES` names
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutelage.plan.candidate import Candidate
from tutelage.plan.compact import candidates
from tutelage.plan.elastic import cuts
from tutelage.plan.sliced import sliced
from tutelage.registry import Registry

SPACES: Registry[Callable[..., tuple[Candidate, ...]]] = Registry("student space")
SPACES.add("compact", candidates)
SPACES.add("sliced", sliced)
SPACES.add("elastic", cuts)

__all__ = ["SPACES", "Candidate", "plan_json"]


def plan_json(
    device: str,
    limits: tuple[Any, ...],
    found: tuple[Candidate, ...],
    trials: dict[int, dict[str, Any]],
    chosen: int,
    why: str,
    steps: dict[int, int] | None = None,
) -> dict[str, Any]:
    """Return what plan.json holds: the limits, every candidate with its costs, the choice.

    `trials` and `steps` (of them) are by the candidate's number.
    """
    return {
        "device": device,
        "limits": [
            {"metric": x.metric, "value": x.value, "hard": x.hard, "source": x.source}
            for x in limits
        ],
        "space": " and ".join(sorted({candidate.space for candidate in found})),
        "candidates": [
            {
                "spec": candidate.spec.to_json(),
                "space": candidate.space,
                "by_scores": candidate.by_scores,
                "parameters": candidate.parameters,
                "figures": [figure.to_json() for figure in candidate.figures],
                "fits": not candidate.missed,
                "missed": list(candidate.missed),
                "trial": trials.get(number),
                "steps": (steps or {}).get(number),
                "chosen": number == chosen,
            }
            for number, candidate in enumerate(found)
        ],
        "why": why,
    }
