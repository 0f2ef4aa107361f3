"""The rows of a grid on the disk: what is done, missing, failed, or of another version."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from benchmarks.grid.jobs import Job
from tutelage.errors import BusyError, CorruptFileError
from tutelage.files import read_json, write_json

State = Literal["done", "missing", "failed", "stale"]


class Store:
    """The rows of one results file, each under its job's key, judged against one code hash."""

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = path, code
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            found = read_json(path)
            if not isinstance(found, dict) or not isinstance(found.get("rows"), dict):
                raise CorruptFileError(f"{path} holds no rows of a grid; move it away")
            self.rows = found["rows"]

    def state(self, job: Job) -> State:
        """Return how a job stands; a row of other code or another definition is stale."""
        row = self.rows.get(job.key)
        if row is None:
            return "missing"
        if (row["code"], row["definition"]) != (self.code, job.definition()):
            return "stale"
        return "done" if row["state"] == "done" else "failed"

    def put(self, job: Job, row: dict[str, Any]) -> None:
        """Keep a row, and write the file."""
        self.rows[job.key] = {
            **{k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()},
            "code": self.code,
            "definition": job.definition(),
        }
        write_json(self.path, {"rows": dict(sorted(self.rows.items()))})

    def done(self, jobs: Iterable[Job]) -> dict[str, dict[str, Any]]:
        """Return the rows of those jobs that are done."""
        return {job.key: self.rows[job.key] for job in jobs if self.state(job) == "done"}

    def with_rows_of(self, wanted: Iterable[Job]) -> Store:
        """Return these rows as the version of the code sees them that made most of `wanted`.

        That is this version wherever it made any.
        """
        codes = Counter(
            self.rows[job.key]["code"]
            for job in wanted
            if job.key in self.rows and self.rows[job.key]["definition"] == job.definition()
        )
        if self.code in codes or not codes:
            return self
        other = copy.copy(self)
        other.code = codes.most_common(1)[0][0]
        return other

    def count(self, jobs: Iterable[Job]) -> dict[State, int]:
        """Return how many jobs stand how."""
        counted: dict[State, int] = {"done": 0, "missing": 0, "failed": 0, "stale": 0}
        for job in jobs:
            counted[self.state(job)] += 1
        return counted


def held(path: Path) -> AbstractContextManager[Any]:
    """Return the lock of a results file, taken; raises `BusyError` where another grid has it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"another grid writes {path}; wait for it, or name another file with --out"
        ) from None
    return lock
