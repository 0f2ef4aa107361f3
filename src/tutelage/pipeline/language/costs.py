"""What a slice of a language model would cost as a GGUF file on a device, before it is taught."""

from __future__ import annotations

import json
from typing import Any

from tutelage.devices import Device
from tutelage.devices.gguf_sizes import gguf_bytes
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.students.decoder import DecoderSpec
from tutelage.students.decoder_sizes import shapes_of

_KEYS_BYTES = 8_192  # names of keys, of tensors, and what else stands before the weights


def figures_of(
    recipe: Recipe, device: Device, material: LanguageMaterial, spec: DecoderSpec
) -> tuple[Measurement, ...]:
    """Return the predicted bytes of the file and of memory; nothing is built."""
    tensors = gguf_bytes(shapes_of(spec), recipe.language.format, tied=spec.tied)
    stored = tensors + vocabulary_bytes(material.tokenizer) + _KEYS_BYTES + 128 * spec.layers
    cache = 2 * 2 * spec.layers * spec.groups * spec.head_size * material.length  # f16 keys, values
    buffers = 4 * material.length * max(spec.hidden, spec.inner) + 4 * spec.vocabulary
    return (
        _bytes("storage_bytes", stored, f"{recipe.language.format}: counted tensors and tokenizer"),
        _bytes("ram_bytes", stored + cache + buffers,
               f"file, keys and values of {material.length} tokens, and one layer's buffers"),
    )  # fmt: skip


def vocabulary_bytes(tokenizer: Any) -> int:
    """Return what tokens, their types and merges take in the file: a length of 8 bytes each."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sum(8 + 4 + len(token.encode()) for token in tokenizer.get_vocab())
    merges = data["model"].get("merges") or []
    joined = (m if isinstance(m, str) else " ".join(m) for m in merges)
    template = getattr(tokenizer, "chat_template", None) or ""
    return tokens + sum(8 + len(merge.encode()) for merge in joined) + len(str(template).encode())


def _bytes(name: str, value: int, where: str) -> Measurement:
    return Measurement(name=name, value=float(value), unit="B", kind="predicted", where=where)
