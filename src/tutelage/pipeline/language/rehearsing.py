"""Text that the teacher writes freely, learned beside the user's so that less else is forgotten.

Each sequence begins with a token drawn evenly from the vocabulary and goes on as the teacher draws,
over ends and into further texts (data-free distillation of LLM-QAT, 2305.17888). Such text is the
teacher's own distribution: cross entropy on it is forward KL to the teacher but for a constant.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from tutelage.files import hash_json, read_tensors
from tutelage.passes import native_bf16
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.tasks.causal_lm.packing import whole_sequences
from tutelage.teach.generation import write_freely
from tutelage.teach.shards import Shards

_BATCH = 64  # sequences written at once, and lost at most where a run is killed
_CHARACTERS = 160  # of a sequence that is shown


def rehearsed(
    recipe: Recipe, material: LanguageMaterial, run: Run, progress: Progress
) -> LanguageMaterial:
    """Return the material with what the teacher wrote beside it; as it is where none is asked for.

    The text is written once a run; a killed one loses a batch of sequences at most.
    """
    share, train = recipe.language.rehearse, material.data.train
    if not share:
        return material
    wanted = int(train.learned.sum()) * share / (1 - share)
    count = max(1, round(wanted / (material.length - 1)))
    ids = freely_written(recipe, material, count, run, progress, stage="rehearsal")
    made = run.manifest["stages"]["rehearsal"]["result"]
    progress.say(
        f"data: beside the texts {made['tokens']:,} tokens of the teacher's own are learned, such "
        f"as '{made['shown']}…'"
    )
    return replace(material, rehearsal=whole_sequences(ids))


def freely_written(
    recipe: Recipe, material: LanguageMaterial, count: int, run: Run, progress: Progress, *,
    stage: str,
) -> Int[np.ndarray, "n length"]:  # fmt: skip
    """Return `count` sequences that the teacher writes, once a run, as the stage of that name."""
    key = hash_json(
        [material.teacher, material.vocabulary, material.content, material.length, count,
         recipe.seed]
    )  # fmt: skip
    folder = run.file(f"{stage}/{key[:16]}")

    def written() -> Iterator[Int[np.ndarray, "b length"]]:
        return _written(material, count, recipe.seed, folder, key, progress)

    def work() -> tuple[Any, list[Path]]:
        parts = list(written())
        tokens, shown = count * (material.length - 1), _shown(material.tokenizer, parts[0][0])
        result = {"sequences": count, "tokens": tokens, "shown": shown}
        return result, [folder / "manifest.json"]

    run.stage(stage, key, work)
    return np.concatenate(list(written()))


def _written(
    material: LanguageMaterial, count: int, seed: int, folder: Path, key: str, progress: Progress
) -> Iterator[Int[np.ndarray, "b length"]]:
    """Yield the sequences shard by shard, writing those that are not there."""
    shards = Shards(folder, key)
    starts = {f"{i:06d}.safetensors": i for i in range(0, count, _BATCH)}
    there = shards.open(starts)
    behind = sum(min(_BATCH, count - starts[name]) for name in there)
    network: Any = None
    if behind < count:
        progress.start("The teacher writes freely", count, done=behind)
        network = _writer(material)
    firsts = _firsts(material, count, seed)
    for name, start in starts.items():
        if name not in there:
            some = firsts[start : start + _BATCH].tolist()
            ids = write_freely(network, some, material.length, seed=seed, first=start)
            shards.add(name, {"ids": torch.from_numpy(ids)})
            progress.advance(len(ids))
        yield read_tensors(folder / name)[0]["ids"].numpy()
    if behind < count:
        progress.finish()


def _writer(material: LanguageMaterial) -> Any:
    """Return the teacher's network to write with, a copy in bfloat16 where the machine has it."""
    network = material.decoder.network
    half = native_bf16(next(material.decoder.parameters()).device)
    return copy.deepcopy(network).bfloat16() if half else network


def _firsts(material: LanguageMaterial, count: int, seed: int) -> Int[np.ndarray, " count"]:
    """Return the tokens that sequences begin with, none of them a special one."""
    special = getattr(material.tokenizer, "all_special_ids", [])
    plain = np.setdiff1d(np.arange(material.decoder.spec.vocabulary), special)
    return np.random.default_rng([seed, 13]).choice(plain, count)


def _shown(tokenizer: Any, ids: Int[np.ndarray, " length"]) -> str:
    text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    return "".join(filter(str.isprintable, " ".join(text.split())))[:_CHARACTERS]
