"""A whole training state in one safetensors file: no pickle, written atomically, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import CorruptFileError
from tutelage.files import read_tensors, write_tensors


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a nested state (dicts, lists, tensors, plain values) to one file."""
    tensors: dict[str, torch.Tensor] = {}
    plan = _flatten(state, tensors)
    write_tensors(path, tensors, {"plan": plan, "sha256": digest(tensors, json.dumps(plan))})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raises `CorruptFileError` if a byte of it has changed."""
    tensors, note = read_tensors(path)
    if not isinstance(note, dict) or "plan" not in note:
        raise CorruptFileError(f"{path} is not a checkpoint; delete it and run again")
    if digest(tensors, json.dumps(note["plan"])) != note.get("sha256"):
        raise CorruptFileError(f"{path} was altered since it was written; delete it and run again")
    return _unflatten(note["plan"], tensors)


def digest(tensors: Mapping[str, torch.Tensor], *parts: str) -> str:
    """Return the SHA-256 over tensors (name, type, shape, bytes), in any order, and texts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part.encode()).digest())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone()
        return {"t": name}
    if isinstance(value, dict):
        return {"d": [[key, _flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"l": [_flatten(item, tensors) for item in value]}
    return {"v": value}


def _unflatten(plan: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if "t" in plan:
        return tensors[plan["t"]]
    if "d" in plan:
        return {key: _unflatten(item, tensors) for key, item in plan["d"]}
    if "l" in plan:
        return [_unflatten(item, tensors) for item in plan["l"]]
    return plan["v"]
