"""Decoders as one GGUF file that llama.cpp and Ollama load, tokenizer and chat template included.

Covers the architectures of `gguf_names`, in f16, q8_0, q5_1, q5_0, q4_1 and q4_0. Does not cover
experts, adapters, or quantization that looks at data (importance matrices).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.devices.gguf_sizes import (
    F32,
    QUANTIZATIONS,
    StoredType,
    gguf_bytes,
    padded,
    stored_type,
)
from tutelage.errors import ExportError, MissingExtra
from tutelage.export.gguf_config import (
    ROPE_FACTORS,
    architecture_of,
    is_tied,
    kv_heads,
    metadata_of,
    rope_factors,
    wanted_shapes,
)
from tutelage.export.gguf_names import Architecture, rotated
from tutelage.export.gguf_tokenizer import read_tokenizer
from tutelage.files import replace_atomically
from tutelage.recipe_language import Quantization

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gguf_bytes", "gguf_file_bytes", "write_gguf"]

_FILE_TYPES = {"f16": 1, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}
_FORMAT = 2  # version of the blocks' layout
_ROTATED = (".self_attn.q_proj.", ".self_attn.k_proj.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_OWN_BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "masked_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A tensor of the file: its name there, in the network, its shape and how it is stored."""

    stored: str
    name: str
    shape: tuple[int, ...]
    type: StoredType


def write_gguf(
    path: Path,
    network_config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer: Path,
    *,
    quantization: Quantization,
) -> Path:
    """Write a decoder; config and tensor names are Hugging Face's, `tokenizer` is a folder.

    One tensor is converted at a time. A kill leaves the old file or the new one. Raises
    `ExportError` for what llama.cpp would not compute alike, for tensors that do not fit the config
    and for numbers that are not finite; `DiskError` when nothing can be written.
    """
    path = Path(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    entries = _entries(network_config, shapes, quantization)
    _check_same_head(network_config, tensors)
    metadata = _metadata(path.stem, network_config, tokenizer, quantization)
    replace_atomically(path, lambda file: _write(file, network_config, metadata, entries, tensors))
    return path


def gguf_file_bytes(
    network_config: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    tokenizer: Path,
    *,
    quantization: Quantization,
    name: str = "model",
) -> int:
    """Return the exact bytes of the file `name`.gguf, before there is one: header and tensors."""
    import tempfile

    entries = _entries(network_config, shapes, quantization)
    metadata = _metadata(name, network_config, tokenizer, quantization)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "header"
        _begin(file, network_config, metadata, entries).close()
        return padded(file.stat().st_size) + sum(padded(e.type.bytes_of(e.shape)) for e in entries)


def _entries(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], quantization: Quantization
) -> list[_Entry]:
    """List the tensors of the file; raises `ExportError` unless they are the config's own."""
    if quantization not in QUANTIZATIONS:
        raise ExportError(
            f"quantization '{quantization}' is not known: use one of {', '.join(QUANTIZATIONS)}"
        )
    arch, found = architecture_of(config), []
    for name, shape in shapes.items():
        if name.endswith(_OWN_BUFFERS) or (name == _HEAD and is_tied(config)):
            continue
        stored = arch.stored_name(name)
        if stored is None:
            raise ExportError(
                f"the network's tensor '{name}' has no place in a GGUF file of {arch.name}: give "
                "the tensors of the language model alone, without adapters"
            )
        kind = stored_type(name, shape, quantization)
        found.append(_Entry(stored=stored, name=name, shape=shape, type=kind))
    _check_shapes(config, {e.name: e.shape for e in found})
    factors = rope_factors(config)
    if factors is not None:
        shape = (len(factors),)
        found.insert(0, _Entry(stored=ROPE_FACTORS, name=ROPE_FACTORS, shape=shape, type=F32))
    return found


def _check_shapes(config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, too many, or of another size than the config says."""
    for name, shape in wanted_shapes(config).items():
        if shapes.get(name) != shape:
            has = f"is {list(shapes[name])}" if name in shapes else "is missing"
            raise ExportError(
                f"the network's tensor '{name}' {has} where its config asks for {list(shape)}: "
                "give the config that belongs to the tensors"
            )
    layers = int(config["num_hidden_layers"])
    numbers = (n.split(".")[2] for n in shapes if n.startswith("model.layers."))
    if any(int(number) >= layers for number in numbers):
        raise ExportError(
            f"the network has tensors of more than the {layers} layers of its config: give the "
            "config that belongs to the tensors"
        )


def _check_same_head(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a head that differs from the embedding where the config says that they are one."""
    head = tensors.get(_HEAD)
    if head is None or not is_tied(config) or head.data_ptr() == tensors[_EMBEDDING].data_ptr():
        return
    if not head.equal(tensors[_EMBEDDING]):
        raise ExportError(
            f"the network's '{_HEAD}' differs from its embedding, and its config says "
            "tie_word_embeddings: true. Correct one of the two"
        )


def _metadata(
    name: str, config: dict[str, Any], tokenizer: Path, quantization: Quantization
) -> dict[str, Any]:
    general = {
        "general.type": "model", "general.name": name,
        "general.file_type": _FILE_TYPES[quantization],
        "general.quantization_version": _FORMAT,
    }  # fmt: skip
    network = metadata_of(config)
    return {**general, **network, **read_tokenizer(Path(tokenizer), config).metadata()}


def _write(
    file: Path,
    config: dict[str, Any],
    metadata: dict[str, Any],
    entries: list[_Entry],
    tensors: Mapping[str, Tensor],
) -> None:
    writer = _begin(file, config, metadata, entries)
    try:
        for data in _converted(config, entries, tensors):
            writer.write_tensor_data(data)
    finally:
        writer.close()


def _begin(
    file: Path, config: dict[str, Any], metadata: dict[str, Any], entries: list[_Entry]
) -> Any:
    """Write all but the tensors, and return the open writer."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing GGUF", "llm") from None
    logging.getLogger("gguf").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(file, architecture_of(config).name)
    for key, value in metadata.items():
        kind = gguf.GGUFValueType
        if isinstance(value, int) and not isinstance(value, bool):
            writer.add_key_value(key, value, kind.UINT32)
        else:
            writer.add_key_value(key, value, kind.get_type(value))
    for e in entries:
        raw = gguf.GGMLQuantizationType(e.type.number)
        size = e.type.bytes_of(e.shape)
        writer.add_tensor_info(e.stored, e.shape, np.dtype(np.float32), size, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _converted(
    config: dict[str, Any], entries: list[_Entry], tensors: Mapping[str, Tensor]
) -> Iterator[np.ndarray]:
    """Yield the bytes of each tensor in turn."""
    import gguf

    arch = architecture_of(config)
    for e in entries:
        if e.stored == ROPE_FACTORS:
            yield np.array(rope_factors(config), np.float32)
            continue
        rows = _as_stored(arch, config, e.name, tensors[e.name].detach().cpu().float().numpy())
        _check_finite(e, rows)
        with np.errstate(all="ignore"):  # a block too small for a scale becomes zeros
            yield gguf.quants.quantize(rows, gguf.GGMLQuantizationType(e.type.number))


def _as_stored(
    arch: Architecture, config: dict[str, Any], name: str, rows: np.ndarray
) -> np.ndarray:
    if arch.permuted and any(part in name for part in _ROTATED):
        heads = kv_heads(config) if ".k_proj." in name else int(config["num_attention_heads"])
        rows = rotated(rows, heads)
    if arch.norm_shift and name.endswith("norm.weight"):
        rows = rows + np.float32(arch.norm_shift)
    return np.ascontiguousarray(rows)


def _check_finite(entry: _Entry, rows: np.ndarray) -> None:
    """Refuse numbers that are not finite, or would not be as float16 (so are all scales)."""
    most = np.inf if entry.type is F32 else np.finfo(np.float16).max
    largest = np.abs(rows).max(initial=0.0)
    if not (np.isfinite(largest) and largest <= most):
        raise ExportError(
            f"the network's tensor '{entry.name}' holds {largest:g}, which {entry.type.name} "
            "cannot store: train with a smaller learning rate, or look for what made it so large"
        )
