"""The commands' common parts: the app, options, errors as one line, exit codes."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from tutelage import __version__
from tutelage.cli.bars import console
from tutelage.errors import TutelageError

INTERRUPTED = 130
_EPILOG = (
    "Exit codes: 0 done; 2 the recipe, data or arguments are wrong; 3 no student can meet the "
    "budget; 4 the artifact missed a hard limit; 5 a stored file is corrupt; 130 interrupted, run "
    "the same command again to go on."
)

app = typer.Typer(
    name="tutelage",
    help="Distil a large trained model into the best small one that fits a named device, and prove "
    "it on the exported file.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RunDir = Annotated[
    Path | None, typer.Option("--run", help="The run directory; by default named after the recipe.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Make the last line of stdout one JSON object.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow the recipe to run the Python files that it names."),
]


class _State:
    debug = False


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    _State.debug = debug


def emit(answer: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Show the answer to a person, or print it as one line of JSON."""
    if as_json:
        typer.echo(json.dumps(answer, allow_nan=False))
    else:
        show(answer)


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    _register()
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
    if _State.debug:
        console.print("".join(traceback.format_exception(error)), markup=False)
    console.print(f"error: {' '.join(line.split())}", markup=False, soft_wrap=True)
    return status


def _register() -> None:
    """Import the command groups; each adds its commands to `app`."""
    from tutelage.cli import inspect, run, write  # noqa: F401
