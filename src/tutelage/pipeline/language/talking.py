"""The two networks of a finished language run, to talk to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import RecipeError
from tutelage.files import read_json
from tutelage.pipeline.language.answers import as_asked
from tutelage.pipeline.language.source import open_source
from tutelage.recipe import Recipe
from tutelage.recipe_language import LANGUAGE
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.tasks.causal_lm.reading import Document, Message
from tutelage.teach.generation import Sampling, write_answers
from tutelage.teach.gguf_file import open_gguf


@dataclass(slots=True, kw_only=True)
class Speaker:
    """One network with the conversation so far; each hears its own answers alone."""

    name: str
    decoder: Decoder
    tokenizer: Any
    turns: list[Message] = field(default_factory=list)

    def answer(self, line: str, longest: int) -> str:
        """Return the answer to a line, and remember both."""
        self.turns.append(Message(role="user", content=line))
        asked = as_asked(self.tokenizer, Document(messages=tuple(self.turns)))
        (said,) = write_answers(
            self.decoder.network, self.tokenizer, [asked], Sampling(longest=longest)
        )
        self.turns.append(Message(role="assistant", content=said.text))
        return said.text

    def forget(self) -> None:
        """Start over."""
        self.turns.clear()


def open_speakers(run: Path, *, student_only: bool = False) -> list[Speaker]:
    """Open the student from the file that ships, and its teacher.

    Raises `RecipeError` where `run` is no finished language run.
    """
    if not (run / "proof.json").is_file():
        raise RecipeError(f"{run} holds no finished run; name a run directory")
    proof = read_json(run / "proof.json")
    if proof["task"] != LANGUAGE:
        raise RecipeError(f"{run} is a run of task '{proof['task']}', which does not talk")
    network, tokenizer = open_gguf(run / proof["chosen"])
    student = Speaker(name="student", decoder=decoder_of(network), tokenizer=tokenizer)
    if student_only:
        return [student]
    source = open_source(Recipe.read(run / "recipe.yaml"))
    teacher = Speaker(name="teacher", decoder=source.decoder, tokenizer=source.tokenizer)
    return [teacher, student]
