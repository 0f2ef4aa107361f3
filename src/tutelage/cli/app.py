"""The commands' common parts: the app, the options they share, how they answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage import __version__

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
    Path | None,
    typer.Option("--run", help="The run directory; runs/ and the recipe's name when unset."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Make the last line of stdout one JSON object.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow the recipe to run the Python files that it names."),
]


class State:
    """What the root options set."""

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
    State.debug = debug


def emit(answer: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Show the answer to a person, or print it as one line of JSON."""
    if as_json:
        typer.echo(json.dumps(answer, allow_nan=False))
    else:
        show(answer)
