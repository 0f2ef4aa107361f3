"""How a long stage tells how far it is; the terminal's bars live in `cli/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives what the stages have to say while they work."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Open a bar of `total` steps of which `done` are already behind."""
        ...

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the open bar on; `note` stands behind it."""
        ...

    def finish(self) -> None:
        """Close the open bar."""
        ...

    def say(self, line: str) -> None:
        """Print one line for the user."""
        ...


class Silent:
    """Says nothing; the default from Python."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""


def track(items: Iterable[T], total: int, label: str, progress: Progress) -> Iterator[T]:
    """Yield `items` under a bar of `total` steps."""
    progress.start(label, total)
    for item in items:
        yield item
        progress.advance()
    progress.finish()
