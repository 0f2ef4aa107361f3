"""A GGUF file of a decoder as a teacher: a transformers network in float32, and its tokenizer.

Covers what `export.gguf_names` lists, in any quantization that gguf can undo. The file is not
trusted: every size is checked before anything is read by it, and no code comes with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tutelage.errors import CorruptFileError, TeacherError
from tutelage.export.gguf_config import ROPE_FACTORS
from tutelage.export.gguf_names import Architecture, unrotated
from tutelage.teach.gguf_config import architecture_in, config_in
from tutelage.teach.gguf_header import GgufHeader, mapped, read_header, shown
from tutelage.teach.gguf_tensors import unpacked
from tutelage.teach.gguf_tokenizer import tokenizer_in
from tutelage.teach.hf_folder import checked, open_transformers, quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROTATED = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}


def open_gguf(path: Path, *, chat: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the network in float32 and evaluation mode, and its tokenizer.

    With `chat` a file without a chat template is refused. Raises `TeacherError` for what is no GGUF
    file of a known decoder, `CorruptFileError` for a truncated or contradictory one, `MissingExtra`
    without transformers or gguf.
    """
    path = Path(path)
    transformers = open_transformers(path)
    header = read_header(path)
    arch, config = architecture_in(header), config_in(header)
    if chat and not header.metadata.get("tokenizer.chat_template"):
        raise TeacherError(
            f"'{path}' has no chat template, and the data holds chats. Use the file of a network "
            "that was made for chats, or give plain texts"
        )
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        tokenizer = tokenizer_in(header, config["vocab_size"], config["max_position_embeddings"])
        state = _state(header, arch, config)
        kind = getattr(transformers, config["architectures"][0])
        known = _config(transformers, path, config)
        model, info = checked(
            path,
            lambda: kind.from_pretrained(
                None, config=known, state_dict=state, dtype=torch.float32, output_loading_info=True
            ),
        )
    _check_whole(path, info)
    return model.eval(), tokenizer


def is_gguf(path: Path) -> bool:
    """Say whether a path is a file that begins as GGUF does, or is named so."""
    if not path.is_file():
        return path.suffix == ".gguf"
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def _config(transformers: Any, path: Path, config: dict[str, Any]) -> Any:
    own = {key: value for key, value in config.items() if key != "model_type"}
    return checked(path, lambda: transformers.AutoConfig.for_model(config["model_type"], **own))


def _state(header: GgufHeader, arch: Architecture, config: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with mapped(header.path) as blob:
        for stored, place in header.tensors.items():
            name = arch.network_name(stored)
            if name is None:
                if stored == ROPE_FACTORS:
                    continue
                raise TeacherError(
                    f"'{header.path}' has a tensor '{shown(stored)}' that {arch.name} is not known "
                    "to have. Use the network's Hugging Face folder"
                )
            rows = unpacked(header, blob, place)
            for part, heads in _ROTATED.items():
                if arch.permuted and part in stored:
                    rows = unrotated(rows, config[heads])
            if arch.norm_shift and stored.endswith("norm.weight"):
                rows = rows - rows.dtype.type(arch.norm_shift)
            found[name] = torch.from_numpy(rows.copy())
    return found


def _check_whole(path: Path, info: dict[str, Any]) -> None:
    wrong = [*info["mismatched_keys"], *info["missing_keys"], *info["unexpected_keys"]]
    names = sorted(str(k if isinstance(k, str) else k[0]) for k in wrong)
    names = [name for name in names if name != "lm_head.weight"]
    if names:
        raise CorruptFileError(
            f"'{path}' does not hold a whole network: '{names[0]}' is missing or too much. Copy it "
            "again from where it came from"
        )
