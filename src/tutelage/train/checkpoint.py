"""A whole training state in one safetensors file: no pickle, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tutelage.errors import CorruptFileError
from tutelage.files import read_tensors, write_tensors


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a nested state (dicts, lists, tensors, plain values) to one file."""
    tensors: dict[str, torch.Tensor] = {}
    plan = _flatten(state, tensors)
    write_tensors(path, tensors, plan)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; damage raises `CorruptFileError`."""
    tensors, plan = read_tensors(path)
    try:
        return _unflatten(plan, tensors)
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path} is not a checkpoint ({error}); delete it and run again"
        ) from None


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
