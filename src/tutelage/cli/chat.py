"""`chat`: talk to teacher and student of a language run side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from tutelage.cli.app import app

_END = ("/quit", "/exit")


@app.command(epilog="Example: [bold]tutelage chat runs/chat[/bold]; /new starts over, /quit ends.")
def chat(
    run: Annotated[Path, typer.Argument(help="The directory of a finished language run.")],
    student_only: Annotated[
        bool, typer.Option("--student", help="Ask the student alone: faster, less memory.")
    ] = False,
    longest: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer, in tokens.")] = 128,
) -> None:
    """Talk to teacher and student side by side; both take the likeliest token at every step."""
    from tutelage.pipeline.language.talking import open_speakers

    speakers = open_speakers(run, student_only=student_only)
    out = Console()
    if not out.is_terminal and not out.file.isatty():
        out = Console(width=100, highlight=False)
    out.print("Write a line; /new starts over, /quit ends.", style="dim")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line in _END:
            return
        if line == "/new":
            for speaker in speakers:
                speaker.forget()
            continue
        if line:
            said = [
                Panel(speaker.answer(line, longest), title=speaker.name, expand=True)
                for speaker in speakers
            ]
            out.print(Columns(said, equal=True, expand=True))
