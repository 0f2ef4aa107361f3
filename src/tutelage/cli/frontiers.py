"""The frontier of a run's students as tables in the terminal, 80 columns wide."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.units import format_quantity

_AXES = {"storage_bytes": "bytes", "latency_s": "latency", "energy_j": "energy"}
_OF_TOKENS = {"storage_bytes": "bytes", "ram_bytes": "memory", "latency_s": "token/s"}
_TOKENS_NOTE = (
    "perplexity is of validation: after a short lesson, or (t) of the file after a whole one; KL "
    "is of a token from the teacher, untaught; *: no slice compared is as good for less of it; "
    "devices are asked for their own memory and storage, not for the recipe's budget"
)


def show_frontier(answer: dict[str, Any]) -> None:
    """Print the students that none dominates, then each known device with the one for it."""
    out = Console(highlight=False, emoji=False)
    found = answer["frontier"]
    students, metric = found["students"], found["metric"].removesuffix("_validation")
    metric = metric.replace("_", " ")
    title = f"{answer['device']}: the frontier, {len(students)} of {found['tried']} students tried"
    axes = _OF_TOKENS if answer["task"] == "causal_lm" else _AXES
    table = _columns(title, "student", metric, students, axes)
    for row in students:
        table.add_row(Text(row["name"]), _metric(row), *_cells(row, axes))
    out.print(table)
    out.print(_devices(answer["devices"], metric, axes))
    if answer["task"] == "causal_lm":
        out.print(_TOKENS_NOTE, markup=False)
        return
    out.print(
        f"{metric} is of validation, after a short trial or (t) of the artifact after a full "
        "distillation; *: no student tried is as good for less of it; devices are asked for their "
        "own memory and storage, not for the recipe's budget",
        markup=False,
    )


def _devices(devices: dict[str, Any], metric: str, axes: dict[str, str]) -> Table:
    chosen = [choice["student"] for choice in devices.values() if choice["student"] is not None]
    table = _columns("the best student that fits each known device", "device", metric, chosen, axes)
    for name, choice in devices.items():
        row = choice["student"]
        if row is None:
            table.add_row(Text(f"{name}\n  none: {choice['reason']}"), "", "", "", "")
        else:
            table.add_row(Text(f"{name}\n  {row['name']}"), _metric(row), *_cells(row, axes))
    return table


def _columns(
    title: str, first: str, metric: str, rows: list[dict[str, Any]], axes: dict[str, str]
) -> Table:
    """Start a table; a column's head names its kind."""
    kinds = {f["name"]: f["kind"] for row in rows for f in row["figures"]}
    table = Table(title=Text(title), title_justify="left")
    table.add_column(first, overflow="fold")
    table.add_column(Text(f"{metric}\nmeasured"), justify="right")
    for name, words in axes.items():
        table.add_column(Text(f"{words}\n{kinds.get(name, '')}"), justify="right")
    return table


def _metric(row: dict[str, Any]) -> str:
    figure = row["figure"]
    if figure is None:
        return "not known"
    if figure["name"] == "kl_untaught":
        return f"KL {figure['value']:.3f}  "
    if figure["name"].startswith("perplexity"):
        return f"{figure['value']:.2f} {'t' if row['from'] == 'taught' else ' '}"
    text = f"{figure['value']:.4f}" if figure["name"].startswith("r2") else f"{figure['value']:.2%}"
    return f"{text} {'t' if row['from'] == 'taught' else ' '}"


def _cells(row: dict[str, Any], axes: dict[str, str]) -> list[str]:
    figures = {f["name"]: f for f in row["figures"]}
    on = row.get("on")
    cells = []
    for name, words in axes.items():
        if name not in figures:
            cells.append("no figure")
            continue
        value, unit = figures[name]["value"], figures[name]["unit"]
        text = f"{1 / value:.3g}" if words == "token/s" else format_quantity(value, unit)
        cells.append(text if on is None else f"{text} {'*' if name in on else ' '}")
    return cells
