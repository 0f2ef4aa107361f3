"""Trackers are opened through Accelerate; a missing one is told with its install command."""

import importlib.util
import tomllib
from pathlib import Path

import pytest
import tiny

from tutelage.errors import MissingExtra
from tutelage.train.trackers import open_tracker


def test_none_opens_nothing(tmp_path):
    assert open_tracker(None, tmp_path / "tracking") is None
    assert not (tmp_path / "tracking").exists()


def test_tensorboard_writes_events_that_can_be_read_back(tmp_path):
    from accelerate.state import PartialState

    # As in a fresh process, where no trainer has set Accelerate up.
    PartialState._reset_state()
    folder = tmp_path / "run" / "tracking"
    tracker = open_tracker("tensorboard", folder)
    assert tracker is not None
    tracker.log({"loss": 2.5, "validation": 0.5}, 10)
    tracker.log({"loss": 1.5, "validation": 0.75}, 20)
    tracker.close()
    assert events(folder) == {"loss": [(10, 2.5), (20, 1.5)], "validation": [(10, 0.5), (20, 0.75)]}


def events(folder):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(folder.rglob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
                found.setdefault(value.tag, []).append((event.step, number))
    return found


@pytest.mark.parametrize(
    ("name", "extra"),
    [("tensorboard", "tracking"), ("mlflow", "mlflow"), ("wandb", "wandb"), ("trackio", "trackio")],
)
def test_a_missing_library_is_told_with_its_install_command(tmp_path, monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(MissingExtra, match=rf"pip install 'tutelage\[{extra}\]'"):
        open_tracker(name, tmp_path / "tracking")
    assert not (tmp_path / "tracking").exists()


def test_a_missing_library_is_told_before_anything_is_done(tmp_path, monkeypatch):
    recipe = tiny.write_recipe(tmp_path, {"tracking": "wandb"})
    monkeypatch.setattr("tutelage.train.trackers._MODULES", {"wandb": "no_such_module"})
    said = tiny.cli("run", recipe, "--run", tmp_path / "run")
    assert said.status == 2 and "pip install 'tutelage[wandb]'" in said.errors[0]
    assert not (tmp_path / "run").exists()


def test_every_extra_that_is_named_exists():
    listed = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    extras = listed["project"]["optional-dependencies"]
    assert {"tracking", "mlflow", "wandb", "trackio"} <= set(extras)
