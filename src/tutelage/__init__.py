"""Distil a large trained model into the best small one that fits a named device."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tutelage.api import audit, distill, export, fit, load, measure, plan
    from tutelage.devices import Device
    from tutelage.errors import TutelageError
    from tutelage.pipeline.result import Result
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


class _Callable(ModuleType):
    """A subpackage whose name is a public function too: `tutelage.export(...)`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(_home("api"), self.__name__.rpartition(".")[2])(*args, **options)


class _Package(ModuleType):
    """Keeps `tutelage.export(...)` within reach once `tutelage.export.graph` is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == "api":
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _home(name: str) -> ModuleType:
    from importlib import import_module

    return import_module(f"tutelage.{name}")


def __getattr__(name: str) -> Any:
    """Load a public name where it is used, so that `import tutelage` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    return getattr(_home(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
