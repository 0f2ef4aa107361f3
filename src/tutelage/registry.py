"""One registry class, used by losses, tasks, student families, exporters and audits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tutelage.errors import RecipeError

T = TypeVar("T")


def near_matches(name: str, known: list[str]) -> str:
    """Return a hint such as `Did you mean 'kl'?`, or the full list when nothing is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(sorted(known))}."


class Registry(Generic[T]):
    """Names mapped to entries; an unknown name lists near matches, a duplicate raises."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; raises `ValueError` when the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate an entry to register it under `name`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            hint = near_matches(name, list(self._entries))
            raise RecipeError(f"unknown {self.kind} '{name}'. {hint}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
