"""Which slices of a language model would fit, before anything is asked or taught."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tutelage.devices import load_device
from tutelage.errors import InfeasibleError
from tutelage.pipeline.language.costs import figures_on, terms_of
from tutelage.pipeline.language.fitting import smallest
from tutelage.pipeline.language.frontiers import language_frontiers
from tutelage.pipeline.language.generating import material_to_plan
from tutelage.pipeline.language.pace import pace_of
from tutelage.pipeline.language.planning import (
    Slice,
    candidates,
    limits_of,
    name_of_slice,
    spec_json,
)
from tutelage.pipeline.language.scores import SliceScores
from tutelage.pipeline.language.source import open_both, refuse_named
from tutelage.pipeline.language.teaching import with_language_defaults
from tutelage.pipeline.opening import with_threads
from tutelage.pipeline.proving import verdicts
from tutelage.plan.costs import missed_limits
from tutelage.progress import Progress, Silent
from tutelage.recipe import Recipe
from tutelage.records import WouldDo
from tutelage.students.decoders.network import DecoderSpec
from tutelage.students.decoders.sizes import parameters


def plan_language(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None, frontier: bool = False
) -> dict[str, Any]:
    """Return the feasibility table in the shape of a run's answer; nothing is written.

    Figures of slices that were compared in `folder` before are beside them; with `frontier`, what
    `language_frontiers` returns is added.
    """
    started, said = time.monotonic(), progress or Silent()
    recipe, device = with_language_defaults(with_threads(recipe)), load_device(recipe.device)
    if frontier:
        refuse_named(recipe, "--frontier")
    source = open_both(recipe)
    material = material_to_plan(recipe, source, folder, said)
    limits = limits_of(recipe, device, source)
    terms = terms_of(recipe, material)
    pace = pace_of(recipe, material, device, limits, said)
    scores = SliceScores.open(recipe, material, terms, folder)
    drawn = language_frontiers(scores, source.decoder.spec, device, pace) if frontier else {}
    would_do: WouldDo | None = None
    try:
        found = candidates(material, terms, limits, device, pace, forms=recipe.language.formats)
    except InfeasibleError as error:
        assert error.shortfall is not None
        would_do = error.shortfall.would_do
        least = material.given.spec if material.given else smallest(material.decoder.spec)
        form = recipe.language.formats[-1]
        figures = figures_on(least, form, terms, device, pace)
        missed = missed_limits(figures, limits)
        found = [Slice(spec=least, form=form, figures=figures, missed=missed)]
    return {
        "status": "feasible" if would_do is None else "infeasible",
        "run": str(folder),
        "task": recipe.task,
        "device": device.name,
        "teacher": {"metric": "parameters", "value": parameters(source.decoder.spec)},
        "student": {"metric": "parameters", "value": parameters(found[0].spec)},
        "budget": [v.to_json() for v in verdicts(limits, found[0].figures)],
        "artifacts": [],
        "candidates": [_row(c, scores, source.learner.decoder.spec) for c in found],
        "from_scores": bool(scores.rows),
        "would_do": None if would_do is None else would_do.to_json(),
        **drawn,
        "seconds": round(time.monotonic() - started, 2),
    }


def _row(found: Slice, scores: SliceScores, whole: DecoderSpec) -> dict[str, Any]:
    score = scores.of(found.spec, found.form)
    figure = None if score is None else score.perplexity or score.untaught
    return {
        "name": f"{name_of_slice(found.spec, whole)}, {found.form}",
        "precision": found.form,
        "spec": spec_json(found.spec),
        "parameters": parameters(found.spec),
        "figures": [f.to_json() for f in found.figures],
        "missed": list(found.missed),
        "fits": not found.missed,
        "trial": None if figure is None else figure.to_json(),
        "estimate": None,
    }
