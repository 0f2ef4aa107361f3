"""Fixtures that several test files share: one finished tiny run, and a quicker way to prove."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny work: more threads only wait for one another

import pytest
import tiny

from tutelage.records import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that is done. Tests read it, or copy it before they change anything."""

    folder: Path
    recipe: Path
    run: Path
    said: tiny.Said


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    tiny.write_data(folder / "data.npz")
    recipe = tiny.write_recipe(folder)
    said = tiny.cli("run", recipe, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return Finished(folder=folder, recipe=recipe, run=folder / "run", said=said)


@pytest.fixture(autouse=True)
def no_slow_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save where a test says so, however busy the machine: a slow save puts off the next."""
    if "tutelage.train.loop" in sys.modules:
        monkeypatch.setattr("tutelage.train.loop.pause_after", lambda spent_s, wanted_s: wanted_s)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what costs most and is tested elsewhere: memory is measured in nine processes."""
    monkeypatch.setattr("tutelage.pipeline.proving.measure_memory", _no_memory)


def _no_memory(path: Path, **options: object) -> Measurement:
    return Measurement(name="ram", value=1e6, unit="B", kind="measured", n=3, where="a stand-in")


@pytest.fixture
def job(tmp_path: Path, finished: Finished, quick: None) -> Callable[..., Path]:
    """Return a function that writes a tiny recipe and its data; its teacher is trained already."""

    def make(changes: dict[str, object] | None = None, folder: Path = tmp_path) -> Path:
        folder.mkdir(exist_ok=True)
        if not (folder / "data.npz").exists():
            tiny.write_data(folder / "data.npz")
        teacher = {"teacher": {"source": str(finished.run / "teacher")}}
        return tiny.write_recipe(folder, {**teacher, **(changes or {})})

    return make
