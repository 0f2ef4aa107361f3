"""Language models: the same stages over a run directory, token by token."""

from __future__ import annotations

import time
from pathlib import Path

from tutelage.devices import load_device
from tutelage.files import hash_json, write_atomically
from tutelage.pipeline.language.generating import write_texts
from tutelage.pipeline.language.material import read_language, record_data
from tutelage.pipeline.language.own_words import longest_of
from tutelage.pipeline.language.planning import choose, limits_of
from tutelage.pipeline.language.proving import prove
from tutelage.pipeline.language.shipping import ship
from tutelage.pipeline.language.source import open_source
from tutelage.pipeline.language.teaching import ask, teach, with_language_defaults
from tutelage.pipeline.opening import opened, with_threads
from tutelage.pipeline.result import Result
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.report import build_report
from tutelage.students.decoder_sizes import parameters


def run_language(recipe: Recipe, folder: Path, *, progress: Progress | None = None) -> Result:
    """Do every stage that is not done yet and return the result; raises as `run_recipe` does."""
    recipe = with_language_defaults(with_threads(recipe))
    device = load_device(recipe.device)
    with opened(recipe, folder, progress) as (run, said):
        started = time.monotonic()
        source = open_source(recipe)
        written = write_texts(recipe, source, run, said)
        material = read_language(recipe, source, said, written and written.path)
        longest_of(recipe, material.length)  # refused before the teacher is asked
        record_data(recipe, material, run, written and written.figures)
        record = {
            "source": source.name,
            "fingerprint": source.key,
            "parameters": parameters(source.decoder.spec),
            "notes": [],
        }
        run.stage("teacher", hash_json(record), lambda: (record, []))
        write_atomically(run.file("recipe.yaml"), recipe.to_yaml())
        limits = limits_of(recipe, device, source.decoder.spec)
        chosen = choose(recipe, device, material, limits, run, said)
        signals = ask(recipe, material, run, said)
        taught = teach(recipe, material, chosen, signals, run, said)
        run.stage("distill", hash_json(taught.result), lambda: (taught.result, []))
        shipped = ship(recipe, material, taught, run, said)
        proof = prove(recipe, material, taught, shipped, device, limits, run, said)
        run.save()
        build_report(run.path)
        spent = time.monotonic() - started
        return Result(run=run.path, proof=proof, seconds=spent, student=taught.student)
