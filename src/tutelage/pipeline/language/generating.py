"""Texts that the teacher writes itself: prompts in, answers that are worth learning out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import DataError, RecipeError
from tutelage.files import hash_json
from tutelage.pipeline.language.material import LanguageMaterial, length_of, named, read_language
from tutelage.pipeline.language.source import Source
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.recipe_data import GeneratePart
from tutelage.run import Run
from tutelage.tasks.causal_lm.generated import (
    REASONS,
    Generated,
    fill_templates,
    generate,
    read_prompts,
)
from tutelage.tasks.causal_lm.packing import pack_nothing
from tutelage.tasks.causal_lm.reading import Document, Message
from tutelage.tasks.causal_lm.task import LanguageData
from tutelage.tasks.causal_lm.tokens import Writer
from tutelage.teach.generation import Sampling, answering

_BATCH = 16  # answers written at once, and lost at most where a run is killed
_TEMPLATES = (
    "Explain {topic} in a few sentences.",
    "What should everyone know about {topic}?",
    "Give an example of {topic}, and say what it shows.",
    "Answer a question that beginners ask about {topic}.",
    "Compare {topic} with something that is often confused with it.",
    "Write a short paragraph about {topic}.",
)
_SHOWN = 80  # characters of a pair that is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The file of chats, and what run.json and the report say of it."""

    path: Path
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Prompts in an order of their own; `long` ones leave no room for an answer.

    `key` names all that the answers depend on.
    """

    prompts: list[str]
    long: int
    key: str

    def file(self, run: Path) -> Path:
        """Return where a run keeps the answers."""
        return run / "generated" / self.key[:16] / "chats.jsonl"


def write_texts(recipe: Recipe, source: Source, run: Run, progress: Progress) -> Written | None:
    """Have the teacher answer the recipe's prompts (once a run); None where it asks for none.

    A killed run loses one batch of answers at most. Raises `DataError` where there is nothing to
    ask, the teacher does not chat, or no answer is worth learning.
    """
    part = recipe.data.generate
    if part is None:
        return None
    asked = _asked(recipe, part, source)
    path = asked.file(run.path)

    def work() -> tuple[Any, list[Path]]:
        sampling = Sampling(
            longest=part.longest, temperature=part.temperature, top_p=part.top_p,
            seed=recipe.seed, batch=_BATCH,
        )  # fmt: skip
        answer = answering(source.decoder.network, source.tokenizer, sampling, system=part.system)
        made = generate(
            asked.prompts, answer, path, answers=_answers(part, len(asked.prompts)),
            key=asked.key, batch=_BATCH, progress=progress,
        )  # fmt: skip
        for note in made.notes():
            progress.say(f"data: {note}")
        for prompt, reply in made.shown[:2]:
            progress.say(f"data: '{_short(prompt)}' is answered '{_short(reply)}'")
        return _figures(made, asked.long), [path]

    return Written(path=path, figures=run.stage("generate", asked.key, work).result)


def material_to_plan(
    recipe: Recipe, source: Source, folder: Path, progress: Progress
) -> LanguageMaterial:
    """Read what there is to plan by, where nothing may be asked and nothing written.

    Texts that a run in `folder` has generated count; where there are none at all, sizes are those
    of the whole vocabulary.
    """
    part = recipe.data.generate
    path = None if part is None else _asked(recipe, part, source).file(folder)
    if path is None or path.exists():
        return read_language(recipe, source, progress, path)
    if recipe.data.train is not None:
        progress.say("plan: nothing is generated yet, so its words are not in the vocabulary")
        return read_language(recipe, source, progress)
    progress.say("plan: nothing is generated yet, so all of the vocabulary is counted")
    nothing, own = pack_nothing(length_of(recipe, source)), source.learner
    size = own.decoder.spec.vocabulary
    return LanguageMaterial(
        data=LanguageData(train=nothing, validation=nothing, test=nothing),
        decoder=source.decoder, tokenizer=own.tokenizer, length=nothing.length, content="",
        teacher=source.key, vocabulary={"whole": size, "kept": size},
        given=None if source.student is None else own.decoder, **named(source),
    )  # fmt: skip


def _asked(recipe: Recipe, part: GeneratePart, source: Source) -> _Asked:
    template = getattr(source.tokenizer, "chat_template", None)
    if template is None:
        raise DataError(
            f"data.generate asks the teacher in a chat, and the tokenizer of {source.name} has no "
            "chat template: take a model that was tuned on chats, or give texts in data.train"
        )
    given = read_prompts(part.prompts) if isinstance(part.prompts, str) else part.prompts or []
    given = [prompt for prompt in given if prompt.strip()]
    if part.topics:
        given += fill_templates(part.topics, part.templates or _TEMPLATES)
    if not given:
        raise RecipeError("data.generate.prompts are nothing but white space; write some")
    fitting = _fitting(given, part, source)
    if not fitting:
        raise DataError(
            f"no prompt of data.generate leaves room for {part.longest} tokens in what the teacher "
            "reads: lower data.generate.longest, or shorten the prompts"
        )
    order = np.random.default_rng([recipe.seed, 11]).permutation(len(fitting))
    prompts = [fitting[i] for i in order]
    how = part.model_dump(mode="json", exclude={"prompts", "topics", "templates"})
    key = hash_json(["generate", source.key, template, prompts, how, recipe.seed, _BATCH])
    return _Asked(prompts=prompts, long=len(given) - len(fitting), key=key)


def _fitting(prompts: list[str], part: GeneratePart, source: Source) -> list[str]:
    """Return the prompts that leave room for an answer in what the teacher reads."""
    most = source.decoder.spec.config.get("max_position_embeddings")
    if most is None:
        return prompts
    writer = Writer(source.tokenizer)
    system = (Message(role="system", content=part.system),) if part.system else ()

    def fits(number: int, text: str) -> bool:
        where = f"prompt {number} of data.generate"
        messages = (*system, Message(role="user", content=text))
        return len(writer.prompt(Document(messages=messages, where=where))) + part.longest <= most

    return [text for number, text in enumerate(prompts, 1) if fits(number, text)]


def _answers(part: GeneratePart, prompts: int) -> int | None:
    """Return how many answers are asked for: drawing the likeliest twice would change nothing."""
    if part.examples is None:
        return None
    return part.examples if part.temperature else min(part.examples, prompts)


def _figures(made: Generated, long: int) -> dict[str, Any]:
    left_out = {REASONS[why]: n for why, n in made.refused.items() if n}
    return {
        "prompts": made.prompts,
        "doubled": made.doubled,
        "long": long,
        "answers": made.answers,
        "kept": made.kept,
        "left_out": left_out,
        "shown": [{"prompt": prompt, "answer": answer} for prompt, answer in made.shown],
    }


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
