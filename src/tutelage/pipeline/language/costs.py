"""What a slice of a language model would cost as a GGUF file on a device, before it is taught."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tutelage.devices import Device
from tutelage.devices.cost import estimate_energy
from tutelage.devices.gguf_sizes import bytes_a_token, gguf_bytes
from tutelage.devices.llama_cpp import DecoderSize, predict_memory, predict_tokens_per_s
from tutelage.export.gguf import gguf_file_bytes
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.students.decoder import DecoderSpec
from tutelage.students.decoder_sizes import shapes_of

Figures = tuple[Measurement, ...]


def pricing(
    recipe: Recipe, material: LanguageMaterial, device: Device
) -> Callable[[DecoderSpec], Figures]:
    """Return the function that predicts what a slice costs; it builds nothing.

    Storage, memory for texts of the run's length, and where the device has a memory bandwidth
    tokens a second, seconds a token and energy a token. The header (tokenizer, names) is written
    once, for the whole network: no slice has a longer one.
    """
    whole, form = material.decoder.spec, recipe.language.format
    with tempfile.TemporaryDirectory(prefix="tutelage-plan-") as folder:
        material.tokenizer.save_pretrained(folder)
        shapes = shapes_of(whole)
        file = gguf_file_bytes(whole.config, shapes, Path(folder), quantization=form)
        header = file - gguf_bytes(shapes, form, tied=whole.tied)

    def price(spec: DecoderSpec) -> Figures:
        shapes, size = shapes_of(spec), DecoderSize.of(spec.config)
        weights = gguf_bytes(shapes, form, tied=spec.tied)
        stored = Measurement(
            name="storage_bytes", value=float(header + weights), unit="B", kind="predicted",
            where=f"{form}: tensors counted, header as the teacher's",
        )  # fmt: skip
        memory = predict_memory(size, weights, material.length).total
        read = bytes_a_token(shapes, form, tied=spec.tied)
        rate = predict_tokens_per_s(size, read, device, filled=material.length // 2)
        return (stored, replace(memory, name="ram_bytes"), *_timed(rate, device))

    return price


def _timed(rate: Measurement | None, device: Device) -> Figures:
    """Return the rate, the time a token and its energy; nothing without a bandwidth."""
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
