"""A step's slice: cut from the network before it, and fitted to it before anything is taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.files import read_tensors, write_tensors
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.planning import choosing_tokens
from tutelage.pipeline.language.rehearsing import freely_written
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.decoders.network import Decoder, DecoderSpec
from tutelage.students.decoders.refitting import can_refit, refit
from tutelage.students.decoders.slicing import slice_decoder

_FITTING_TOKENS = 32_768


def cut(
    recipe: Recipe, material: LanguageMaterial, before: Decoder, spec: DecoderSpec,
    kept: tuple[int, ...] | None, run: Run, progress: Progress, *, number: int, inputs: str,
) -> Decoder:  # fmt: skip
    """Return the slice that step `number` teaches; `inputs` names what it hangs on.

    Fitting is a stage of the run, so that a killed lesson does not fit anew.
    """
    small = slice_decoder(before, spec, choosing_tokens(material), kept=kept)
    if not recipe.language.refit or spec == before.spec or not can_refit(before):
        return small
    path = run.file(f"taught/cut-{number}.safetensors")

    def work() -> tuple[Any, list[Path]]:
        tokens = _fitting_tokens(recipe, material, run, progress)
        refit(small, before, tokens, progress=progress)
        write_tensors(path, small.state_dict())
        return {"tokens": tokens.numel()}, [path]

    run.stage(f"cut-{number}", inputs, work)
    small.load_state_dict(read_tensors(path)[0])
    return small


def _fitting_tokens(
    recipe: Recipe, material: LanguageMaterial, run: Run, progress: Progress
) -> Int[Tensor, "n length"]:
    """Return sequences to fit a slice on: the user's, and as many that the teacher writes freely.

    Without the latter the slice is nearer on the user's texts and farther on all others.
    """
    count = max(1, _FITTING_TOKENS // material.length)
    texts = material.data.train.ids[:count]
    if material.theirs is None:
        count = min(len(texts), max(1, count // 2))
        own = freely_written(recipe, material, count, run, progress, stage="fitting-texts")
        texts = np.concatenate([texts[:count], own])
    return torch.from_numpy(texts).long()
