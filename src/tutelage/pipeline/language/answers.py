"""Teacher and student answer the same prompts."""

from __future__ import annotations

from typing import Any

from tutelage.audit.language import degeneration
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.students.decoder import Decoder
from tutelage.teach.generation import generate

_PROMPTS = 6


def answer_side_by_side(
    recipe: Recipe, material: LanguageMaterial, student: Decoder, progress: Progress
) -> dict[str, Any]:
    """Return both answers to each prompt, greedy, and figures of how they degenerate."""
    given = recipe.language.prompts
    prompts = [[{"role": "user", "content": text}] for text in given] if given else []
    prompts = (prompts or list(material.data.prompts))[:_PROMPTS]
    if not prompts:
        return {"answers": [], "degeneration": {}}
    said = {}
    for who, decoder in (("teacher", material.decoder), ("student", student)):
        progress.say(f"proof: the {who} answers {len(prompts)} prompts")
        said[who] = generate(
            decoder.network, material.tokenizer, prompts, longest=recipe.language.answer
        )
    rows = [
        {"prompt": shown(prompt), "teacher": one, "student": other}
        for prompt, one, other in zip(prompts, said["teacher"], said["student"], strict=True)
    ]
    figures = {
        who: [f.to_json() for f in degeneration(texts, where=who)] for who, texts in said.items()
    }
    return {"answers": rows, "degeneration": figures}


def shown(prompt: Any) -> str:
    """Return a prompt as text: of a conversation its last turn."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
