"""The whole command line: every command group, errors as one line, exit codes."""

from __future__ import annotations

import traceback
from typing import Any

import typer

from tutelage.cli import chat, inspect, probe, stages, write  # noqa: F401 (each adds its commands to `app`)
from tutelage.cli.app import State, app
from tutelage.cli.bars import console
from tutelage.errors import TutelageError

INTERRUPTED = 130
# Newer typers carry a click of their own, so its errors are found through typer.
_Usage: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        status = app(arguments or ["--help"], standalone_mode=False)
        if status == INTERRUPTED:  # newer typers make a status of it
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except TutelageError as error:
        return _fail(str(error), error, error.exit_code)
    except typer.Exit as leave:
        return leave.exit_code
    except _Usage as error:
        return _fail(f"{_message(error)}; see: tutelage --help", error, 2)
    except (KeyboardInterrupt, typer.Abort):
        console.print("interrupted; run the same command again to go on", markup=False)
        return INTERRUPTED
    except MemoryError as error:
        return _fail("not enough memory; lower distill.batch or the size of the data", error, 2)
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", error, 2)


def _message(error: Any) -> str:
    return error.format_message().rstrip(".")


def _fail(line: str, error: BaseException, status: int) -> int:
    if State.debug:
        console.print("".join(traceback.format_exception(error)), markup=False)
    console.print(f"error: {' '.join(line.split())}", markup=False, soft_wrap=True)
    return status
