"""Progress bars with time left, on stderr so that stdout stays for results."""

from __future__ import annotations

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

console = Console(stderr=True, highlight=False)


class Bars:
    """A bar a stage; where stderr is no terminal, one line a stage."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Open a bar."""
        self.finish()
        if not console.is_terminal:
            behind = f", {done} done before" if done else ""
            console.print(f"{label}: {total} steps{behind}", markup=False)
            return
        self._live = Progress(
            TextColumn("{task.description:<28}", markup=False),
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
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=steps)
            if note:
                self._live.update(self._task, note=note)

    def finish(self) -> None:
        """Close the bar."""
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None

    def say(self, line: str) -> None:
        """Print a line."""
        console.print(line, markup=False)
