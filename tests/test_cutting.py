"""The slice of a step: fitted to what it was cut from, kept where that helps, once a run."""

# pyright: reportArgumentType=false

from __future__ import annotations

import shutil

import pytest
import test_language_run
import tiny

from tutelage.files import read_json
from tutelage.pipeline.language import cutting, teaching

pytest.importorskip("gguf")
pytest.importorskip("torch"), pytest.importorskip("transformers")

FEW = {"tokens": 600, "answer": 4}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The lesson is interrupted after the slice was fitted, and the run goes on."""
    folder = tmp_path_factory.mktemp("cutting")
    path = test_language_run.write_job(folder, language=FEW)
    fits = cutting.refit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "Trainer", interrupted)
        assert tiny.cli("run", path, "--run", folder / "run").status == 130
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "refit", lambda *a, **k: counted.append(1) or fits(*a, **k))
        said = tiny.cli("run", path, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said, counted


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_slice_is_fitted_once_and_is_nearer_then(done):
    folder, said, counted = done
    stages = read_json(folder / "run" / "run.json")["stages"]
    first, last = stages["cut-1"]["result"]["kl"]
    steps = [name for name in stages if name.startswith("cut-")]
    assert len(counted) == len(steps) - 1 and last < first
    assert f"({first:.3f} nats a token away before, {last:.3f} after)" in said.err
    page = (folder / "run" / "report.html").read_text()
    assert "started with a slice fitted by least squares on" in page


def test_a_fit_that_is_no_nearer_is_dropped(done, tmp_path, monkeypatch):
    def spoil(small, *_, **__):
        for parameter in small.parameters():
            parameter.data.mul_(3.0)

    monkeypatch.setattr(cutting, "refit", spoil)
    path = test_language_run.write_job(tmp_path, language=FEW)
    said = tiny.cli("run", path, "--run", tmp_path / "run")
    assert said.status == 0, said.err
    first, last = read_json(tmp_path / "run/run.json")["stages"]["cut-1"]["result"]["kl"]
    assert last > first and f"away, not {first:.3f}" in said.err


def test_it_can_be_left_out(done, tmp_path):
    path = test_language_run.write_job(tmp_path, language={**FEW, "refit": False})
    shutil.copytree(done[0] / "run" / "signals", tmp_path / "run" / "signals")
    assert tiny.cli("run", path, "--run", tmp_path / "run").status == 0
    stages = read_json(tmp_path / "run" / "run.json")["stages"]
    assert not {"cut-1", "fitting-texts"} & set(stages)
    assert "started with" not in (tmp_path / "run" / "report.html").read_text()
