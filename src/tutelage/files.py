"""Writing that never leaves half a file, and hashes of what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import CorruptFileError, DiskError

if TYPE_CHECKING:
    from torch import Tensor

_TEMPORARY = ".tutelage.tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a kill leaves the old file or the new one, never a part.

    Raises `DiskError` when the disk is full or the folder cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    replace_atomically(path, lambda temporary: _write_synced(temporary, content))


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in `path`'s place.

    Raises `DiskError` when the disk is full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        _sync(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
        _sync(path.parent)
    except OSError as error:
        raise DiskError(_why(error, path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically; NaN is not JSON and raises `ValueError`."""
    write_atomically(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises `CorruptFileError` when the file is missing, unreadable or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(path, error) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """Write a safetensors file atomically; `note` is JSON kept in its header."""
    from safetensors.torch import save

    metadata = None if note is None else {"note": json.dumps(note)}
    whole, seen = {}, set()
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        # The format knows no shared memory: tied weights are written once for each name.
        storage = kept.untyped_storage().data_ptr()
        whole[name] = kept.clone() if storage in seen else kept
        seen.add(storage)
    write_atomically(path, save(whole, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `write_tensors` wrote: tensors and note.

    Raises `CorruptFileError` when the file is missing, unreadable or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            note = json.loads(metadata["note"]) if "note" in metadata else None
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _corrupt(path, error) from None


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_json(data: Any) -> str:
    """Return the hex SHA-256 of plain data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed run left in `folder`."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    if os.name == "nt":  # a folder cannot be synced there, and os.replace is durable enough
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _corrupt(path: Path, error: Exception) -> CorruptFileError:
    if isinstance(error, OSError):
        return CorruptFileError(f"{path} cannot be read ({error.strerror or error}); restore it")
    why = " ".join(str(error).split())[:200]
    return CorruptFileError(f"{path} is damaged ({why}); delete it and run again")


def _why(error: OSError, path: Path) -> str:
    if error.errno in _FULL:
        return f"no space left to write {path}; free some or choose another folder (--run or --out)"
    return f"cannot write {path}: {error.strerror or error}; choose another folder (--run or --out)"
