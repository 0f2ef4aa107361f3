"""The run directory: stages done once, damage told, one process at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage import run as module
from tutelage.errors import BusyError, CorruptFileError, DiskError, RecipeError
from tutelage.run import Run


class Work:
    """A stage's work that counts how often it was done."""

    def __init__(self, run: Run, name: str = "out.bin", content: bytes = b"made"):
        self.run, self.name, self.content, self.count = run, name, content, 0

    def __call__(self):
        self.count += 1
        path = self.run.file(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content)
        return {"count": self.count}, [path]


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_stage_is_done_once(tmp_path):
    with Run(tmp_path / "run") as run:
        work = Work(run)
        first = run.stage("a", "inputs", work)
        assert run.stage("a", "inputs", work) == first
    with Run(tmp_path / "run") as run:
        again = run.stage("a", "inputs", work)
    assert work.count == 1 and again == first
    assert again.result == {"count": 1} and list(again.files) == ["out.bin"]


def test_other_inputs_do_it_again(tmp_path):
    with Run(tmp_path) as run:
        work = Work(run)
        for inputs, count in (("x", 1), ("y", 2), ("y", 2), ("x", 3)):
            assert run.stage("a", inputs, work).result == {"count": count}
        assert run.stage("b", "x", Work(run, "b.bin")).result == {"count": 1}


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_a_file_of_a_finished_stage_must_be_whole(tmp_path, damage):
    with Run(tmp_path) as run:
        run.stage("a", "x", Work(run, "deep/out.bin"))
    path = tmp_path / "deep" / "out.bin"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"maDe" if damage == "altered" else b"mad")
    with Run(tmp_path) as run:
        work = Work(run)
        with pytest.raises(CorruptFileError, match="out.bin") as caught:
            run.stage("a", "x", work)
        assert work.count == 0 and "'a'" in str(caught.value) and "run.json" in str(caught.value)
        # Other inputs do not care about what was there.
        assert run.stage("a", "y", Work(run, "deep/out.bin")).result == {"count": 1}


def test_a_stage_that_is_being_redone_is_done_no_more(tmp_path):
    """Its files are half new: going back to the old inputs must make them again."""
    with Run(tmp_path) as run:
        run.stage("a", "x", Work(run))

        def stopped():
            run.file("out.bin").write_bytes(b"half of the new")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.stage("a", "y", stopped)
    with Run(tmp_path) as run:
        work = Work(run)
        assert run.stage("a", "x", work).result == {"count": 1} and work.count == 1


def test_seconds_add_up_over_interrupted_sessions(tmp_path, clock):
    def work_for(seconds, stop=False):
        def work():
            clock.now += seconds
            if stop:
                raise KeyboardInterrupt
            return None, []

        return work

    for seconds in (5.0, 7.0):
        with pytest.raises(KeyboardInterrupt), Run(tmp_path) as run:
            run.stage("a", "x", work_for(seconds, stop=True))
        clock.now += 1000  # between sessions nothing is spent
    with Run(tmp_path) as run:
        assert run.stage("a", "x", work_for(2.0)).seconds == 14.0
        assert run.stage("a", "x", work_for(2.0)).seconds == 14.0
        with pytest.raises(KeyboardInterrupt):
            run.stage("a", "y", work_for(3.0, stop=True))
        assert run.stage("a", "z", work_for(4.0)).seconds == 4.0  # other inputs, another count
    assert json.loads((tmp_path / "run.json").read_text())["spent"] == {}


def test_the_time_of_a_killed_session_is_lost_only_since_it_was_last_written(tmp_path, clock):
    first, second = tmp_path / "first", tmp_path / "second"

    def noted():
        found = json.loads((first / "run.json").read_text())
        return found["seconds"], found["spent"].get("b", {}).get("seconds")

    with Run(first) as run:

        def inner():
            clock.now += 30
            run.keep_time(30.0)
            assert noted() == (40.0, 35.0)
            clock.now += 29
            run.keep_time(30.0)
            assert noted() == (40.0, 35.0), "too early to write again"
            return None, []

        def killed():
            clock.now += 5
            run.stage("a", "x", inner)
            clock.now += 11  # since the end of the inner stage was written
            run.keep_time(30.0)
            shutil.copytree(first, second)  # as a kill leaves it
            return None, []

        clock.now += 5
        run.stage("b", "x", killed)
    with Run(second) as run:
        assert run.manifest["seconds"] == 69.0, "written when the inner stage ended"
        clock.now += 2

        def rest():
            clock.now += 3
            return None, []

        assert run.stage("b", "x", rest).seconds == 64.0 + 3
    assert json.loads((second / "run.json").read_text())["seconds"] == 69.0 + 2 + 3


def test_an_error_in_the_work_is_the_one_that_is_told(tmp_path, monkeypatch):
    with Run(tmp_path) as run:

        def fail():
            monkeypatch.setattr(run, "save", lambda: (_ for _ in ()).throw(DiskError("full")))
            raise ValueError("first")

        with pytest.raises(ValueError, match="first"):
            run.stage("a", "x", fail)


HOLD = """
import sys
from pathlib import Path
from tutelage.run import Run
with Run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_turned_away(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        before = (tmp_path / "run.json").exists()
        with pytest.raises(BusyError, match="in use by another") as caught, Run(tmp_path):
            pass
        assert caught.value.exit_code == 2 and (tmp_path / "run.json").exists() is before
        other.kill()  # a killed process leaves no lock behind
        other.wait()
    with Run(tmp_path):
        with pytest.raises(BusyError), Run(tmp_path):
            pass
    with Run(tmp_path):
        pass


def test_a_failed_start_lets_go_of_the_lock(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CorruptFileError) as caught, Run(tmp_path):
        pass
    assert caught  # the exception is alive, and with it the run that failed
    (tmp_path / "run.json").unlink()
    with Run(tmp_path):
        pass


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"stages": {}}', "cut", "edited", "bin"])
def test_a_damaged_manifest_is_told_and_kept(tmp_path, damage):
    with Run(tmp_path) as run:
        run.stage("a", "x", Work(run))
    path = tmp_path / "run.json"
    text = path.read_text()
    changed = {"cut": text[:-20], "edited": text.replace('"count": 1', '"count": 2')}
    path.write_bytes(b"\xff\xfe" if damage == "bin" else changed.get(damage, damage).encode())
    kept = path.read_bytes()
    with pytest.raises(CorruptFileError, match="run.json") as caught, Run(tmp_path):
        pass
    assert "\n" not in str(caught.value) and caught.value.exit_code == 5
    assert path.read_bytes() == kept


def test_a_file_in_the_runs_place_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(RecipeError, match="is a file"), Run(tmp_path / "taken"):
        pass
    with pytest.raises(DiskError), Run(tmp_path / "taken" / "below"):
        pass
    assert (tmp_path / "taken").read_text() == "mine"


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    ours = tmp_path / "checkpoints" / ".s.safetensors.q1.tutelage.tmp"
    theirs = tmp_path / "notes.tmp"
    for path in (ours, theirs):
        path.write_text("x")
    with Run(tmp_path):
        assert not ours.exists() and theirs.exists()


def test_a_busy_runs_temporary_files_are_let_be(tmp_path):
    with Run(tmp_path):
        live = tmp_path / ".x.q.tutelage.tmp"
        live.write_text("being written")
        with pytest.raises(BusyError), Run(tmp_path):
            pass
        assert live.exists()


def test_the_manifest_says_what_ran_where(tmp_path):
    with Run(tmp_path, command="tutelage demo") as run:
        run.stage("a", "x", Work(run))
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["command"] == "tutelage demo" and found["tutelage"]
    assert {"python", "torch", "numpy", "onnxruntime"} <= found["versions"].keys()
    assert {"system", "processor", "cores", "memory"} == found["machine"].keys()
    assert all(found["machine"].values())
    with Run(tmp_path, command="another") as run:
        assert run.manifest["command"] == "tutelage demo"


def test_the_log_has_one_json_object_a_line(tmp_path):
    with Run(tmp_path) as run:
        run.stage("a", "x", Work(run))
        run.log("note", text="two\nlines", path=Path("x"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage", "note"]
    assert lines[1]["text"] == "two\nlines" and lines[0]["time"] <= time.time() + 1


def test_a_log_that_cannot_be_written_is_a_disk_error(tmp_path):
    with Run(tmp_path) as run:
        (tmp_path / "log.jsonl").mkdir()
        with pytest.raises(DiskError, match="log.jsonl"):
            run.log("x")


def test_the_folder_can_be_moved(tmp_path):
    with Run(tmp_path / "here") as run:
        run.stage("a", "x", Work(run, "deep/out.bin"))
    (tmp_path / "here").rename(tmp_path / "there")
    with Run(tmp_path / "there") as run:
        work = Work(run)
        run.stage("a", "x", work)
        assert work.count == 0
