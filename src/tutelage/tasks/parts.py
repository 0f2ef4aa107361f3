"""What one place holds: a training part, and perhaps others by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tutelage.errors import DataError

Held = TypeVar("Held")


@dataclass(frozen=True, kw_only=True)
class Parts(Generic[Held]):
    """The parts of one place; one with a single, unnamed set has it as `train`."""

    train: Held
    validation: Held | None = None
    test: Held | None = None

    def with_test(self, other: Parts[Held]) -> Parts[Held]:
        """Return the parts with what another place holds to test on: its test part, else all."""
        return replace(self, test=other.test or other.train)


def gather(found: dict[str, Held], source: str, noun: str) -> Parts[Held]:
    """Compose `Parts`; a lone set is the `train` one. Raises `DataError` without a train set."""
    if len(found) == 1:
        return Parts(train=next(iter(found.values())))
    if "train" not in found:
        raise DataError(
            f"{source} has no 'train' part, only {', '.join(sorted(found))}: "
            f"give the path of the training {noun} themselves"
        )
    return Parts(**found)
