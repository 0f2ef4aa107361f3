"""Several processes that teach one student: each takes a share of a step, and sums are exchanged.

They are started by `accelerate launch` or `torchrun`; with one process nothing here does anything.
Every process holds the whole student, or its part of one that is shared out (`sharded.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tutelage.errors import TrainingError

_T = TypeVar("_T")


def place() -> tuple[int, int]:
    """Return which process this is, and how many there are."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return 0, 1
    return group.get_rank(), group.get_world_size()


def share(parts: Sequence[_T]) -> Sequence[_T]:
    """Return this process's part of a step: every n-th, so that shares differ by one at most."""
    number, of = place()
    return parts[number::of]


def rounds(count: int) -> int:
    """Return how many of `count` parts the process with the most has."""
    return -(-count // place()[1])


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, which give as many, in one order."""
    if place()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def total(value: float, device: torch.device) -> float:
    """Return the sum of a number over the processes."""
    if place()[1] == 1:
        return value
    held = torch.tensor(value, dtype=torch.float64, device=_exact(device))
    add_up([held])
    return float(held)


def check_alike(values: dict[str, int], device: torch.device) -> None:
    """Raise `TrainingError` where the processes do not start from the same: all raise, or none."""
    if place()[1] == 1:
        return
    for what, value in values.items():
        found = torch.tensor([value, -value], dtype=torch.int64, device=device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        if int(found[0]) != -int(found[1]):
            raise TrainingError(
                f"the processes start from different {what}: give all of them the same data, seed "
                "and student, and a checkpoint on a disk that all of them see"
            )


def _exact(device: torch.device) -> torch.device:
    """Return the device for a sum in double precision: mps has none."""
    return torch.device("cpu") if device.type == "mps" else device
