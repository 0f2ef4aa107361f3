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
_SHOWN, _CHARACTERS = 3, 160  # sequences that are shown, and how much of each


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
    key = hash_json(["rehearsal", material.teacher, material.content, count, recipe.seed, _BATCH])
    folder = run.file(f"rehearsal/{key[:16]}")

    def work() -> tuple[Any, list[Path]]:
        parts = [ids for _, ids in _written(material, count, recipe.seed, folder, key, progress)]
        shown = [_shown(material.tokenizer, ids) for ids in parts[0][:_SHOWN]]
        tokens = count * (material.length - 1)
        return {"sequences": count, "tokens": tokens, "shown": shown}, [folder / "manifest.json"]

    record = run.stage("rehearsal", key, work)
    progress.say(
        f"data: beside the texts {record.result['tokens']:,} tokens of the teacher's own are "
        f"learned, such as '{record.result['shown'][0]}…'"
    )
    written = _written(material, count, recipe.seed, folder, key, progress)
    ids = np.concatenate([ids for _, ids in written])
    return replace(material, rehearsal=whole_sequences(ids))


def _written(
    material: LanguageMaterial, count: int, seed: int, folder: Path, key: str, progress: Progress
) -> Iterator[tuple[str, Int[np.ndarray, "b length"]]]:
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
        yield name, read_tensors(folder / name)[0]["ids"].numpy()
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
