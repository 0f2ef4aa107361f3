"""`probe`: calibrate a device profile, here or from what another machine read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tutelage.cli.app import AsJson, app, emit
from tutelage.cli.bars import console
from tutelage.errors import RecipeError

_GRAPHS = 200


@app.command(
    epilog="Examples: [bold]tutelage probe --out host.yaml[/bold], then device: ./host.yaml in the "
    "recipe; [bold]tutelage probe --copy probe.pyz[/bold], then on a Raspberry Pi: python "
    "probe.pyz; [bold]tutelage probe --from readings.yaml --out pi.yaml[/bold]"
)
def probe(
    out: Annotated[
        Path | None, typer.Option("--out", help="The profile to write; host.yaml when run here.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="How long, about.")] = 3.0,
    threads: Annotated[int, typer.Option("--threads", help="Of onnxruntime.")] = 1,
    copy: Annotated[
        Path | None, typer.Option("--copy", help="Write the probe as one file, to run elsewhere.")
    ] = None,
    readings: Annotated[
        Path | None, typer.Option("--from", help="What the probe wrote on another machine.")
    ] = None,
    ram: Annotated[
        str | None, typer.Option("--ram", help="Memory of that machine; as it says when unset.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", help="Its storage; as it says when unset.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time small graphs on a machine and write a device profile with what they cost there."""
    from tutelage.measure.probing import copy_probe

    if copy is not None:
        if copy.is_dir():
            raise RecipeError(f"{copy} is a folder; name the file to write, such as probe.pyz")
        copy_probe(copy)
        typer.echo(f"wrote {copy}; next, on that machine: python {copy.name}")
        return
    if not (0 < minutes <= 600 and 1 <= threads <= 1024):
        raise RecipeError("--minutes goes from above 0 to 600, --threads from 1 to 1024")
    emit(_write(out, minutes, threads, readings, ram, storage), as_json, _show)


def _write(
    out: Path | None, minutes: float, threads: int, source: Path | None, ram: str | None,
    storage: str | None,
) -> dict[str, Any]:  # fmt: skip
    from tutelage.devices import HOST, host
    from tutelage.files import write_atomically
    from tutelage.measure.calibrate import (
        calibrated,
        measured_limits,
        profile_text,
        read_readings,
    )
    from tutelage.measure.probing import run_probe
    from tutelage.units import parse_quantity

    target = out or Path("host.yaml" if source is None else "device.yaml")
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--out {target}: a profile's name ends in .yaml")
    if source is not None and target.stem == HOST:
        raise RecipeError(f"--out {target}: '{HOST}' is this machine; name it after the other one")
    given = [None if text is None else parse_quantity(text, "B") for text in (ram, storage)]
    read = run_probe(minutes, threads, _GRAPHS) if source is None else read_readings(source)
    here = source is None and given == [None, None]
    limits = host().limits if here else measured_limits(read, given[0], given[1])
    device = calibrated(read, target.stem, limits)
    write_atomically(target, profile_text(device))
    assert device.calibration is not None
    return {
        "profile": str(target),
        "device": device.name,
        "title": device.title,
        "runtime": device.runtime,
        "threads": device.threads,
        "graphs": device.calibration.graphs,
        "interval": list(device.calibration.interval.bounds),
        "noise_floor": device.calibration.noise_floor,
        "drift": device.calibration.drift,
        "notes": list(device.calibration.notes),
    }


def _show(answer: dict[str, Any]) -> None:
    out = Console(highlight=False, emoji=False)
    low, high = answer["interval"]
    for note in answer["notes"]:
        console.print(f"warning: {note}", markup=False, soft_wrap=True)
    out.print(
        f"{answer['title']}, {answer['runtime']}, threads: {answer['threads']}\n"
        f"{answer['graphs']} graphs; 95 % took {low:.2f} to {high:.2f} times their prediction\n"
        f"wrote {answer['profile']}; next, in the recipe: device: ./{answer['profile']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
