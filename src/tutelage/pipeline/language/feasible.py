"""Which slices of a language model would fit, before anything is asked or taught."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tutelage.devices import load_device
from tutelage.pipeline.language.generating import material_to_plan
from tutelage.pipeline.language.planning import candidates, limits_of, spec_json
from tutelage.pipeline.language.source import open_source
from tutelage.pipeline.language.teaching import with_language_defaults
from tutelage.pipeline.proving import verdicts
from tutelage.progress import Progress, Silent
from tutelage.recipe import Recipe
from tutelage.students.decoder_sizes import parameters


def plan_language(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Return the feasibility table in the shape of a run's answer; nothing is written.

    Raises `InfeasibleError` where no slice fits.
    """
    started = time.monotonic()
    recipe, device = with_language_defaults(recipe), load_device(recipe.device)
    source = open_source(recipe)
    material = material_to_plan(recipe, source, folder, progress or Silent())
    limits = limits_of(recipe, device, source.decoder.spec)
    found = candidates(recipe, device, material, limits)
    rows = [
        {
            "name": f"{c.spec.layers} layers, {c.spec.inner} units",
            "spec": spec_json(c.spec),
            "parameters": parameters(c.spec),
            "figures": [f.to_json() for f in c.figures],
            "missed": list(c.missed),
            "fits": True,
            "trial": None,
            "estimate": None,
        }
        for c in found
    ]
    return {
        "status": "feasible",
        "run": str(folder),
        "task": recipe.task,
        "device": device.name,
        "teacher": {"metric": "parameters", "value": parameters(source.decoder.spec)},
        "student": {"metric": "parameters", "value": rows[0]["parameters"]},
        "budget": [v.to_json() for v in verdicts(limits, found[0].figures)],
        "artifacts": [],
        "candidates": rows,
        "from_scores": False,
        "would_do": None,
        "seconds": round(time.monotonic() - started, 2),
    }
