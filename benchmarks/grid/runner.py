"""Runs jobs side by side, each in a process of its own with one thread; the rows are kept."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.grid.domains import WORK
from benchmarks.grid.entry import work
from benchmarks.grid.jobs import Job
from benchmarks.grid.store import Store
from tutelage.files import read_json

Say = Callable[[str], None]
_POLL_S = 0.02
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(slots=True, kw_only=True)
class _Child:
    job: Job
    process: BaseProcess
    answer: Path
    since: float


@dataclass(slots=True, kw_only=True)
class Runner:
    """Does what is missing. `limit_s` ends a job that takes longer; `again` redoes stale rows."""

    store: Store
    jobs: tuple[Job, ...]
    workers: int = 1
    limit_s: float = 7_200.0
    again: bool = False
    say: Say = print
    target: Callable[..., None] = work  # tests put another in its place
    _running: list[_Child] = field(default_factory=list)
    _tried: set[str] = field(default_factory=set)
    _took: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def run(self) -> None:
        """Run until nothing is left that can be done; an interrupt ends the children, too."""
        for name in _THREADS:
            os.environ[name] = "1"  # before the server of the children starts
        waiting = [job for job in self.jobs if self._wanted(job)]
        total = len(waiting)
        try:
            while waiting or self._running:
                waiting = self._start(waiting)
                finished = [child for child in self._running if self._over(child)]
                for child in finished:
                    self._keep(child)
                    self._report(child.job, waiting, total)
                if not finished:
                    time.sleep(_POLL_S)
        finally:
            for child in self._running:
                child.process.terminate()
                child.process.join()

    def _wanted(self, job: Job) -> bool:
        state = self.store.state(job)
        return state in ("missing", "failed") or (state == "stale" and self.again)

    def _start(self, waiting: list[Job]) -> list[Job]:
        """Start what is ready while there is room; fail what can never be. Return the rest."""
        left = []
        for job in waiting:
            states = {need: self.store.state(need) for need in job.needs()}
            lost = [n for n, state in states.items() if self._never(n, state)]
            if lost:
                first = lost[0]
                why = self.store.rows.get(first.key, {}).get("reason", "")
                if states[first] == "stale":
                    why = "it is of another version; --again makes it anew"
                self.store.put(job, {"state": "failed", "reason": f"needs {first.key}: {why}"})
                self._tried.add(job.key)
            elif len(self._running) < self.workers and set(states.values()) <= {"done"}:
                self._running.append(self._begin(job))
            else:
                left.append(job)
        return left

    def _never(self, need: Job, state: str) -> bool:
        """Say whether a need will not be done in this run any more."""
        if state == "failed":
            return need.key in self._tried
        return state == "stale" and not self.again

    def _begin(self, job: Job) -> _Child:
        name = job.key.replace("/", "-").replace(", ", "-").replace(" ", "_")
        answer, log = WORK / "answers" / f"{name}.json", WORK / "logs" / f"{name}.log"
        for path in (answer, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        answer.unlink(missing_ok=True)
        context: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
        if os.name != "nt" and self.target is work:  # torch is imported once, not once a job
            context.set_forkserver_preload(["benchmarks.grid.teach"])
        before = self.store.done(job.needs())
        process = context.Process(target=self.target, args=(job, before, answer, log))
        process.start()
        return _Child(job=job, process=process, answer=answer, since=time.monotonic())

    def _over(self, child: _Child) -> bool:
        if child.process.is_alive() and time.monotonic() - child.since > self.limit_s:
            child.process.kill()
            child.process.join()
        return not child.process.is_alive()

    def _keep(self, child: _Child) -> None:
        self._running.remove(child)
        child.process.join()
        took = time.monotonic() - child.since
        if child.answer.exists():
            row = read_json(child.answer)
            child.answer.unlink()
        else:
            row = {
                "state": "failed",
                "reason": why_gone(child.process.exitcode, took, self.limit_s),
            }
        self.store.put(child.job, row)
        self._tried.add(child.job.key)
        kind = (child.job.kind, f"{child.job.domain}/{child.job.size}")
        self._took.setdefault(kind, []).append(took)

    def _report(self, job: Job, waiting: Sequence[Job], total: int) -> None:
        row = self.store.rows[job.key]
        behind = total - len(waiting) - len(self._running)
        found = row.get("test", row.get("validation"))
        said = "done" if found is None else f"{found:.2%}"
        if row["state"] != "done":
            said = f"failed: {row['reason']}"
        left = self.seconds_left([*waiting, *(child.job for child in self._running)])
        about = "" if left is None else f"; about {duration(left)} left"
        self.say(f"[{behind}/{total}] {job.key}: {said}, {row.get('wall_s', 0):.1f} s{about}")

    def seconds_left(self, jobs: Sequence[Job]) -> float | None:
        """Return about how long these jobs will take, by jobs like them; None before the first."""
        if not self._took:
            return None
        every = [t for times in self._took.values() for t in times]
        usual = sum(every) / len(every)
        total = 0.0
        for job in jobs:
            alike = self._took.get((job.kind, f"{job.domain}/{job.size}"))
            total += sum(alike) / len(alike) if alike else usual
        return total / self.workers


def why_gone(code: int | None, took_s: float, limit_s: float) -> str:
    """Return one line on a process that ended without an answer."""
    if took_s > limit_s:
        return f"stopped after {duration(limit_s)}, the limit of one job (--limit)"
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return f"killed by signal {name} (of SIGKILL, memory is the usual reason)"
    return f"ended with status {code} and no answer; see its log in {WORK / 'logs'}"


def duration(seconds: float) -> str:
    """Return seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
