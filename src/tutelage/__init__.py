"""Distil a large trained model into the best small one that fits a named device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tutelage.api import audit, distill, export, fit, load, measure, plan
    from tutelage.devices import Device
    from tutelage.errors import TutelageError
    from tutelage.pipeline import Result
    from tutelage.recipe import Recipe

_HOMES = {
    "fit": "api", "distill": "api", "plan": "api", "export": "api", "measure": "api",
    "audit": "api", "load": "api", "Recipe": "recipe", "Device": "devices",
    "Result": "pipeline", "TutelageError": "errors",
}  # fmt: skip

__all__ = [
    "Device", "Recipe", "Result", "TutelageError", "audit", "distill", "export", "fit", "load",
    "measure", "plan",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name where it is used, so that `import tutelage` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"tutelage.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
