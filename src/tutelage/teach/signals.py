"""The signal cache: the teacher runs once an example and view, and is read from disk after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.files import hash_json
from tutelage.passes import Inputs
from tutelage.progress import Progress
from tutelage.teach.lenses import Lens
from tutelage.teach.shards import Shards
from tutelage.types import Batch, Reading
from tutelage.units import format_quantity

_SHARD_BYTES = 64_000_000
_BATCH = 256
# The name of a stored tensor, and which of a reading's fields it belongs to.
_STORED = {
    "feature": "features", "map": "maps", "state": "states", "score": "scores",
    "relation": "relations",
}  # fmt: skip


class Asked(Protocol):
    """What can be asked for signals: a teacher."""

    fingerprint: str

    def read(
        self, inputs: Inputs, *, features: bool, maps: bool, keep: Tensor | None = None
    ) -> Reading:
        """Return the reading of a batch; features leave out what `keep` does."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples to ask about: how many, the hash of their content, how a batch is formed.

    `batch(index, view)` must be a pure function; `content` names data, transform and its seed.
    `ahead`: whether a batch may be formed while a step runs, which what sets the global random
    states may not. `sizes` is how long each example is, where batches are cut to their longest:
    examples of like length are then drawn together.
    """

    name: str
    count: int
    content: str
    batch: Callable[[Tensor, int], Batch]
    ahead: bool = True
    sizes: Int[np.ndarray, " n"] | None = None


class SignalCache:
    """Signals of one split under `folder`, in shards that are written once and then mapped."""

    def __init__(
        self, folder: Path, split: Split, *, views: int, features: bool, maps: bool, teacher: Asked
    ) -> None:
        self.split, self.views, self.features, self.maps = split, views, features, maps
        self.teacher = teacher
        index = torch.arange(min(2, split.count))
        masked = features and split.batch(index, 0).keep is not None
        self.key = hash_json(
            {
                "teacher": teacher.fingerprint,
                "data": split.content,
                "features": features,
                "maps": maps,
                "format": 1,
                **({"masked": True} if masked else {}),
            }
        )
        self.folder = folder / self.key[:16]
        self._open: dict[int, list[dict[str, Tensor]]] = {}
        self.lenses: tuple[Lens, ...] = ()
        probe = self._ask(index, 0)
        self.bytes_per_example = sum(t[0].numel() * t.element_size() for t in probe.values())
        self.block = max(1, min(split.count, _SHARD_BYTES // max(1, self.bytes_per_example)))

    @property
    def total_bytes(self) -> int:
        """Bytes that all views take on the disk."""
        return self.bytes_per_example * self.split.count * self.views

    def describe(self) -> str:
        """Say in one line what will be stored."""
        total = format_quantity(self.total_bytes, "B")
        return (
            f"signals, {self.split.name}: {self.split.count} examples x {self.views} views x "
            f"{self.bytes_per_example} B = {total} in {self.folder}"
        )

    def fill(self, progress: Progress) -> list[Path]:
        """Ask the teacher about every example and view that is not on the disk yet.

        Raises `DiskError` before the first question when the disk is too small, and
        `CorruptFileError` when a stored shard was altered. Returns the files.
        """
        shards = Shards(self.folder, self.key)
        names = [
            (view, first, f"view{view}-{first}.safetensors")
            for view in range(self.views)
            for first in range(0, self.split.count, self.block)
        ]
        done = shards.open(name for _, _, name in names)
        missing = [part for part in names if part[2] not in done]
        need = len(missing) * self.block * self.bytes_per_example
        shards.refuse_small_disk(need, "lower augment.views")

        def examples(parts: list[tuple[int, int, str]]) -> int:
            return sum(min(self.block, self.split.count - first) for _, first, _ in parts)

        behind = examples(names) - examples(missing)
        progress.start(f"Asking the teacher ({self.split.name})", examples(names), behind)
        for view, first, name in missing:
            shards.add(name, self._shard(view, first, progress))
        progress.finish()
        return [self.folder / name for _, _, name in names]

    def read(self, index: Tensor, view: int) -> Reading:
        """Return the stored reading of `index` (any order) as seen in `view`."""
        shards = self._view(view)
        if len(shards) == 1:
            found = {name: tensor[index] for name, tensor in shards[0].items()}
        else:
            found = self._gather(shards, index)
        return self._as_reading(found)

    def _as_reading(self, found: dict[str, Tensor]) -> Reading:
        parts: dict[str, Any] = {
            name: tuple(found[k] for k in _numbered(found, kind)) for kind, name in _STORED.items()
        }
        lensed = zip(self.lenses, parts["features"], strict=False)
        trajectory = tuple(lens(x) for lens, x in lensed)
        return Reading(decision=found["decision"], trajectory=trajectory, **parts)

    def _gather(self, shards: Sequence[dict[str, Tensor]], index: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        owner = index // self.block
        for number in owner.unique().tolist():
            chosen = owner == number
            for name, tensor in shards[number].items():
                part = tensor[index[chosen] - number * self.block]
                if name not in found:
                    # A shard whose values did not fit half precision is single.
                    widest = max((s[name].dtype for s in shards), key=lambda kind: kind.itemsize)
                    found[name] = part.new_empty((len(index), *part.shape[1:]), dtype=widest)
                found[name][chosen] = part.to(found[name].dtype)
        return found

    def _view(self, view: int) -> list[dict[str, Tensor]]:
        if view not in self._open:
            from safetensors.torch import load_file

            starts = range(0, self.split.count, self.block)
            paths = [self.folder / f"view{view}-{first}.safetensors" for first in starts]
            self._open[view] = [load_file(path) for path in paths]
        return self._open[view]

    def _shard(self, view: int, first: int, progress: Progress) -> dict[str, Tensor]:
        last = min(first + self.block, self.split.count)
        order = np.arange(first, last)
        if self.split.sizes is not None:  # of like length together: fewer pads are computed
            order = order[np.argsort(self.split.sizes[first:last], kind="stable")]
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(order), _BATCH):
            index = torch.from_numpy(order[start : start + _BATCH])
            parts.append(self._ask(index, view))
            progress.advance(len(index))
        back = torch.from_numpy(np.argsort(order))
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def _ask(self, index: Tensor, view: int) -> dict[str, Tensor]:
        batch = self.split.batch(index, view)
        reading = self.teacher.read(
            batch.inputs, features=self.features, maps=self.maps, keep=batch.keep
        )
        if not bool(torch.isfinite(reading.decision).all()):
            raise TeacherError(
                f"the teacher's decision is not finite for examples {int(index[0])} to "
                f"{int(index[-1])} of {self.split.name}; check its weights and normalisation"
            )
        stored = {"decision": reading.decision.float()}
        for kind, name in _STORED.items():
            for number, tensor in enumerate(getattr(reading, name)):
                stored[f"{kind}{number}"] = _narrow(tensor)
        return {name: tensor.detach().cpu() for name, tensor in stored.items()}


class LiveSignals:
    """Asks the teacher anew for every batch; for comparison, and for data that cannot be kept.

    `content` names the data that it is asked about.
    """

    def __init__(
        self, teacher: Asked, *, features: bool, maps: bool, content: str = ""
    ) -> None:  # fmt: skip
        self.teacher, self.features, self.maps = teacher, features, maps
        self.key = hash_json({"live": teacher.fingerprint, "data": content})
        self.lenses: tuple[Lens, ...] = ()

    def read(self, inputs: Inputs, keep: Tensor | None = None) -> Reading:
        """Return the teacher's reading of `inputs`, of which `keep` says what counts."""
        found = self.teacher.read(inputs, features=self.features, maps=self.maps, keep=keep)
        trajectory = tuple(lens(x) for lens, x in zip(self.lenses, found.features, strict=False))
        return replace(found, trajectory=trajectory)


def _narrow(tensor: Tensor) -> Tensor:
    """Return half precision where the values fit, else single."""
    half = tensor.half()
    return half if bool(torch.isfinite(half).all()) else tensor.float()


def _numbered(found: dict[str, Tensor], kind: str) -> list[str]:
    count = sum(name.startswith(kind) for name in found)
    return [f"{kind}{number}" for number in range(count)]
