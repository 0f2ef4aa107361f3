"""Progress bars with time left, on stderr so that stdout stays for results."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_EVERY_S = 30.0
console = Console(stderr=True, highlight=False, emoji=False)


class Bars:
    """A bar a stage; where stderr is no terminal, one line a stage."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._plain: _Plain | None = None

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Open a bar."""
        self.finish()
        if not console.is_terminal:
            self._plain = _Plain(label, total, done)
            return
        self._live = Progress(
            TextColumn("{task.description:<31}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._live.start()
        self._task = self._live.add_task(label, total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on."""
        if self._plain is not None:
            self._plain.advance(steps, note)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=steps)
            if note:
                self._live.update(self._task, note=note)

    def finish(self) -> None:
        """Close the bar."""
        if self._live is not None:
            self._live.stop()
        self._live = self._task = self._plain = None

    def say(self, line: str) -> None:
        """Print a line."""
        console.print(line, markup=False, soft_wrap=True)


class _Plain:
    """Progress for logs: a line at the start, then one every half minute with the time left."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done, self.behind = label, total, done, done
        self.started = self.told = time.monotonic()
        self.note = ""
        behind = f", {done} done before" if done else ""
        console.print(f"{label}: {total} steps{behind}", markup=False, soft_wrap=True)

    def advance(self, steps: int, note: str) -> None:
        self.done += steps
        self.note = note or self.note
        now = time.monotonic()
        if now - self.told < _EVERY_S or self.done == self.behind:
            return
        self.told = now
        left = (now - self.started) / (self.done - self.behind) * (self.total - self.done)
        tail = f", {self.note}" if self.note else ""
        share = self.done / max(1, self.total)
        line = f"{self.label}: {share:.0%}, {left / 60:.1f} min left{tail}"
        console.print(line, markup=False, soft_wrap=True)
