"""Exits: taught with the student, shipped where they save something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.audit.exits import choose_stops, confidence, tradeoff
from tutelage.devices import load_device
from tutelage.devices.cost import predict_latency
from tutelage.errors import DeviceError, RecipeError
from tutelage.export.exits import path_costs, write_exits
from tutelage.export.graph import GraphCosts
from tutelage.pipeline.material import Material
from tutelage.pipeline.teaching import Taught
from tutelage.recipe import Recipe
from tutelage.students.branches import Branch
from tutelage.students.exits import Exits, early
from tutelage.train.confidence import fit_scale
from tutelage.train.distill import Distillation, early_decisions
from tutelage.types import Tap


def exits_of(lesson: Distillation, taught: Taught) -> Exits:
    """Return the exits that a lesson taught, each as sure of itself as the teacher is.

    Like the student's own logits (`train.confidence`), a branch's are scaled once on validation.
    """
    said = early_decisions(lesson, lesson.validation)
    branches, chosen = [], early(lesson.taps)
    for i in chosen:
        branch = lesson.branches.branches[i]
        assert isinstance(branch, Branch)
        scale = fit_scale(said[i], taught.validation_decision)
        with torch.no_grad():
            branch.head.weight.mul_(scale)
            branch.head.bias.mul_(scale)
        branches.append(branch.cpu().eval())
    return Exits(taps=tuple(lesson.taps[i] for i in chosen), branches=tuple(branches))


def check_taps(recipe: Recipe, taps: Sequence[Tap]) -> None:
    """Refuse exits of a student in which nothing is decided early; raises `RecipeError`."""
    if recipe.student.exits is not None and not early(taps):
        raise RecipeError(
            "student.exits: this student has fewer than two taps, so nothing is decided early; "
            "name more in student.taps, or remove the key"
        )


def check_exits(recipe: Recipe, material: Material) -> None:
    """Refuse exits where they are not built yet; raises `RecipeError`."""
    if recipe.student.exits is None:
        return
    why = ""
    if material.decides == "values":
        why = "are for classes, and the data's labels are values"
    elif recipe.export.dynamic_batch:
        why = "need a batch of one, and export.dynamic_batch leaves it free"
    if why:
        raise RecipeError(f"student.exits {why}: remove the key")


def check_pads(recipe: Recipe, material: Material, network: nn.Module) -> None:
    """Refuse exits of a text student that does not say which token fills texts up."""
    texts = "tokenizer" in material.task.keys
    if (
        recipe.student.exits is not None
        and texts
        and not isinstance(getattr(network, "pad", None), int)
    ):
        raise RecipeError(
            "student.exits: a branch must know which tokens only fill a text up; give your student "
            "their number as the attribute 'pad', or remove the key"
        )


def stop_early(
    path: Path, recipe: Recipe, material: Material, taught: Taught, exits: Exits,
    said: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Choose when inputs stop, on validation, and rewrite the file so that they do.

    `said` are the file's decisions on validation, all side by side. What counts as right is the
    label, or without one the teacher's decision. Costs are the device's predicted seconds, where
    its profile has rates, else multiply-accumulates. Where every input stops, the file ends at the
    last exit in use.
    """
    each = np.stack(np.split(said, 1 + len(exits.taps), axis=1))
    chosen = each.argmax(axis=2)
    wanted = material.data.validation.labels
    if wanted is None:
        wanted = taught.validation_decision.argmax(1).numpy()
    right = np.concatenate([chosen[1:], chosen[:1]]) == np.asarray(wanted)
    sure = np.stack([confidence(logits) for logits in each[1:]])
    unit, price = _priced(path, recipe)
    costs = path_costs(path, price)
    most = recipe.student.may_lose
    assert most is not None
    found = choose_stops(sure, right, costs, most)
    used, thresholds, end = found.used, found.thresholds, None
    if used and found.shares[-1] == 0.0:
        *used, end = used
        thresholds = thresholds[:-1]
    after = [exits.taps[e].path for e in used]
    write_exits(path, path, used=used, thresholds=thresholds, after=after, end=end)
    everywhere = found.used or tuple(range(len(exits.taps)))
    return {
        "artifact": path.name,
        "after": after,
        "ends": None if end is None else exits.taps[end].path,
        **found.to_json(),
        "unit": unit,
        "may_lose": most,
        "right": float(right[-1].mean()),
        "curve": [list(pair) for pair in tradeoff(sure, right, costs, everywhere)],
    }


def _priced(path: Path, recipe: Recipe) -> tuple[str, Any]:
    """Return the unit of costs, and what prices a counted graph."""
    device = load_device(recipe.device)

    def seconds(counted: GraphCosts) -> float:
        return predict_latency(counted.ops, device).value

    try:
        path_costs(path, seconds)(())
    except DeviceError:
        return "MAC", lambda counted: float(counted.macs)
    return "s", seconds
