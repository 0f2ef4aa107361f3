"""The time of a run, written down while its stages work, so that a kill loses little of it."""

from __future__ import annotations

from tutelage.progress import Progress
from tutelage.run import Run


class Timekeeper:
    """Passes on what the stages say, and has the run write down its time every `every_s` seconds.

    A run that is killed has then lost no more than that of the seconds it counts.
    """

    def __init__(self, progress: Progress, run: Run, every_s: float) -> None:
        self.progress, self.run, self.every_s = progress, run, every_s

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Open a bar."""
        self.progress.start(label, total, done)
        self.run.keep_time(self.every_s)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on."""
        self.progress.advance(steps, note)
        self.run.keep_time(self.every_s)

    def finish(self) -> None:
        """Close the bar."""
        self.progress.finish()
        self.run.keep_time(self.every_s)

    def say(self, line: str) -> None:
        """Print a line."""
        self.progress.say(line)
        self.run.keep_time(self.every_s)
