"""What a slice of a language model would cost as a GGUF file on a device, before it is taught."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tutelage.devices.gguf_sizes import gguf_bytes
from tutelage.export.gguf import gguf_file_bytes
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.students.decoder import DecoderSpec
from tutelage.students.decoder_sizes import shapes_of

Figures = tuple[Measurement, ...]


def pricing(recipe: Recipe, material: LanguageMaterial) -> Callable[[DecoderSpec], Figures]:
    """Return the function that predicts storage and memory of a slice; it builds nothing.

    The header (tokenizer, names) is written once, for the whole network: no slice has a longer one.
    """
    whole, form = material.decoder.spec, recipe.language.format
    with tempfile.TemporaryDirectory(prefix="tutelage-plan-") as folder:
        material.tokenizer.save_pretrained(folder)
        shapes = shapes_of(whole)
        file = gguf_file_bytes(whole.config, shapes, Path(folder), quantization=form)
        header = file - gguf_bytes(shapes, form, tied=whole.tied)

    def price(spec: DecoderSpec) -> Figures:
        stored = header + gguf_bytes(shapes_of(spec), form, tied=spec.tied)
        known = 4 * spec.layers * spec.groups * spec.head_size * material.length
        buffers = 4 * (material.length * max(spec.hidden, spec.inner) + spec.vocabulary)
        return (
            _bytes("storage_bytes", stored, f"{form}: tensors counted, header as the teacher's"),
            _bytes(
                "ram_bytes", stored + known + buffers,
                f"file, float16 keys and values of {material.length} tokens, a layer's buffers",
            ),
        )  # fmt: skip

    return price


def _bytes(name: str, value: int, where: str) -> Measurement:
    return Measurement(name=name, value=float(value), unit="B", kind="predicted", where=where)
