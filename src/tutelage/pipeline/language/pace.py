"""How fast this machine says tokens, by the teacher's own file in llama.cpp.

A profile without a memory bandwidth, as this machine's, foretells no speed. Where a limit asks for
one, the teacher's file (a named student's own) is written untaught and timed once, and other files
are taken to need time in proportion to the bytes that are read for a token. Does not cover what a
token costs beside reading (short for files of some 10 MB and more).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.devices import HOST, Device
from tutelage.devices.gguf_sizes import bytes_a_token
from tutelage.errors import RecipeError
from tutelage.export.gguf import write_gguf
from tutelage.files import hash_json
from tutelage.measure.llama_cpp import LlamaCppFigures, measure_llama_cpp
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.students.decoders.sizes import shapes_of

_LEAST_CONTEXT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that a byte read for a token takes, with an interval, and where that was measured."""

    byte_s: float
    spread: tuple[float, float]
    where: str

    def rate(self, read_bytes: int) -> Measurement:
        """Predict tokens a second of a file of which a token reads so many bytes."""
        low, high = (1 / (read_bytes * s) for s in reversed(self.spread))
        return Measurement(
            name="tokens_per_s", value=1 / (read_bytes * self.byte_s), unit="token/s",
            kind="predicted", spread=(low, high), where=self.where,
        )  # fmt: skip


def pace_of(
    recipe: Recipe, material: LanguageMaterial, device: Device, limits: tuple[Limit, ...],
    progress: Progress, run: Run | None = None,
) -> Pace | None:  # fmt: skip
    """Return the pace of this machine, measured once a run; None where it is not needed.

    Raises `RecipeError` where a hard limit asks for a speed and none can be told.
    """
    asked = [x for x in limits if x.metric == "latency_s"]
    if not asked or device.bandwidth is not None:
        return None

    def work() -> tuple[dict[str, Any], list[Path]]:
        progress.say(f"plan: timing the {_whose(material)}'s own file in llama.cpp")
        return _measured(recipe, material), []

    if device.name != HOST:
        found: dict[str, Any] = {"why": f"the profile of '{device.name}' has no bandwidth; add one"}
    elif run is None:
        found = work()[0]
    else:
        inputs = hash_json([material.teacher, material.student, material.vocabulary,
                            material.length, recipe.language.usual, recipe.threads])  # fmt: skip
        found = run.stage("pace", inputs, work).result
    if "why" not in found:
        low, high = found["spread"]
        return Pace(byte_s=found["byte_s"], spread=(low, high), where=found["where"])
    if any(x.hard for x in asked):
        raise RecipeError(
            f"budget.speed and budget.latency cannot be kept on '{device.name}': {found['why']}"
        )
    return None


def _measured(recipe: Recipe, material: LanguageMaterial) -> dict[str, Any]:
    decoder, form = material.start, recipe.language.usual
    with tempfile.TemporaryDirectory(prefix="tutelage-pace-") as folder:
        material.tokenizer.save_pretrained(folder)
        state = {k.removeprefix("network."): x for k, x in decoder.state_dict().items()}
        path = Path(folder) / "teacher.gguf"
        write_gguf(path, decoder.spec.config, state, Path(folder), quantization=form)
        figures, why = here(path, recipe.threads or 1, material.length)
    if figures is None:
        return {"why": why}
    token, read = figures.token_s, bytes_a_token(
        shapes_of(decoder.spec), form, tied=decoder.spec.tied
    )  # fmt: skip
    low, high = token.spread or (token.value, token.value)
    return {
        "byte_s": token.value / read,
        "spread": [low / read, high / read],
        "where": f"{token.where}: as the {_whose(material)}'s file, by the bytes read for a token",
    }


def _whose(material: LanguageMaterial) -> str:
    return "teacher" if material.given is None else "student"


def here(path: Path, threads: int, length: int) -> tuple[LlamaCppFigures | None, str]:
    """Measure a file in llama.cpp on this machine, in a context of `length` tokens."""
    context = max(_LEAST_CONTEXT, length)
    said = min(32, context // 4)
    return measure_llama_cpp(
        path, threads=threads, context=context, prompt=min(128, context // 2), said=said
    )
