"""A step's slice: cut from the network before it, and fitted to it before anything is taught."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.files import read_tensors, write_tensors
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.planning import choosing_tokens, divergence
from tutelage.pipeline.language.rehearsing import freely_written
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.decoders.network import Decoder, DecoderSpec
from tutelage.students.decoders.refitting import can_refit, refit
from tutelage.students.decoders.slicing import slice_decoder

_FITTING_TOKENS, _JUDGING_TOKENS = 32_768, 2_048


def cut(
    recipe: Recipe, material: LanguageMaterial, before: Decoder, spec: DecoderSpec,
    kept: tuple[int, ...] | None, run: Run, progress: Progress, *, number: int, inputs: str,
) -> tuple[Decoder, list[str]]:  # fmt: skip
    """Return the slice that step `number` teaches, and what was done to it; `inputs` names both.

    Fitting is a stage of the run, so that a killed lesson does not fit anew. It is dropped where
    the slice then is no nearer to what it was cut from on validation.
    """
    small = slice_decoder(before, spec, choosing_tokens(material), kept=kept)
    if not recipe.language.refit or spec == before.spec or not can_refit(before):
        return small, []
    path = run.file(f"taught/cut-{number}.safetensors")

    def work() -> tuple[Any, list[Path]]:
        tokens = _fitting_tokens(recipe, material, run, progress)
        held_out = _judging_tokens(material)
        unfitted, first = copy.deepcopy(small.state_dict()), divergence(before, small, held_out)
        refit(small, before, tokens, progress=progress)
        last = divergence(before, small, held_out)
        if not last < first:  # not where NaN
            small.load_state_dict(unfitted)
        write_tensors(path, small.state_dict())
        return {"tokens": tokens.numel(), "kl": [first, last]}, [path]

    found = run.stage(f"cut-{number}", inputs, work).result
    small.load_state_dict(read_tensors(path)[0])
    said = _said(found)
    progress.say(f"student: {said}")
    return small, [said]


def _said(found: dict[str, Any]) -> str:
    first, last = found["kl"]
    if not last < first:
        return f"a slice as it was cut: fitted it is {last:.3f} nats a token away, not {first:.3f}"
    return (
        f"a slice fitted by least squares on {found['tokens']:,} tokens to what it was cut from "
        f"({first:.3f} nats a token away before, {last:.3f} after)"
    )


def _fitting_tokens(
    recipe: Recipe, material: LanguageMaterial, run: Run, progress: Progress
) -> Int[Tensor, "n length"]:
    """Return sequences to fit a slice on: the user's, and as many that the teacher writes freely.

    Without the latter the slice is nearer on the user's texts and farther on all others.
    """
    texts = material.data.train.ids[: max(1, _FITTING_TOKENS // (2 * material.length))]
    if material.rehearsal is not None and len(material.rehearsal) >= len(texts):
        own = material.rehearsal.ids[: len(texts)]
    else:
        own = freely_written(recipe, material, len(texts), run, progress, stage="fitting-texts")
    return torch.from_numpy(np.concatenate([texts, own])).long()


def _judging_tokens(material: LanguageMaterial) -> Int[Tensor, "n length"]:
    ids = material.data.validation.ids[: max(1, _JUDGING_TOKENS // material.length)]
    return torch.from_numpy(ids).long()
