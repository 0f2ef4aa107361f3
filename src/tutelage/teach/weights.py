"""A teacher's weights from a file: safetensors, or a state dict that needs no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TeacherError
from tutelage.passes import reason

PICKLED = {".pt", ".pth"}
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts store them under
_PREFIXES = ("module.", "_orig_mod.")  # what data-parallel and compiled modules put before names


def fill(module: nn.Module, path: Path) -> None:
    """Load the state dict in `path` into `module`, every key of it, without pickle.

    Raises `TeacherError` for a file that needs pickle or is damaged, and names the first keys that
    are missing, left over, or of another shape.
    """
    tensors = _read_weights(path)
    own = module.state_dict()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors) and not set(tensors) & set(own):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    for name, value in own.items():
        if name in tensors and isinstance(value, Tensor) and value.shape != tensors[name].shape:
            raise TeacherError(
                f"the weights '{path}' do not fit the teacher: '{name}' is "
                f"{list(tensors[name].shape)} in the file and {list(value.shape)} in the network. "
                "Check classes and channels"
            )
    try:
        result = module.load_state_dict(tensors, strict=False)
    except (RuntimeError, TypeError, KeyError) as cause:
        raise TeacherError(
            f"the weights '{path}' do not fit the teacher: {reason(cause)}. Check the network"
        ) from cause
    wrong = [
        f"{len(keys)} {what} (first '{keys[0]}')"
        for what, keys in (
            ("missing", result.missing_keys),
            ("unexpected", result.unexpected_keys),
        )
        if keys
    ]
    if wrong:
        raise TeacherError(
            f"the weights '{path}' do not fit the teacher: {', '.join(wrong)}. Name the network "
            "that they were saved from"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as cause:
            raise TeacherError(
                f"the weights '{path}' are damaged, or no safetensors file: {reason(cause)}. "
                "Copy them again"
            ) from cause
    if path.suffix not in PICKLED:
        raise TeacherError(
            f"the weights '{path}' are of no known kind. Save them as .safetensors, or as a state "
            "dict in .pt or .pth"
        )
    return _as_state_dict(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # what a damaged archive raises is not documented
        if type(cause).__name__ == "UnpicklingError":
            raise TeacherError(
                f"the weights '{path}' are damaged, or need pickle, which runs code: refused. Save "
                "them anew as safetensors, or with torch.save(model.state_dict(), FILE)"
            ) from cause
        raise TeacherError(
            f"the weights '{path}' cannot be read: {reason(cause)}. Save them anew as safetensors"
        ) from cause


def _as_state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if isinstance(found, Mapping) and found:
        if all(isinstance(value, Tensor) for value in found.values()):
            return {str(name): value for name, value in found.items()}
    said = (
        f"the keys {', '.join(map(str, list(found)[:3]))}"
        if isinstance(found, Mapping)
        else (f"a {type(found).__name__}")
    )
    raise TeacherError(
        f"the weights '{path}' hold {said} and no state dict. Save them with "
        "torch.save(model.state_dict(), FILE)"
    )
