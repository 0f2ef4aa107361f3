"""Kills, full disks, damaged files, two runs at once: the same bytes in the end, or a refusal."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

from tutelage.errors import BusyError, CorruptFileError
from tutelage.run import Run

RESULT = ("student", "teacher", "artifacts", "signals", "plan.json")
STEP = 12  # of the writes, every so many-th is died at, in each of three tests
RECIPE: dict[str, Any] = {
    "teacher": {"fit": True, "epochs": 3, "width": 8},
    "distill": {"epochs": 2, "batch": 32, "checkpoint": "1 us"},  # one after every step
    "export": {"largest_loss": 0.9},
}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the runner forks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A warm process that runs the tiny recipe in forks; nothing disturbed the run `whole`."""

    folder: Path
    process: subprocess.Popen[str]

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    def go(self, run: Path, **fault: Any) -> dict[str, Any]:
        job = {"recipe": str(self.folder / "recipe.yaml"), "run": str(run), **fault}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def finish(self, run: Path) -> None:
        """Run to the end and hold the outcome against the undisturbed run."""
        answer = self.go(run)
        assert answer["status"] == 0, answer["err"]
        assert tiny.hashes(run, *RESULT) == tiny.hashes(self.whole, *RESULT)
        assert learned(run) == learned(self.whole)
        assert [path for path in run.rglob(".*.tmp")] == []


def learned(run: Path) -> Any:
    stages = json.loads((run / "run.json").read_text())["stages"]
    return stages["fit"]["result"], stages["distill"]["result"], stages["export"]["result"]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_data(folder / "data.npz")
    tiny.write_recipe(folder, RECIPE)
    script = Path(__file__).with_name("crash_runner.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        made = Runner(folder=folder, process=process)
        first = made.go(made.whole)
        assert first["status"] == 0, first["err"]
        yield made
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(runner: Runner) -> dict[str, Any]:
    """Return what a second, undisturbed run of the same recipe answers: counts and seconds."""
    answer = runner.go(runner.folder / "second")
    assert answer["status"] == 0, answer["err"]
    return answer


def test_the_same_recipe_gives_the_same_bytes(runner: Runner, undisturbed: dict[str, Any]) -> None:
    runner.finish(runner.folder / "second")


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_kill_at_a_write_changes_nothing(
    runner: Runner, undisturbed: dict[str, Any], tmp_path: Path, shift: int
) -> None:
    # A sample: three turns, each from another write on, before and after it by turns.
    writes = undisturbed["counted"]["replace"]
    assert writes > 30, "a checkpoint after every step is among them"
    for n in range(1 + 4 * shift, writes + 1, STEP):
        run = tmp_path / str(n)
        when = "before" if n % 2 else "after"
        assert runner.go(run, die={"n": n, "when": when})["status"] == 137
        runner.finish(run)


def test_kills_at_random_moments_change_nothing(
    runner: Runner, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    chance = random.Random(20)
    run = tmp_path / "run"
    statuses = []
    # The first is early enough even where the undisturbed run had to share its processor.
    for share in (0.05, *sorted(chance.uniform(0.05, 0.7) for _ in range(4))):
        statuses.append(runner.go(run, kill=share * undisturbed["seconds"])["status"])
    assert set(statuses) <= {-9, 0}
    assert -9 in statuses
    runner.finish(run)


def test_a_kill_keeps_the_seconds_of_its_session(
    runner: Runner, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    n = undisturbed["counted"]["replace"]  # amid a stage, since every step writes a note too
    first = runner.go(run, die={"n": n, "when": "after"}, note_s=0.0)
    assert first["status"] == 137
    noted = json.loads((run / "run.json").read_text())
    (amid,) = noted["spent"].values()
    done = sum(stage["seconds"] for stage in noted["stages"].values()) + amid["seconds"]
    assert amid["seconds"] > 0
    assert 0 < done <= noted["seconds"] + 0.02 <= first["seconds"] + 0.04  # rounded to 10 ms
    second = runner.go(run)
    assert second["status"] == 0
    whole = json.loads((run / "run.json").read_text())["seconds"]
    assert noted["seconds"] < whole <= noted["seconds"] + second["seconds"] + 0.02


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_says_how_to_go_on(
    runner: Runner, undisturbed: dict[str, Any], tmp_path: Path, when: str
) -> None:
    run = tmp_path / "run"
    n = undisturbed["counted"]["replace"] // 2
    answer = runner.go(run, interrupt={"n": n, "when": when})
    assert answer["status"] == 130
    assert answer["err"].splitlines()[-1] == "interrupted; run the same command again to go on"
    runner.finish(run)


@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_full_disk_is_one_line_and_the_rerun_finishes(
    runner: Runner, undisturbed: dict[str, Any], tmp_path: Path, call: str
) -> None:
    run = tmp_path / "run"
    before: dict[str, str] = {}
    for _ in range(4):  # each time the disk is full a little later in the run
        n = 2 + len(before)
        answer = runner.go(run, full={"n": n, "call": call})
        assert answer["status"] == 2, answer["err"]
        assert len(answer["errors"]) == 1, answer["err"]
        assert "no space left" in answer["errors"][0].lower()
        assert str(run) in answer["errors"][0]
        now = tiny.hashes(run, *RESULT)
        finished = {name: value for name, value in before.items() if "manifest" not in name}
        assert finished.items() <= now.items(), "what was written before is whole"
        before = now
    runner.finish(run)


def test_the_second_of_two_runs_in_one_directory_is_refused(runner: Runner, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runner.whole, run)
    before = tiny.hashes(run, ".")
    with Run(run):
        answer = runner.go(run)
    assert answer["status"] == 2
    assert len(answer["errors"]) == 1
    assert "in use" in answer["errors"][0]
    assert tiny.hashes(run, ".") == before
    runner.finish(run)


def test_a_directory_is_free_again_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(CorruptFileError), Run(tmp_path):
            pass
    (tmp_path / "run.json").unlink()
    with Run(tmp_path), pytest.raises(BusyError), Run(tmp_path):
        pass


def stored(run: Path) -> list[str]:
    files = (p.relative_to(run).as_posix() for p in sorted(run.rglob("*")) if p.is_file())
    return [name for name in files if name not in (".lock", "log.jsonl")]


def results(run: Path) -> dict[str, str]:
    # A signal cache's manifest may list more than is used; what it lists is checked by hash.
    found = tiny.hashes(run, *RESULT)
    return {name: value for name, value in found.items() if not name.endswith("manifest.json")}


def damaged(path: Path, how: str) -> bytes:
    content = bytearray(path.read_bytes())
    if how == "cut":
        return bytes(content[: len(content) // 2])
    content[len(content) * 2 // 3] ^= 0x04
    return bytes(content)


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_file_is_refused_or_made_again(runner: Runner, tmp_path: Path, how: str) -> None:
    refused = []
    for name in stored(runner.whole):
        run = tmp_path / name.replace("/", "-")
        shutil.copytree(runner.whole, run)
        (run / name).write_bytes(damaged(run / name, how))
        answer = runner.go(run)
        assert answer["status"] in (0, 5), (name, answer["err"])
        if answer["status"] == 5:
            refused.append(name)
            assert len(answer["errors"]) == 1
            assert name.partition("/")[0] in answer["errors"][0]
            assert "delete" in answer["errors"][0]
        else:
            assert results(run) == results(runner.whole)
            assert learned(run) == learned(runner.whole)
        shutil.rmtree(run)
    kept = ("run.json", "student/", "artifacts/", "teacher/", "signals/", "proof.json")
    expected = [n for n in stored(runner.whole) if n.startswith(kept)]
    assert [n for n in expected if n not in refused and not n.endswith("manifest.json")] == []


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_checkpoint_is_never_gone_on_from(
    runner: Runner, undisturbed: dict[str, Any], tmp_path: Path, how: str
) -> None:
    run = tmp_path / "run"
    runner.go(run, die={"n": undisturbed["counted"]["replace"] // 2, "when": "after"})
    checkpoint = run / "checkpoints/student.safetensors"
    checkpoint.write_bytes(damaged(checkpoint, how))
    answer = runner.go(run)
    assert answer["status"] == 5
    assert len(answer["errors"]) == 1
    assert "checkpoints/student.safetensors" in answer["errors"][0]
    checkpoint.unlink()  # as the message says
    runner.finish(run)


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(runner: Runner, tmp_path: Path) -> None:
    content = (runner.whole / "run.json").read_bytes()
    chance = random.Random(3)
    for _ in range(150):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if says(flipped) == says(content):  # 1e-05 is 1E-05, and a 17th digit changes nothing
            continue
        (tmp_path / "run.json").write_bytes(flipped)
        with pytest.raises(CorruptFileError), Run(tmp_path):
            pass


def says(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:  # of which bad UTF-8 is one
        return None


def test_starting_again_as_the_message_says_recovers(runner: Runner, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runner.whole, run)
    weights = run / "student/model.safetensors"
    weights.write_bytes(damaged(weights, "flip"))
    answer = runner.go(run)
    assert answer["status"] == 5
    assert f"delete {run / 'run.json'}" in answer["errors"][0]
    (run / "run.json").unlink()
    runner.finish(run)
