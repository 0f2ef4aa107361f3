"""Opening a run: one writer, its threads, its clock."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tutelage.errors import RecipeError
from tutelage.pipeline.timekeeping import Timekeeper
from tutelage.progress import Progress, Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.train.trackers import check_tracker
from tutelage.units import parse_quantity

_SHORTEST_S = 1.0  # between two notes of the time, however short the checkpoints' interval


@contextmanager
def opened(
    recipe: Recipe, folder: Path, progress: Progress | None
) -> Iterator[tuple[Run, Progress]]:
    """Hold the run directory, and have its time written down while stages work."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "a run holds its directory alone: start it in one process (docs/cluster.md says what "
            "several can do)"
        )
    check_tracker(recipe.tracking)
    with Run(folder, command=" ".join(sys.argv)) as run:
        interval = parse_quantity(recipe.distill.checkpoint, "s")
        yield run, Timekeeper(progress or Silent(), run, max(interval, _SHORTEST_S))


def with_threads(recipe: Recipe) -> Recipe:
    """Fix the thread count: sums differ in the last bit between counts, so it is part of a run."""
    threads = recipe.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    return recipe.model_copy(update={"threads": threads})
