"""What a slice of a language model would cost as a GGUF file on a device, before it is taught."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.devices import Device
from tutelage.devices.cost import estimate_energy
from tutelage.devices.gguf_sizes import bytes_a_token, gguf_bytes
from tutelage.devices.llama_cpp import DecoderSize, predict_memory, predict_tokens_per_s
from tutelage.export.gguf import gguf_file_bytes
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.pace import Pace
from tutelage.recipe import Recipe
from tutelage.recipe_language import Quantization
from tutelage.records import Measurement
from tutelage.students.decoders.network import DecoderSpec
from tutelage.students.decoders.sizes import shapes_of

Figures = tuple[Measurement, ...]
Price = Callable[[DecoderSpec], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the cost of every slice hangs on beside its sizes and form: the file's header, texts.

    `header_bytes` (tokenizer, names) are the whole network's: no slice has a longer one; 0 where
    it is not known. `length` is the tokens of the texts that memory is for.
    """

    header_bytes: int
    length: int


def terms_of(recipe: Recipe, material: LanguageMaterial) -> Terms:
    """Return the terms of a run; the header is written once, nothing else."""
    whole, form = material.start.spec, recipe.language.usual
    with tempfile.TemporaryDirectory(prefix="tutelage-plan-") as folder:
        material.tokenizer.save_pretrained(folder)
        shapes = shapes_of(whole)
        file = gguf_file_bytes(whole.config, shapes, Path(folder), quantization=form)
    header = file - gguf_bytes(shapes, form, tied=whole.tied)
    return Terms(header_bytes=header, length=material.length)


def figures_on(
    spec: DecoderSpec, form: Quantization, terms: Terms, device: Device, pace: Pace | None = None
) -> Figures:
    """Predict storage, memory for texts of the run's length, and where it can be told the speed.

    That is tokens a second, seconds a token and energy a token: by the device's memory bandwidth,
    or by the pace of another file on the same machine.
    """
    shapes, size = shapes_of(spec), DecoderSize.of(spec.config)
    weights = gguf_bytes(shapes, form, tied=spec.tied)
    header = "header as the whole network's" if terms.header_bytes else "without a header"
    stored = Measurement(
        name="storage_bytes", value=float(terms.header_bytes + weights), unit="B",
        kind="predicted", where=f"{form}: tensors counted, {header}",
    )  # fmt: skip
    memory = predict_memory(size, weights, terms.length).total
    read = bytes_a_token(shapes, form, tied=spec.tied)
    rate = predict_tokens_per_s(size, read, device, filled=terms.length // 2)
    if rate is None and pace is not None:
        rate = pace.rate(read)
    return (stored, replace(memory, name="ram_bytes"), *_timed(rate, device))


def _timed(rate: Measurement | None, device: Device) -> Figures:
    """Return the rate, the time a token and its energy; nothing where no rate is known."""
    if rate is None:
        return ()
    low, high = rate.spread or (rate.value, rate.value)
    rate = replace(rate, where=f"{device.name}: a token, by the bytes read for it")
    a_token = replace(
        rate, name="latency_s", value=1 / rate.value, unit="s", spread=(1 / high, 1 / low)
    )
    if device.active_power_w is None:
        return rate, a_token
    return rate, a_token, replace(estimate_energy(a_token, device), name="energy_j")
