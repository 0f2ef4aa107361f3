"""The whole command line: every command group, errors as one line, exit codes."""

from __future__ import annotations

import traceback

import click

from tutelage.cli import inspect, stages, write  # noqa: F401 (each adds its commands to `app`)
from tutelage.cli.app import State, app
from tutelage.cli.bars import console
from tutelage.errors import TutelageError

INTERRUPTED = 130


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        status = app(arguments, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except TutelageError as error:
        return _fail(str(error), error, error.exit_code)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.exceptions.Abort):
        console.print("interrupted; run the same command again to go on", markup=False)
        return INTERRUPTED
    except MemoryError as error:
        return _fail("not enough memory; lower distill.batch or the size of the data", error, 2)
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", error, 2)


def _fail(line: str, error: BaseException, status: int) -> int:
    if State.debug:
        console.print("".join(traceback.format_exception(error)), markup=False)
    console.print(f"error: {' '.join(line.split())}", markup=False, soft_wrap=True)
    return status
