"""Replace-one scores of the teacher: found once a run, and kept when the budget changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.files import hash_json
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.naming import name_spec
from tutelage.progress import Progress
from tutelage.run import Run
from tutelage.students.slices.narrowing import SHARES, Narrowed, replace_one, tried_widths
from tutelage.students.spec import FAMILIES, StudentSpec

_JUDGED = 512  # examples on which decisions are compared


def scores_of_stages(
    teacher: nn.Module, whole: StudentSpec, fingerprint: str, material: Material, run: Run,
    progress: Progress,
) -> Callable[[StudentSpec], Narrowed] | None:  # fmt: skip
    """Return what scores the teacher at a depth, each a stage of the run that no budget is part of.

    None where its stages cannot be narrowed alone. `whole` is its spec, `fingerprint` of its
    weights.
    """
    slicing = FAMILIES[whole.family].slicing
    if slicing is None or slicing.sizes is None:
        return None

    def scores(spec: StudentSpec) -> Narrowed:
        def work() -> tuple[Any, list[Path]]:
            judged = some_examples(material, _JUDGED)
            count = sum(len(tried) - 1 for tried in tried_widths(spec))
            progress.start(f"Narrowing {name_spec(spec)} stage by stage", count)
            found = replace_one(
                teacher, spec, some_examples(material), judged, done=progress.advance
            )
            progress.finish()
            return {**found.to_json(), "spec": spec.to_json(), "examples": len(judged)}, []

        inputs = hash_json(
            [spec.to_json(), whole.to_json(), fingerprint, material.train.content,
             torch.get_num_threads(), SHARES, _JUDGED]
        )  # fmt: skip
        name = f"narrowed-{hash_json(spec.to_json())[:12]}"
        return Narrowed.from_json(run.stage(name, inputs, work).result)

    return scores
