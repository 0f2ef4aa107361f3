"""What a language run reads: texts as tokens, in a vocabulary that was pruned before all else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.files import hash_json
from tutelage.pipeline.language.source import Source
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.decoders.network import Decoder
from tutelage.students.decoders.slicing import with_tokens
from tutelage.tasks.causal_lm.packing import Tokens, joined
from tutelage.tasks.causal_lm.task import LanguageData, load_language
from tutelage.tasks.causal_lm.vocabulary import prune_tokenizer

_LENGTH = 512  # tokens a sequence, where the recipe names none
_VALIDATION = 64  # sequences to choose by and to test on, at most: each is passed many times
_TEST = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageMaterial:
    """The data, and the teacher in the vocabulary that both speak.

    `content` hashes the tokens of all splits, `teacher` names its files by their hash, and
    `vocabulary` says what became of the tokenizer. `given` is the student that the recipe names, in
    that vocabulary, and `student` names its files; `theirs` is the teacher's tokenizer where it is
    another: the teacher then stays as it is.
    """

    data: LanguageData
    decoder: Decoder
    tokenizer: Any
    length: int
    content: str
    teacher: str
    vocabulary: dict[str, Any]
    given: Decoder | None = None
    student: str = ""
    theirs: Any = None
    rehearsal: Tokens | None = None

    @property
    def taught(self) -> Tokens:
        """What is learned from: the training texts, and what the teacher wrote beside them."""
        train = self.data.train
        return train if self.rehearsal is None else joined(train, self.rehearsal)

    @property
    def start(self) -> Decoder:
        """The network that students are made of: the one that is given, else the teacher."""
        return self.decoder if self.given is None else self.given


def read_language(
    recipe: Recipe, source: Source, progress: Progress, generated: Path | None = None
) -> LanguageMaterial:
    """Read the texts, and prune tokenizer and networks to the tokens that training texts use.

    That is the student's tokenizer where the recipe names one; a teacher with another is left as it
    is. `generated` are chats that the teacher wrote.
    """
    context, length = _context(source), length_of(recipe, source)
    tokenizer = source.learner.tokenizer
    data = _load(recipe, tokenizer, length, context, generated)
    whole, before = source.learner.decoder.spec.vocabulary, _learned(data.test)
    kept = np.arange(min(each.spec.vocabulary for each in _alike(source)))
    if recipe.data.vocabulary == "pruned":
        progress.say("data: pruning the vocabulary to what the training texts use")
        pruned = prune_tokenizer(tokenizer, data.train.ids)
        tokenizer, kept = pruned.tokenizer, pruned.kept
        data = _load(recipe, tokenizer, length, context, generated)
    decoder, given = _cut(source, torch.from_numpy(kept))
    after = _learned(data.test)
    data = dataclasses.replace(
        data,
        train=_enough(data.train, _of_texts(recipe), recipe.seed),
        validation=_first(data.validation, _VALIDATION),
        test=_first(data.test, _TEST),
    )
    content = hash_json([part.fingerprint for part in (data.train, data.validation, data.test)])
    counts = {
        "whole": whole, "kept": len(kept),
        "test_tokens_whole": before, "test_tokens_kept": after,
    }  # fmt: skip
    for note in data.notes:
        progress.say(f"data: {note}")
    return LanguageMaterial(
        data=data, decoder=decoder, tokenizer=tokenizer, length=length, content=content,
        teacher=source.key, vocabulary=counts, given=given, **named(source),
    )  # fmt: skip


def named(source: Source) -> dict[str, Any]:
    """Return what material says of a student that the recipe names, but for the network."""
    theirs = source.tokenizer if source.apart else None
    return {"student": source.student.key if source.student else "", "theirs": theirs}


def _alike(source: Source) -> list[Decoder]:
    """Return the networks that number tokens as the student does."""
    return [source.learner.decoder, *([] if source.apart else [source.decoder])]


def _cut(source: Source, kept: Tensor) -> tuple[Decoder, Decoder | None]:
    """Return teacher and named student with the tokens `kept` of the student's tokenizer alone."""

    def cut(decoder: Decoder) -> Decoder:
        return decoder if len(kept) == decoder.spec.vocabulary else with_tokens(decoder, kept)

    teacher = source.decoder if source.apart else cut(source.decoder)
    return teacher, None if source.student is None else cut(source.student.decoder)


def length_of(recipe: Recipe, source: Source) -> int:
    """Return how many tokens a sequence has."""
    return recipe.data.length or min(_LENGTH, _context(source))


def _context(source: Source) -> int:
    return min(
        int(each.spec.config.get("max_position_embeddings", _LENGTH)) for each in _alike(source)
    )


def _load(
    recipe: Recipe, tokenizer: Any, length: int, context: int, generated: Path | None
) -> LanguageData:
    return load_language(
        recipe.data.train,
        recipe.data.test,
        generated=generated,
        tokenizer=tokenizer,
        length=length,
        answers_only=recipe.language.answers_only,
        validation=recipe.data.validation,
        seed=recipe.seed,
        context_length=context,
    )


def record_data(
    recipe: Recipe, material: LanguageMaterial, run: Run, written: dict[str, Any] | None
) -> None:
    """Write down what the report says of the data; `written` is what the teacher wrote of it."""
    data = material.data
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found = {
        "source": recipe.data.train or "written by the teacher",
        "task": recipe.task,
        "counts": {name: _learned(part) for name, part in splits.items()},
        "sequences": {name: len(part) for name, part in splits.items()},
        "documents": {name: part.documents for name, part in splits.items()},
        "length": material.length,
        "vocabulary": material.vocabulary,
        "notes": list(data.notes),
    }
    if written is not None:
        found["generated"] = written
    run.stage("data", hash_json([found, material.content]), lambda: (found, []))


def _learned(tokens: Tokens) -> int:
    return int(tokens.learned.sum())


def _of_texts(recipe: Recipe) -> int:
    """Return how many of the tokens that are taught come from the texts."""
    return round(recipe.language.tokens * (1 - recipe.language.rehearse))


def _enough(tokens: Tokens, wanted: int, seed: int) -> Tokens:
    """Return as many sequences, drawn at random, as hold the tokens that are taught in all.

    The teacher is asked about no others.
    """
    order = np.random.default_rng([seed, 5]).permutation(len(tokens))
    counts = tokens.learned[order].sum(axis=1).cumsum()
    return tokens.take(np.sort(order[: int(np.searchsorted(counts, wanted)) + 1]))


def _first(tokens: Tokens, most: int) -> Tokens:
    return tokens.take(np.arange(min(most, len(tokens))))
