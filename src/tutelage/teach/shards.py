"""A folder of tensors in shards: each written once and whole, hashed, found again by its key."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.errors import CorruptFileError, DiskError
from tutelage.files import read_json, sha256_file, write_json, write_tensors
from tutelage.units import format_quantity


class Shards:
    """Shards under `folder` with a manifest that holds their hashes and `key`, which names them."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.manifest = folder / "manifest.json"
        self._found: dict[str, Any] = {}

    def open(self, wanted: Iterable[str]) -> set[str]:
        """Return which of the `wanted` shards are there, each checked.

        Raises `CorruptFileError` when the manifest or a shard was altered, or a shard is gone.
        """
        self._found = self._read()
        known = self._found["shards"]
        there = {name for name in wanted if name in known}
        for name in sorted(there):
            path = self.folder / name
            if not path.exists() or sha256_file(path) != known[name]:
                raise CorruptFileError(
                    f"{path} is gone or was altered; delete the folder {self.folder} and run again"
                )
        return there

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one shard and note it in the manifest; a kill leaves it whole or not there."""
        path = self.folder / name
        write_tensors(path, tensors)
        self._found["shards"][name] = sha256_file(path)
        write_json(self.manifest, self._found)

    def refuse_small_disk(self, need: int, advice: str) -> None:
        """Raise `DiskError` when `need` bytes would fill the disk; `advice` says what to change."""
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        if need > 0.95 * free:
            raise DiskError(
                f"the signals need {format_quantity(need, 'B')} and {existing} has "
                f"{format_quantity(free, 'B')} free; {advice} or choose another disk with --run"
            )

    def _read(self) -> dict[str, Any]:
        if not self.manifest.exists():
            return {"key": self.key, "shards": {}}
        found = read_json(self.manifest)
        wanted = isinstance(found, dict) and found.get("key") == self.key
        if not wanted or not isinstance(found.get("shards"), dict):
            raise CorruptFileError(
                f"{self.manifest} was altered; delete the folder {self.folder} and run again"
            )
        return found
