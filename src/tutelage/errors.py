"""Every error a user can meet: one line that says what, where, why, and what to do next."""

from __future__ import annotations

from typing import Any


class TutelageError(Exception):
    """Base of all errors shown to the user as one line; `exit_code` is the command's status."""

    exit_code = 2


class RecipeError(TutelageError):
    """The recipe or an argument is wrong."""


class DataError(TutelageError):
    """The data cannot be read, or cannot be learned from."""


class TeacherError(TutelageError):
    """The teacher cannot be loaded, or what it says cannot be used."""


class StudentError(TutelageError):
    """The student cannot be built from its spec."""


class DeviceError(TutelageError):
    """The device is unknown, or its profile is wrong."""


class ExportError(TutelageError):
    """The student cannot be exported, or the exported file disagrees with it."""


class TrainingError(TutelageError):
    """Training cannot go on (no finite loss, for instance)."""


class DiskError(TutelageError):
    """The disk is full or cannot be written."""


class BusyError(TutelageError):
    """Another process works in the same run directory."""


class MissingExtra(TutelageError):
    """An optional library is not installed; the message is the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra library: pip install 'tutelage[{extra}]'")


class InfeasibleError(TutelageError):
    """No student can meet the budget; `shortfall` is a `records.Shortfall`, where one was found."""

    exit_code = 3

    def __init__(self, message: str, shortfall: Any = None) -> None:
        super().__init__(message)
        self.shortfall = shortfall


class BudgetMissedError(TutelageError):
    """The artifact missed a hard limit."""

    exit_code = 4


class CorruptFileError(TutelageError):
    """A stored file is truncated or altered."""

    exit_code = 5
