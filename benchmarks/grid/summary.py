"""From rows to figures: what every method came to in every block, and how methods rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.grid.domains import DOMAINS
from benchmarks.grid.jobs import BASE, SEEDS, Job, cells
from benchmarks.grid.methods import METHODS
from benchmarks.grid.statistics import Ranking, Spread, paired, ranking, spread
from benchmarks.grid.store import Store

ALONE = "no teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One method in one block; `to_alone` and `to_base` are paired by seed."""

    method: str
    test: Spread
    to_alone: Spread | None
    to_base: Spread | None
    epochs: tuple[int, ...]
    settings: tuple[Any, ...]
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One domain at one size: what is done of it, and how much is not."""

    domain: str
    size: int
    lines: tuple[Line, ...]
    teacher: dict[str, Any]
    student: dict[str, Any]
    cpus: tuple[str, ...]


def whole_grid(*, searched: bool) -> tuple[Job, ...]:
    """Return every cell that a plain `run` would do."""
    sizes = sorted({size for domain in DOMAINS.values() for size in domain.sizes})
    return cells(tuple(DOMAINS), sizes, tuple(METHODS), SEEDS, searched=searched)


def blocks_of(store: Store, wanted: Sequence[Job]) -> tuple[Block, ...]:
    """Return the blocks in which some of the cells are done, in the order of the domains."""
    places = {(job.domain, job.size) for job in wanted}
    found = []
    for domain, size in sorted(places, key=lambda p: (list(DOMAINS).index(p[0]), p[1])):
        here = [job for job in wanted if (job.domain, job.size) == (domain, size)]
        done = [(job, store.rows[job.key]) for job in here if store.state(job) == "done"]
        if done:
            found.append(_block(store, domain, size, done))
    return tuple(found)


def _block(store: Store, domain: str, size: int, done: list[tuple[Job, dict[str, Any]]]) -> Block:
    tests: dict[str, dict[int, float]] = {}
    for job, row in done:
        tests.setdefault(job.method, {})[job.seed] = row["test"]
    lines = []
    for method, mine in tests.items():
        rows = [row for job, row in done if job.method == method]
        lines.append(
            Line(
                method=method,
                test=spread(list(mine.values())),
                to_alone=None if method == ALONE else paired(mine, tests.get(ALONE, {})),
                to_base=None if method == BASE else paired(mine, tests.get(BASE, {})),
                epochs=tuple(sorted({row["epochs"] for row in rows})),
                settings=tuple(dict.fromkeys(row["setting"] for row in rows)),
                cpu_s=float(np.mean([row["asked_s"] + row["taught_s"] for row in rows])),
                wall_s=float(np.mean([row["wall_s"] for row in rows])),
            )
        )
    order = list(METHODS)
    return Block(
        domain=domain,
        size=size,
        lines=tuple(sorted(lines, key=lambda line: order.index(line.method))),
        teacher=store.rows.get(Job(kind="teacher", domain=domain).key, {}),
        student=store.rows.get(Job(kind="student", domain=domain, size=size).key, {}),
        cpus=tuple(sorted({row["cpu"] for _, row in done})),
    )


def rank(blocks: Sequence[Block]) -> tuple[Ranking | None, tuple[str, ...]]:
    """Rank the methods that every block has; return the ranking, and those that are left out.

    A block counts where KD and no teacher are done.
    """
    means = [{line.method: line.test.mean for line in block.lines} for block in blocks]
    means = [found for found in means if ALONE in found and BASE in found]
    if not means:
        return None, ()
    everywhere = tuple(m for m in METHODS if all(m in found for found in means))
    scores = np.array([[found[m] for m in everywhere] for found in means])
    somewhere = {m for found in means for m in found}
    return ranking(everywhere, scores), tuple(m for m in METHODS if m in somewhere - {*everywhere})
