"""The runner of the grid: what fails is one row, what is there stays, one grid a file."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import BusyError, CorruptFileError
from tutelage.files import write_json

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.grid import runner
from benchmarks.grid.jobs import Job, with_needs
from benchmarks.grid.store import Store, held

BASE = Job(kind="student", domain="digits", size=30)
JOBS = with_needs((BASE,))


def does(job: Job, before: dict[str, Any], answer: Path, log: Path) -> None:
    """Stand in for the work: what happens is written beside the answers."""
    plan = answer.parent.parent / job.kind
    said = plan.read_text() if plan.exists() else ""
    if said == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if said == "silent":
        os._exit(3)
    state = {"state": "failed", "reason": "no space left"} if said == "full" else {"state": "done"}
    write_json(answer, {**state, "needed": sorted(before), "wall_s": 0.0})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(runner, "WORK", tmp_path)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    lines: list[str] = []

    def go(code: str = "one", **options: Any) -> tuple[Store, list[str]]:
        lines.clear()
        store = Store(tmp_path / "grid.json", code)
        runner.Runner(store=store, jobs=JOBS, say=lines.append, target=does, **options).run()
        return Store(tmp_path / "grid.json", code), lines

    return go


def test_needs_are_done_first_and_nothing_is_done_twice(run: Any) -> None:
    store, lines = run(workers=2)
    assert [job.key for job in JOBS] == ["teacher/digits", "student/digits/30"]
    assert store.rows[BASE.key]["needed"] == ["teacher/digits"]
    assert [line.split()[0] for line in lines] == ["[1/2]", "[2/2]"]
    assert run()[1] == []


@pytest.mark.parametrize(
    ("said", "reason"), [("kill", "killed by signal SIGKILL"), ("full", "no space left")]
)
def test_what_fails_is_one_row_and_is_filled_by_the_next_run(
    run: Any, tmp_path: Path, said: str, reason: str
) -> None:
    (tmp_path / "teacher").write_text(said)
    store, lines = run()
    assert store.rows[JOBS[0].key]["reason"].startswith(reason)
    assert store.rows[BASE.key]["reason"].startswith(f"needs teacher/digits: {reason}")
    assert store.count(JOBS)["failed"] == 2
    assert "failed" in lines[0]
    (tmp_path / "teacher").unlink()
    store, _ = run()
    assert store.count(JOBS) == {"done": 2, "missing": 0, "failed": 0, "stale": 0}


def test_why_a_process_is_gone() -> None:
    assert runner.why_gone(-9, 1.0, 60.0).startswith("killed by signal SIGKILL")
    assert runner.why_gone(3, 1.0, 60.0).startswith("ended with status 3")
    assert runner.why_gone(-9, 7_201.0, 7_200.0).startswith("stopped after 2 h 00 min")


def fill(path: Path, code: str) -> Store:
    store = Store(path, code)
    for job in JOBS:
        store.put(job, {"state": "done"})
    return Store(path, code)


def test_stale_rows_stay_until_they_are_asked_for_again(run: Any, tmp_path: Path) -> None:
    fill(tmp_path / "grid.json", "one")
    store, lines = run("two")
    assert lines == [] and store.count(JOBS)["stale"] == 2
    assert store.done(JOBS) == {}
    store, lines = run("two", again=True)
    assert len(lines) == 2 and store.count(JOBS)["done"] == 2


def test_a_row_of_another_definition_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(tmp_path / "grid.json", "one")
    assert store.count(JOBS)["done"] == 2
    monkeypatch.setattr(Job, "definition", lambda job: "another")
    assert store.count(JOBS)["stale"] == 2


def test_time_left_is_that_of_jobs_like_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "grid.json", "one")
    here = runner.Runner(store=store, jobs=JOBS, workers=2)
    assert here.seconds_left(JOBS) is None
    here._took = {("student", "digits/30"): [10.0, 20.0], ("teacher", "x/0"): [3.0]}
    assert here.seconds_left((BASE, BASE)) == 15.0  # 2 jobs of 15 s by 2
    assert here.seconds_left((JOBS[0],)) == 5.5  # a mean of 11 s, by 2


def test_two_grids_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "grid.json"
    with held(path), pytest.raises(BusyError, match=r"another grid writes .*grid\.json; wait"):
        held(path)
    with held(path):
        pass


def test_a_damaged_file_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "grid.json").write_text('{"rows": {"a"')
    with pytest.raises(CorruptFileError, match="damaged"):
        Store(tmp_path / "grid.json", "one")
    (tmp_path / "grid.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="holds no rows"):
        Store(tmp_path / "grid.json", "one")
