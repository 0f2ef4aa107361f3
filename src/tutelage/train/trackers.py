"""Experiment trackers, through Accelerate: one recipe key."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from tutelage.errors import MissingExtra

_MODULES = {
    "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio",
}  # fmt: skip


class OpenTracker:
    """One tracker for one training."""

    def __init__(self, tracker: Any, variables: tuple[str, ...] = ()) -> None:
        self._tracker = tracker
        self._variables = variables

    def log(self, values: dict[str, float], step: int) -> None:
        """Send one epoch's figures."""
        self._tracker.log(values, step=step)

    def close(self) -> None:
        """Flush and end."""
        self._tracker.finish()
        _unset(self._variables)


def check_tracker(name: str | None) -> None:
    """Raise `MissingExtra` where the named tracker's library is not installed."""
    if name is not None and importlib.util.find_spec(_MODULES[name]) is None:
        raise MissingExtra(f"tracking: {name}", "tracking" if name == "tensorboard" else name)


def open_tracker(name: str | None, folder: Path) -> OpenTracker | None:
    """Open the named tracker with its files under `folder`; None when the recipe names none.

    Raises `MissingExtra` when its library is not installed.
    """
    if name is None:
        return None
    check_tracker(name)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder.mkdir(parents=True, exist_ok=True)
    kind = LOGGER_TYPE_TO_CLASS[name]
    options = {"wandb": {"dir": str(folder)}, "trackio": {}}.get(name, {"logging_dir": str(folder)})
    # A place that the user has set stands; else these would write to the current folder or home.
    places = {"mlflow": ("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve() / 'mlflow.db'}"),
              "trackio": ("TRACKIO_DIR", str(folder.resolve()))}  # fmt: skip
    variable, place = places.get(name, ("", ""))
    ours = (variable,) if variable and variable not in os.environ else ()
    os.environ.update({v: place for v in ours})
    try:
        tracker: Any = kind("tutelage", **options)
        if hasattr(tracker, "start"):
            tracker.start()
    except BaseException:
        _unset(ours)
        raise
    return OpenTracker(tracker, ours)


def _unset(variables: tuple[str, ...]) -> None:
    for variable in variables:
        os.environ.pop(variable, None)
