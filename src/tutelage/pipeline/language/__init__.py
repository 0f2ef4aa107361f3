"""Language models: the same stages over a run directory, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.devices import load_device
from tutelage.files import hash_json, write_atomically
from tutelage.pipeline.language.costs import terms_of
from tutelage.pipeline.language.generating import write_texts
from tutelage.pipeline.language.material import length_of, read_language, record_data
from tutelage.pipeline.language.own_words import longest_of
from tutelage.pipeline.language.pace import pace_of
from tutelage.pipeline.language.planning import candidates, compare, limits_of
from tutelage.pipeline.language.rehearsing import rehearsed
from tutelage.pipeline.language.rounds import Job, proven
from tutelage.pipeline.language.scores import SliceScores
from tutelage.pipeline.language.source import Source, open_both, refuse_named
from tutelage.pipeline.language.teaching import ask, with_language_defaults
from tutelage.pipeline.language.trials import try_slices
from tutelage.pipeline.opening import opened, with_threads
from tutelage.pipeline.result import Result
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.report import build_report
from tutelage.students.decoders.sizes import parameters


def run_language(recipe: Recipe, folder: Path, *, progress: Progress | None = None) -> Result:
    """Do every stage that is not done yet and return the result; raises as `run_recipe` does."""
    with _job(recipe, folder, progress) as (job, started):
        proof, taught = proven(job)
        job.run.save()
        build_report(job.run.path)
        spent = time.monotonic() - started
        return Result(run=job.run.path, proof=proof, seconds=spent, student=taught.student)


def try_language(recipe: Recipe, folder: Path, *, progress: Progress | None = None) -> None:
    """Compare the slices that fit, ask the teacher and teach each of them briefly.

    `run_language` goes on from there, with the slice that learned best; raises as it does.
    """
    refuse_named(recipe, "--try")
    with _job(recipe, folder, progress) as (job, _):
        found = candidates(
            job.material, job.terms, job.limits, job.device, job.pace,
            forms=job.recipe.language.formats,
        )  # fmt: skip
        compared = compare(
            found, job.material, job.scores, job.run, job.progress, threads=job.recipe.threads
        )
        material = rehearsed(job.recipe, job.material, job.run, job.progress)
        signals = ask(job.recipe, material, job.run, job.progress)
        try_slices(job.recipe, material, compared, signals, job.scores, job.run, job.progress)
        job.run.save()


def _recorded(source: Source) -> dict[str, Any]:
    """Return what run.json says of a model."""
    size = parameters(source.decoder.spec)
    return {"source": source.name, "fingerprint": source.key, "parameters": size}


@contextmanager
def _job(recipe: Recipe, folder: Path, progress: Progress | None) -> Iterator[tuple[Job, float]]:
    """Open the run, read the texts, prune the vocabulary and note both; yield when that began."""
    recipe = with_language_defaults(with_threads(recipe))
    device = load_device(recipe.device)
    with opened(recipe, folder, progress) as (run, said):
        started = time.monotonic()
        source = open_both(recipe)
        longest_of(recipe, length_of(recipe, source))  # refused before the teacher is asked
        written = write_texts(recipe, source, run, said)
        material = read_language(recipe, source, said, written and written.path)
        record_data(recipe, material, run, written and written.figures)
        record = {**_recorded(source), "notes": []}
        if source.student is not None:
            record["student"] = _recorded(source.student)
        run.stage("teacher", hash_json(record), lambda: (record, []))
        write_atomically(run.file("recipe.yaml"), recipe.to_yaml())
        limits = limits_of(recipe, device, source)
        terms = terms_of(recipe, material)
        yield (
            Job(
                recipe=recipe, material=material, device=device, limits=limits, terms=terms,
                pace=pace_of(recipe, material, device, limits, said, run),
                scores=SliceScores.open(recipe, material, terms, folder), run=run, progress=said,
            ),
            started,
        )  # fmt: skip
