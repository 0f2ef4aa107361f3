"""Results as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tutelage.units import format_quantity

_UNITS = {"latency_s": "s", "ram_bytes": "B", "storage_bytes": "B", "energy_j": "J", "macs": "MAC"}
_NAMES = {
    "latency_s": "latency", "ram_bytes": "memory", "storage_bytes": "storage",
    "energy_j": "energy per inference", "accuracy": "accuracy (validation)",
}  # fmt: skip

_SIDES = ("limit", "value")
_SHORT = {
    "latency_s": "latency", "ram_bytes": "memory", "storage_bytes": "storage", "energy_j": "energy",
}  # fmt: skip


def show_result(answer: dict[str, Any]) -> None:
    """Print what a run ended with."""
    out = Console(highlight=False, emoji=False)
    student, teacher = answer["student"], answer["teacher"]
    table = Table(title=f"{answer['device']}: {answer['status']}", title_justify="left")
    for column in ("", "limit", "value", "margin", "kind", "met"):
        table.add_column(
            column, justify="right" if column in ("limit", "value", "margin") else "left"
        )
    for row in answer["budget"]:
        unit = _UNITS.get(row["metric"], "1")
        table.add_row(
            _NAMES[row["metric"]] + ("" if row["hard"] else " (soft)"),
            *(f"{row[k]:.2%}" if unit == "1" else format_quantity(row[k], unit) for k in _SIDES),
            f"{row['margin']:+.{int(abs(row['margin']) < 0.01)}%}",
            row["kind"],
            "yes" if row["met"] else "NO",
        )
    out.print(table)
    chosen = next(a for a in answer["artifacts"] if a["path"] == answer["chosen"])
    if student["metric"] in ("perplexity", "bits_per_byte"):
        times, digits = student["value"] / teacher["value"], 2 + ("byte" in student["metric"])
        out.print(
            f"test {student['metric'].replace('_', ' ')}: student {student['value']:.{digits}f}, "
            f"teacher {teacher['value']:.{digits}f} "
            f"({times:.3f} times the teacher's), measured on the {chosen['precision']} file",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    elif student["metric"] == "r2":
        line = f"{_values_line(student, teacher)}, measured on the {chosen['precision']} file"
        out.print(line, markup=False, soft_wrap=True)
    elif student["metric"] == "agreement" and student["value"] is not None:
        low, high = student["spread"]
        out.print(
            f"test agreement with the teacher: {student['value']:.2%} (95 % interval {low:.2%} to "
            f"{high:.2%}), measured on the {chosen['precision']} file; the data has no labels",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    elif student["value"] is not None and teacher["value"]:
        kept = student["value"] / teacher["value"]
        name = student["metric"].replace("_", " ")
        out.print(
            f"test {name}: student {student['value']:.2%}, teacher {teacher['value']:.2%} "
            f"(kept {kept:.1%}), measured on the {chosen['precision']} file",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    out.print(
        f"artifact: {answer['run']}/{answer['chosen']} ({format_quantity(chosen['bytes'], 'B')})",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    out.print(f"report:   {answer['run']}/report.html", markup=False, soft_wrap=True)
    out.print(f"took {answer['seconds']:.0f} s", markup=False)


def _values_line(student: dict[str, Any], teacher: dict[str, Any]) -> str:
    share = student["value"] / teacher["value"] if teacher["value"] > 0 else None
    kept = "" if share is None else f" (kept {share:.1%})"
    return (
        f"test R2: student {student['value']:.4f}, teacher {teacher['value']:.4f}{kept}; mean "
        f"absolute error {student['mae']:.4g}, teacher's {teacher['mae']:.4g}"
    )


def show_plan(answer: dict[str, Any]) -> None:
    """Print the feasibility table."""
    out = Console(highlight=False, emoji=False)
    table = Table(
        title=f"{answer['device']}: {answer['status']}", title_justify="left",
        box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold",
    )  # fmt: skip
    names = ["storage_bytes", "ram_bytes", "latency_s", "energy_j"]
    tried = any(row["trial"] for row in answer["candidates"])
    figure = ("validation",) if tried else ()
    for column in ("student", "params", *figure, *(_SHORT[n] for n in names), "fits"):
        named = column in ("student", "fits")
        table.add_column(column, justify="left" if named else "right", no_wrap=not named)
    for row in answer["candidates"]:
        figures = {f["name"]: f["value"] for f in row["figures"]}
        cells = [format_quantity(figures[n], _UNITS[n]) if n in figures else "-" for n in names]
        missed = ", ".join(str(_SHORT.get(m, m)) for m in row["missed"])
        if tried:
            cells.insert(0, _trial(row["trial"], row["estimate"]))
        table.add_row(
            row["name"], f"{row['parameters']:,}", *cells, "yes" if row["fits"] else f"no: {missed}"
        )
    out.print(table)
    for row in answer["budget"]:
        unit = _UNITS.get(row["metric"], "1")
        limit = format_quantity(row["limit"], unit)
        out.print(f"limit: {_NAMES[row['metric']]} {limit} ({row['source']})", markup=False)
    if tried and answer["task"] == "causal_lm":
        out.print(
            "validation: perplexity after a short lesson or (*) of the file after a whole one; KL: "
            "a token from the teacher, untaught",
            markup=False,
        )
    elif tried:
        out.print(
            "validation was measured, after a short distillation or (*) a whole one; students from "
            "earlier budgets of this run. tutelage run also looks for others",
            markup=False,
        )
    estimates = [row["estimate"] for row in answer["candidates"] if row["estimate"] is not None]
    if estimates:
        out.print(
            f"~: not tried; estimated by size and operations from {estimates[0]['n']} that were, "
            "with the half width of the 95 % interval",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    out.print("figures are predicted; tutelage run measures them", markup=False)


def _trial(figure: dict[str, Any] | None, estimate: dict[str, Any] | None) -> str:
    if figure is None and estimate is not None:
        low, high = estimate["spread"]
        if estimate["name"].startswith("r2"):
            return f"~{estimate['value']:.3f} ±{(high - low) / 2:.3f}"
        return f"~{100 * estimate['value']:.1f} ±{50 * (high - low):.1f} %"
    if figure is None:
        return "not tried"
    if figure["name"] == "kl_untaught":
        return f"KL {figure['value']:.3f}"
    if figure["name"].startswith("perplexity"):
        return f"{figure['value']:.2f}" + ("" if figure["where"].startswith("after") else " *")
    text = f"{figure['value']:.4f}" if figure["name"].startswith("r2") else f"{figure['value']:.2%}"
    return text if figure["where"].startswith("after") else f"{text} *"
