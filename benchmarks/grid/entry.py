"""Where a child process begins; the heavy imports come after, unless its server has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def work(job: Any, before: dict[str, dict[str, Any]], answer: Path, log: Path) -> None:
    """Do one job."""
    from benchmarks.grid.teach import work as do

    do(job, before, answer, log)
