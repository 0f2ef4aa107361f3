"""Paths as a recipe holds them: relative to the file it lies in."""

from __future__ import annotations

import json
import os
from pathlib import Path


def full_path(path: str) -> str:
    """Return a path made absolute; what names no path stays as it is."""
    if path == "digits" or path.startswith(("timm:", "torchvision:")):
        return path
    return str(Path(path).expanduser().resolve())


def path_from(path: str, folder: Path) -> str:
    """Return a path as it is written into a YAML file that lies in `folder`."""
    full = full_path(path)
    text = os.path.relpath(full, folder) if full != path or os.path.isabs(full) else full
    return json.dumps(text) if any(c in text for c in ": #{}[]&*!|>'\"%@`") else text
