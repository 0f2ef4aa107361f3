"""Exits: branches that ship with the student, so that an input may stop early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.errors import CorruptFileError
from tutelage.files import read_json, read_tensors, write_json, write_tensors
from tutelage.passes import Forward, Inputs, call
from tutelage.students.branches import Branch
from tutelage.students.taps import TapReader
from tutelage.types import Tap

MOST_EXITS = 3
FILES = ("exits.json", "exits.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """A student's early decisions: where each is read, and the branch that makes it."""

    taps: tuple[Tap, ...]
    branches: tuple[Branch, ...]


def early(taps: Sequence[Tap]) -> tuple[int, ...]:
    """Return the taps (indices) that exits stand behind: all but the last, at most three."""
    count = max(0, len(taps) - 1)
    if count <= MOST_EXITS:
        return tuple(range(count))
    return tuple(round((i + 1) * count / (MOST_EXITS + 1)) for i in range(MOST_EXITS))


def fresh_exits(taps: Sequence[Tap], classes: int) -> Exits:
    """Return untrained exits behind a student's taps."""
    chosen = tuple(taps[i] for i in early(taps))
    return Exits(taps=chosen, branches=tuple(Branch(tap.shape, classes) for tap in chosen))


class ExitingNetwork(nn.Module):
    """A student that says its decision and all early ones, side by side: `[b, (1 + exits) k]`.

    Branches leave out what the network itself does: where it has a token `pad`, its places.
    """

    def __init__(self, network: nn.Module, exits: Exits, forward: Forward = call) -> None:
        super().__init__()
        self.network, self.exits = network, nn.ModuleList(exits.branches)
        self.paths = tuple(tap.path for tap in exits.taps)
        self._forward = forward

    def forward(self, inputs: Inputs) -> Float[Tensor, "b decisions"]:
        """Return the final decision's logits, then each exit's."""
        with TapReader(self.network, self.paths, forward=self._forward) as reader:
            decision, outputs = reader.read(self.network, inputs)
        pad = getattr(self.network, "pad", None)
        keep = inputs.ne(pad) if isinstance(inputs, Tensor) and isinstance(pad, int) else None
        said = [branch(output, keep) for branch, output in zip(self.exits, outputs, strict=True)]
        return torch.cat([decision, *said], dim=1)


def save_exits(folder: Path, exits: Exits, classes: int) -> list[Path]:
    """Write `exits.json` and `exits.safetensors` beside a student; return both paths."""
    paths = [folder / name for name in FILES]
    rows = [{"path": tap.path, "shape": list(tap.shape)} for tap in exits.taps]
    write_json(paths[0], {"classes": classes, "taps": rows})
    write_tensors(paths[1], nn.ModuleList(exits.branches).state_dict())
    return paths


def drop_exits(folder: Path) -> None:
    """Take away what `save_exits` wrote."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def load_exits(folder: Path) -> Exits | None:
    """Read a student's exits back; None where it has none. Raises `CorruptFileError`."""
    if not (folder / FILES[0]).is_file():
        return None
    data: Any = read_json(folder / FILES[0])
    try:
        rows = [(str(row["path"]), tuple(map(int, row["shape"]))) for row in data["taps"]]
        taps = tuple(Tap(path=path, shape=shape) for path, shape in rows)
        branches = nn.ModuleList(Branch(tap.shape, int(data["classes"])) for tap in taps)
        branches.load_state_dict(read_tensors(folder / FILES[1])[0])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise CorruptFileError(f"{folder}: the exits are damaged ({first})") from None
    kept: Any = tuple(branches.eval())
    return Exits(taps=taps, branches=kept)
