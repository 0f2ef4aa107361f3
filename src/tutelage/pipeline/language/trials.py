"""Short lessons of every slice that would fit, so that the best is chosen by what it can learn.

`plan --try` does them, and a run that follows takes them into account. A trial slices in one step
and teaches a twentieth of the tokens; its validation is of the network, not of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.files import hash_json
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.planning import Slice, choosing_tokens
from tutelage.pipeline.language.scores import SliceScores, name_of
from tutelage.pipeline.language.teaching import lesson_for
from tutelage.pipeline.lessons import schedule_of
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.run import Run
from tutelage.students.decoders.slicing import slice_decoder
from tutelage.teach.token_signals import TokenSignals
from tutelage.train.block_rounding import block_rounded
from tutelage.train.loop import Trainer

_SHARE = 20  # of the tokens that a whole lesson takes


def try_slices(
    recipe: Recipe, material: LanguageMaterial, compared: Sequence[Slice],
    signals: TokenSignals | None, scores: SliceScores, run: Run, progress: Progress,
) -> None:  # fmt: skip
    """Teach each slice briefly (once a run) and note its validation perplexity in `scores`."""
    for number, candidate in enumerate(compared, 1):
        label = f"Trying slices ({number} of {len(compared)})"
        figure = _tried(recipe, material, candidate, signals, scores.lesson, run, progress, label)
        scores.note(candidate.spec, candidate.form, "trial", figure)


def _tried(
    recipe: Recipe, material: LanguageMaterial, candidate: Slice, signals: TokenSignals | None,
    lesson: str, run: Run, progress: Progress, label: str,
) -> Measurement:  # fmt: skip
    counts = material.taught.learned.sum(axis=1)
    wanted = recipe.language.tokens / _SHARE
    examples = min(len(counts), math.ceil(wanted / max(1.0, float(counts.mean()))))

    def work() -> tuple[dict[str, Any], list[Path]]:
        student = slice_decoder(
            material.decoder, candidate.spec, choosing_tokens(material), kept=candidate.kept
        )
        schedule = replace(schedule_of(recipe, epochs=1, seed=recipe.seed), patience=0)
        with block_rounded(student, candidate.form):
            taught = lesson_for(
                recipe, material, student, signals, seed=recipe.seed, examples=examples
            )
            history = Trainer(taught, schedule, progress=progress, label=label).train()
        return {"perplexity": math.exp(min(-history.figure[-1], 700.0))}, []

    inputs = [lesson, candidate.spec.config, list(candidate.kept), examples, recipe.threads]
    name = "try-" + "-".join(map(str, name_of(candidate.spec, candidate.form)))
    found = run.stage(name, hash_json(inputs), work).result
    return Measurement(
        name="perplexity_validation", value=found["perplexity"], unit="1", kind="measured",
        where=f"after a short lesson of {examples} sequences, in torch",
    )  # fmt: skip
