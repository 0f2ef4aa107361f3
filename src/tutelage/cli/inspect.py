"""`devices`, `report`, `schema`: looking at what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tutelage.cli.app import AsJson, app, emit
from tutelage.errors import RecipeError
from tutelage.units import format_quantity


@app.command(epilog="Example: [bold]tutelage devices nucleo-l4r5[/bold]")
def devices(
    name: Annotated[str | None, typer.Argument(help="A device, or a profile of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the known devices, or show one with the source of each figure."""
    from tutelage.devices import list_devices, load_device

    if name is None:
        rows = [load_device(known) for known in list_devices()]
        answer: dict[str, Any] = {"devices": [d.model_dump(mode="json") for d in rows]}
        emit(answer, as_json, _list)
    else:
        emit(load_device(name).model_dump(mode="json"), as_json, _show)


@app.command(epilog="Example: [bold]tutelage report runs/first[/bold]")
def report(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Rebuild report.html from a run directory and print its path."""
    from tutelage.report import build_report

    if not (run / "run.json").is_file():
        raise RecipeError(
            f"{run} is no run directory: it has no run.json; name one with a run in it"
        )
    typer.echo(str(build_report(run)))


@app.command(epilog="Example: [bold]tutelage schema > recipe.schema.json[/bold]")
def schema() -> None:
    """Print the recipe's JSON Schema, for completion in an editor."""
    from tutelage.recipe import Recipe

    typer.echo(json.dumps(Recipe.json_schema(), indent=2))


def _list(answer: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("device", no_wrap=True)  # to be copied: never cut short
    for column in ("what it is", "memory", "storage", "runtime"):
        table.add_column(column, overflow="fold")
    for row in answer["devices"]:
        limits = row["limits"]
        table.add_row(
            row["name"],
            row["title"],
            _amount(limits["ram_bytes"], "B"),
            _amount(limits["storage_bytes"], "B"),
            row["runtime"],
        )
    Console(highlight=False, emoji=False).print(table)


def _show(row: dict[str, Any]) -> None:
    out = Console(highlight=False, emoji=False)
    out.print(f"{row['name']}: {row['title']}\n{row['description']}", markup=False)
    table = Table()
    for column in ("figure", "value", "source"):
        table.add_column(column, overflow="fold")
    for name, figure in _figures(row):
        prior = " (prior)" if figure["prior"] else ""
        table.add_row(name, _amount(figure, figure["unit"]), figure["source"] + prior)
    out.print(table)


def _figures(row: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            name = f"{prefix}{key}"
            found += [(name, value)] if "source" in value else _figures(value, f"{name}.")
    return found


def _amount(figure: dict[str, Any], unit: str) -> str:
    unit = unit or "1"
    if figure["value"] is not None:
        return format_quantity(figure["value"], unit)
    return f"{format_quantity(figure['low'], unit)} to {format_quantity(figure['high'], unit)}"
