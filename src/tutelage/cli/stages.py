"""`demo`, `run`, `plan`: the stages."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.app import AsJson, RunDir, Trust, app, emit
from tutelage.cli.bars import Bars
from tutelage.cli.frontiers import show_frontier
from tutelage.cli.tables import show_plan, show_result
from tutelage.errors import InfeasibleError

if TYPE_CHECKING:
    from tutelage.recipe import Recipe

Frontier = Annotated[
    bool,
    typer.Option(
        "--frontier",
        help="Show what else a run's students make possible: metric against bytes, latency and "
        "energy, and the best one for every known device.",
    ),
]
RecipePath = Annotated[Path, typer.Argument(help="A recipe in YAML (see: tutelage init).")]


@app.command(
    epilog="Example: [bold]tutelage demo --run /tmp/demo[/bold], then open report.html in it."
)
def demo(
    run: Annotated[
        Path, typer.Option("--run", help="The run directory; run again to go on in it.")
    ] = Path("tutelage-demo"),
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option()] = 0,
) -> int:
    """Distil scikit-learn's digits to a Cortex-M4 board: teacher trained on the spot, offline."""
    from tutelage.pipeline.demo import demo_recipe

    return _run(demo_recipe(seed), run, as_json, trust_code=False)


@app.command("run", epilog="Example: [bold]tutelage run recipe.yaml --run runs/first[/bold]")
def run_(
    recipe: RecipePath, run: RunDir = None, as_json: AsJson = False, trust_code: Trust = False
) -> int:
    """Do every stage of a recipe; run it again to go on where it stopped."""
    from tutelage.recipe import Recipe

    folder = run or Path("runs") / recipe.stem
    return _run(Recipe.read(recipe), folder, as_json, trust_code=trust_code)


Try = Annotated[
    bool,
    typer.Option(
        "--try", help="First ask the teacher and distil each candidate briefly (minutes)."
    ),
]


@app.command(
    epilog="Examples: [bold]tutelage plan recipe.yaml[/bold]; with how good each becomes: "
    "[bold]tutelage plan recipe.yaml --try[/bold]"
)
def plan(
    recipe: RecipePath, run: RunDir = None, as_json: AsJson = False, trust_code: Trust = False,
    try_: Try = False, frontier: Frontier = False,
) -> None:  # fmt: skip
    """Show which students would fit the budget; exits with 3 if none.

    What was tried in the run directory before answers another budget or device in seconds.
    """
    from tutelage.pipeline import try_recipe
    from tutelage.pipeline.feasible import plan_recipe, raise_if_infeasible
    from tutelage.recipe import Recipe

    folder = run or Path("runs") / recipe.stem
    if try_:
        with suppress(InfeasibleError):  # the table says so, and what would do
            try_recipe(Recipe.read(recipe), folder, progress=Bars(), trust_code=trust_code)
    answer = plan_recipe(
        Recipe.read(recipe), folder, progress=Bars(), trust_code=trust_code, frontier=frontier
    )
    emit(answer, as_json, show_frontier if frontier else show_plan)
    raise_if_infeasible(answer)


def _run(recipe: Recipe, folder: Path, as_json: bool, *, trust_code: bool) -> int:
    from tutelage.pipeline import run_recipe
    from tutelage.pipeline.result import infeasible_summary, raise_if_missed

    started = time.monotonic()
    try:
        result = run_recipe(recipe, folder, progress=Bars(), trust_code=trust_code)
    except InfeasibleError as error:
        if as_json and error.shortfall is not None:
            spent = time.monotonic() - started
            typer.echo(json.dumps(infeasible_summary(recipe, folder, error.shortfall, spent)))
        raise
    answer: dict[str, Any] = result.to_json()
    emit(answer, as_json, show_result)
    raise_if_missed(result)
    return 0
