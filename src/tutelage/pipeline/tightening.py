"""When a measured artifact misses a limit: plan again under one that is tighter by what was missed.

A stand-in differs from what ships by the layers that int8 repair left in float, by constants that
happened to merge, and by a clock's noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tutelage.files import hash_json
from tutelage.plan.refusal import amount, name_of
from tutelage.records import Limit
from tutelage.run import Run

ROUNDS = 3
_ROOM = 0.005  # beyond what was missed, so that the next artifact does not stop on the limit


def recorded(
    run: Run, limits: tuple[Limit, ...], lesson: str, *, most: int = ROUNDS
) -> tuple[int, tuple[Limit, ...]]:
    """Return how often this budget was tightened in the run (at most `most`), and the limits."""
    found, inputs = limits, _inputs(limits, lesson)
    for number in range(most):
        stage = run.manifest["stages"].get(f"tighten-{number + 1}")
        if stage is None or stage["inputs"] != inputs:
            return number, found
        found = _with(found, limits, stage["result"])
    return most, found


def tighten(
    run: Run, number: int, limits: tuple[Limit, ...], internal: tuple[Limit, ...],
    proof: dict[str, Any], lesson: str,
) -> tuple[Limit, ...] | None:  # fmt: skip
    """Return the internal limits of the next round and note them; None where none would help.

    Each limit that was missed shrinks by the ratio of limit to figure. A floor on the metric is
    left alone: a smaller student does not raise it.
    """
    held = {x.metric: x.value for x in internal}
    missed = [row for row in proof["verdicts"] if row["hard"] and not row["met"]]
    if number >= ROUNDS or not missed or any(row["metric"] == "accuracy" for row in missed):
        return None
    tighter = {
        row["metric"]: held[row["metric"]] * row["limit"] / row["value"] * (1 - _ROOM)
        for row in missed
    }
    run.stage(f"tighten-{number + 1}", _inputs(limits, lesson), lambda: (tighter, []))
    return _with(internal, limits, tighter)


def said(limits: tuple[Limit, ...], internal: tuple[Limit, ...]) -> str:
    """Say which limits the planner now keeps instead of the budget's own."""
    own = {x.metric: x.value for x in limits}
    parts = [
        f"{name_of(x)} {amount(x, x.value)} (the limit is {amount(x, own[x.metric])})"
        for x in internal
        if x.value != own[x.metric]
    ]
    return f"the artifact missed its budget; planning again for {', '.join(parts)}"


def _with(
    internal: tuple[Limit, ...], limits: tuple[Limit, ...], tighter: dict[str, float]
) -> tuple[Limit, ...]:
    own = {x.metric: x for x in limits}
    return tuple(
        dataclasses.replace(
            x, value=tighter[x.metric],
            source=f"{own[x.metric].source}: {amount(x, own[x.metric].value)}, tightened by what "
            "an artifact missed",
        )
        if x.metric in tighter
        else x
        for x in internal
    )  # fmt: skip


def _inputs(limits: tuple[Limit, ...], lesson: str) -> str:
    return hash_json([[dataclasses.asdict(x) for x in limits], lesson])
