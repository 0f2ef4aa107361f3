"""Teacher and student answer the same prompts."""

from __future__ import annotations

from typing import Any

from tutelage.audit.language import degeneration
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.students.decoders.network import Decoder
from tutelage.tasks.causal_lm.reading import Document, Message
from tutelage.teach.generation import Sampling, write_answers

_PROMPTS = 6


def answer_side_by_side(
    recipe: Recipe, material: LanguageMaterial, student: Decoder, progress: Progress
) -> dict[str, Any]:
    """Return both answers to each prompt, greedy, and figures of how they degenerate."""
    prompts = _prompts(recipe, material)[:_PROMPTS]
    if not prompts:
        return {"answers": [], "degeneration": {}}
    sampling, said = Sampling(longest=recipe.language.answer), {}
    theirs, where = material.theirs or material.tokenizer, f"{len(prompts)} answers"
    if material.theirs is not None:
        where += ", in tokens of its own"
    for who, decoder, tokenizer in (
        ("teacher", material.decoder, theirs), ("student", student, material.tokenizer),
    ):  # fmt: skip
        progress.say(f"proof: the {who} answers {len(prompts)} prompts")
        asked = [as_asked(tokenizer, prompt) for prompt in prompts]
        said[who] = write_answers(decoder.network, tokenizer, asked, sampling)
    rows = [
        {"prompt": _shown(prompt), "teacher": one.text, "student": other.text}
        for prompt, one, other in zip(prompts, said["teacher"], said["student"], strict=True)
    ]
    figures = {
        who: [m.to_json() for m in degeneration(replies, where=where)]
        for who, replies in said.items()
    }
    return {"answers": rows, "degeneration": figures}


def _prompts(recipe: Recipe, material: LanguageMaterial) -> list[Document]:
    """Return the recipe's prompts, as turns of a chat where the tokenizer has a template."""
    given = recipe.language.prompts
    if given is None:
        return list(material.data.prompts)
    if getattr(material.tokenizer, "chat_template", None) is None:
        return [Document(text=text) for text in given]
    return [Document(messages=(Message(role="user", content=text),)) for text in given]


def as_asked(tokenizer: Any, prompt: Document) -> Document:
    """Return a prompt as a text to go on with, where the tokenizer has no chat template."""
    if getattr(tokenizer, "chat_template", None) is not None:
        return prompt
    return Document(text=prompt.text or "\n".join(turn.content for turn in prompt.messages))


def _shown(prompt: Document) -> str:
    """Return a prompt as text: of a conversation its last turn."""
    return prompt.messages[-1].content if prompt.messages else prompt.text
