"""`init`: look at a teacher and data, and write a commented recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.app import Trust, app
from tutelage.errors import RecipeError


@app.command(
    epilog="Examples: [bold]tutelage init fit photos/[/bold]; "
    "[bold]tutelage init teacher.onnx photos/ --device raspberry-pi-4[/bold]; "
    "[bold]tutelage init fit windows.npz --task series[/bold]; "
    "[bold]tutelage init net.py:build data.npz --weights net.safetensors --trust-code[/bold]; "
    "[bold]tutelage init MiniLM-L6/ mails.jsonl[/bold]; "
    "[bold]tutelage init smollm2.gguf chats.jsonl[/bold]"
)
def init(
    teacher: Annotated[
        str,
        typer.Argument(
            help="fit (train one), file.py:function, timm:NAME, torchvision:NAME, an ONNX file, a "
            "folder with spec.json, a Hugging Face folder, or a GGUF file."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="Images (folder, IDX, .npz, .parquet, .csv, digits), series, or texts and chats "
            "(.jsonl, .txt, a folder)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where to write.")] = Path("recipe.yaml"),
    device: Annotated[str, typer.Option("--device", help="See: tutelage devices.")] = "host",
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="vision, series, text or causal_lm; unset, a teacher of texts or a language model "
            "is told from its files, and all else is vision.",
        ),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="Of series, what a label is: auto, classes or values.")
    ] = "auto",
    label_column: Annotated[
        str | None,
        typer.Option(
            "--label-column", help="Of a table, where the labels are; found by usual names."
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="The teacher's weights.")] = None,
    trust_code: Trust = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Look at a teacher and data and write a recipe, commented."""
    from tutelage.files import write_atomically
    from tutelage.pipeline.initial import initial_recipe

    if out.exists() and not force:
        raise RecipeError(f"{out} exists; choose another with --out, or pass --force")
    text = initial_recipe(
        teacher, data, folder=out.resolve().parent, device=device, weights=weights,
        trust_code=trust_code, task=task, target=target, label_column=label_column,
    )  # fmt: skip
    write_atomically(out, text)
    typer.echo(f"wrote {out}; next: tutelage plan {out}, then tutelage run {out}")
