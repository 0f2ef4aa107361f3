"""Experiment trackers, through Accelerate: one recipe key."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tutelage.errors import MissingExtra

_MODULES = {
    "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio",
}  # fmt: skip


class OpenTracker:
    """One tracker for one training."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def log(self, values: dict[str, float], step: int) -> None:
        """Send one epoch's figures."""
        self._tracker.log(values, step=step)

    def close(self) -> None:
        """Flush and end."""
        self._tracker.finish()


def open_tracker(name: str | None, folder: Path) -> OpenTracker | None:
    """Open the named tracker with its files under `folder`; None when the recipe names none.

    Raises `MissingExtra` when its library is not installed.
    """
    if name is None:
        return None
    if importlib.util.find_spec(_MODULES[name]) is None:
        raise MissingExtra(f"tracking: {name}", "tracking" if name == "tensorboard" else name)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder.mkdir(parents=True, exist_ok=True)
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker: Any
    if kind.requires_logging_directory:
        tracker = kind("tutelage", logging_dir=str(folder))
    else:
        tracker = kind("tutelage")
    if hasattr(tracker, "start"):
        tracker.start()
    return OpenTracker(tracker)
