"""The command line: its help, its answers as JSON, its exit codes, and first recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from conftest import Finished
from PIL import Image
from torch import nn

from tutelage import __version__
from tutelage.api import export
from tutelage.cli import stages
from tutelage.cli.tables import show_plan, show_result
from tutelage.devices import list_devices
from tutelage.pipeline.result import Result
from tutelage.recipe import Recipe

COMMANDS = ("demo", "init", "plan", "run", "report", "devices", "schema", "probe")
RUN_KEYS = {"status", "run", "task", "teacher", "student", "budget", "artifacts", "seconds"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    said = tiny.cli(command, "--help")
    assert said.status == 0
    text = " ".join(said.out.split())
    assert "Example" in text
    assert f"tutelage {command}" in text.partition("Example")[2]


def test_help_lists_every_command_and_the_exit_codes() -> None:
    for said in (tiny.cli("--help"), tiny.cli()):
        assert said.status == 0
        assert all(command in said.out for command in COMMANDS)
        text = " ".join(said.out.replace("│", " ").split())
        for code in ("0 done", "2 the recipe", "3 no student", "4 the artifact", "5 a stored file",
                     "130 interrupted"):  # fmt: skip
            assert code in text


def test_version() -> None:
    said = tiny.cli("--version")
    assert (said.status, said.out) == (0, f"tutelage {__version__}\n")


WRONG = {
    "no recipe given": (["run"], "recipe"),
    "unknown command": (["distil"], "distil"),
    "unknown option": (["run", "recipe.yaml", "--quick"], "--quick"),
    "no number": (["demo", "--seed", "x"], "seed"),
    "no recipe there": (["run", "missing.yaml"], "missing.yaml"),
    "no run there": (["report", "missing"], "missing"),
    "no such device": (["devices", "nucleo"], "nucleo"),
    "no such teacher": (["init", "missing.onnx", "digits", "--out", "x.yaml"], "missing.onnx"),
    "no such data": (["init", "fit", "missing", "--out", "x.yaml"], "missing"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_arguments_are_one_line_and_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, word = WRONG[name]
    said = tiny.cli(*arguments)
    assert said.status == 2
    assert len(said.errors) == 1, said.err
    assert len(said.err.splitlines()) == 1
    assert word in said.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    said = tiny.cli("--debug", "run", tmp_path / "missing.yaml")
    assert said.status == 2
    assert "Traceback" in said.err
    assert "Traceback" not in tiny.cli("run", tmp_path / "missing.yaml").err


def test_an_error_is_printed_as_it_is(tmp_path: Path) -> None:
    # rich would make an emoji of :x:, style of [bold], and several lines of a long one
    folder = tmp_path / "[bold]" / ("long " * 30)
    folder.mkdir(parents=True)
    np.savez(folder / "data.npz", x=np.zeros((9, 8, 8), np.uint8), y=-np.ones(9, np.int64))
    said = tiny.cli("run", tiny.write_recipe(folder), "--run", tmp_path / "run")
    assert len(said.err.splitlines()) == 1
    assert "/[bold]/" in said.err
    assert "long /data.npz:x: label -1 of example 0" in said.err


def check_shape(answer: dict[str, Any]) -> None:
    assert answer.keys() >= RUN_KEYS
    for who in ("teacher", "student"):
        assert answer[who].keys() >= {"metric", "value"}
    assert answer["budget"]
    for row in answer["budget"]:
        assert row.keys() >= {"metric", "limit", "value", "kind", "met"}
        assert row["kind"] in ("measured", "predicted", "estimated")
    for row in answer["artifacts"]:
        assert row.keys() >= {"path", "runtime", "precision", "bytes", "sha256"}


def test_run_answers_in_json_on_one_line(finished: Finished) -> None:
    answer = finished.said.answer
    check_shape(answer)
    assert len(finished.said.out.splitlines()) == 1, "progress goes to stderr"
    assert answer["run"] == str(finished.run)
    assert {row["precision"] for row in answer["artifacts"]} == {"float32", "int8"}
    assert answer["seconds"] > 0


@pytest.mark.parametrize(
    ("limit", "status", "code"), [("100 kB", "feasible", 0), ("1 kB", "infeasible", 3)]
)
def test_plan_answers_in_the_same_shape(
    finished: Finished, limit: str, status: str, code: int
) -> None:
    folder = finished.folder
    recipe = folder / "plan.yaml"
    recipe.write_text(yaml.safe_dump(tiny.recipe({"budget": {"storage": limit}})))
    said = tiny.cli("plan", recipe, "--json")
    check_shape(said.answer)
    assert said.answer["status"] == status
    assert [c["fits"] for c in said.answer["candidates"]] == [status == "feasible"]
    assert not (folder / "runs").exists(), "nothing is written"
    assert said.status == code
    said = tiny.cli("plan", recipe)
    assert said.status == code
    assert status in said.out
    assert len(said.errors) == (code > 0), "what is missed, and what would do, in one line"
    assert all("storage is limited to 1 kB and '" in line for line in said.errors)
    assert all("raise the limit to budget: {storage: " in line for line in said.errors)


def test_demo_runs_the_embedded_recipe(
    monkeypatch: pytest.MonkeyPatch, finished: Finished, tmp_path: Path
) -> None:
    seen: list[Recipe] = []

    def instead(recipe: Recipe, folder: Path, **options: Any) -> Result:
        seen.append(recipe)
        assert folder == tmp_path / "demo"
        proof = json.loads((finished.run / "proof.json").read_text())
        return Result(run=folder, proof=proof, seconds=1.0, student=nn.Identity())

    monkeypatch.setattr("tutelage.pipeline.run_recipe", instead)
    said = tiny.cli("demo", "--run", tmp_path / "demo", "--seed", "3", "--json")
    assert said.status == 0
    check_shape(said.answer)
    assert (seen[0].data.train, seen[0].device, seen[0].seed) == ("digits", "nucleo-l4r5", 3)
    assert {limit.metric for limit in seen[0].budget.limits()} == {
        "ram_bytes", "storage_bytes", "energy_j",
    }  # fmt: skip


def test_results_and_plans_are_shown_as_tables(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = finished.said.answer
    show_result(answer)
    shown = capsys.readouterr().out
    assert "nucleo-l4r5: met" in shown
    assert "storage" in shown
    assert f"{answer['run']}/report.html" in shown.replace("\n", "")
    show_plan(tiny.cli("plan", finished.recipe, "--json").answer)
    assert "figures are predicted" in capsys.readouterr().out


def photos(folder: Path) -> Path:
    pixels, labels = tiny.images(30)
    for i, label in enumerate(labels):
        place = folder / f"class: {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i, :, :, 0]).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize("data", ["digits", "npz", "folder"])
@pytest.mark.parametrize("teacher", ["fit", "onnx", "spec"])
def test_init_writes_a_recipe_that_plan_accepts(
    finished: Finished, tmp_path: Path, teacher: str, data: str
) -> None:
    if data == "digits" and teacher == "spec":
        pytest.skip("that teacher decides among three classes")
    source = {"digits": "digits", "npz": str(finished.folder / "data.npz")}.get(data)
    source = source or str(photos(tmp_path / "my photos"))
    taught: str | Path = {"fit": "fit", "spec": finished.run / "teacher"}.get(teacher, "")
    if teacher == "onnx":
        classes = 10 if data == "digits" else 3
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
        taught = export(
            network, tmp_path / "teacher.onnx", shape=(1, 8, 8), mean=(0.0,), std=(1.0,),
            classes=tuple(map(str, range(classes))),
        )  # fmt: skip
    out = tmp_path / "sub" / "recipe.yaml"
    said = tiny.cli("init", taught, source, "--out", out, "--device", "nucleo-l4r5")
    assert said.status == 0, said.err
    assert f"tutelage run {out}" in said.out
    recipe = Recipe.read(out)
    assert recipe.device == "nucleo-l4r5"
    assert recipe.teacher.fit == (teacher == "fit")
    if (teacher, data) in (("fit", "folder"), ("onnx", "npz"), ("spec", "npz")):
        out.write_text(out.read_text().replace("candidates: 4", "spec: " + json.dumps(SPEC)))
        said = tiny.cli("plan", out, "--json")
        assert said.status == 0, said.err
        assert said.answer["status"] == "feasible"


SPEC = {"family": "convnet", "widths": [4, 8], "depths": [1, 1]}


def test_init_does_not_overwrite(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    out.write_text("mine")
    said = tiny.cli("init", "fit", "digits", "--out", out)
    assert said.status == 2
    assert "--force" in said.errors[0]
    assert out.read_text() == "mine"
    assert tiny.cli("init", "fit", "digits", "--out", out, "--force").status == 0
    assert Recipe.read(out).data.train == "digits"


def test_init_says_what_it_saw_in_words_of_the_recipe(tmp_path: Path) -> None:
    pixels, labels = tiny.images(30)
    rows = [",".join(f"pixel{i}" for i in range(64)) + ",kind"]
    rows += [
        ",".join(map(str, x.ravel())) + f",shape {y}" for x, y in zip(pixels, labels, strict=True)
    ]
    (tmp_path / "shapes.csv").write_text("\n".join(rows))
    given = ("init", "fit", tmp_path / "shapes.csv", "--device", "nucleo-l4r5")
    out = tmp_path / "recipe.yaml"
    said = tiny.cli(*given, "--out", out)
    assert said.status == 2 and "--label-column" in said.errors[0]
    assert tiny.cli(*given, "--out", out, "--label-column", "kind").status == 0
    text = out.read_text()
    assert "# 30 examples (21 train, 3 validation, 6 test) of 8 x 8 x 1 pixels, 3 classes" in text
    assert "the device's own limits: memory 608 kB and storage 1.87 MB" in text
    assert Recipe.read(out).data.label_column == "kind"


def test_small_margins_and_shares_are_legible(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"metric": "accuracy", "hard": False, "limit": 0.99, "value": 0.9857, "margin": -0.0043}
    figure = {"metric": "accuracy", "value": 0.93}
    answer = {
        "device": "board", "status": "met", "student": figure, "teacher": figure, "run": "run",
        "budget": [{**row, "kind": "measured", "met": False}], "chosen": "a.onnx", "seconds": 1.0,
        "artifacts": [{"path": "a.onnx", "precision": "int8", "bytes": 1_000}],
    }  # fmt: skip
    show_result(answer)
    shown = capsys.readouterr().out
    assert "99.00%" in shown and "98.57%" in shown and "-0.4%" in shown


def test_no_name_of_a_device_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = tiny.cli("devices").out
    assert all(name in shown for name in list_devices()) and "…" not in shown


def test_devices_are_listed_and_shown_with_their_sources() -> None:
    listed = tiny.cli("devices", "--json").answer["devices"]
    assert len(listed) >= 8
    assert "nucleo-l4r5" in tiny.cli("devices").out
    for row in listed[:4]:
        shown = tiny.cli("devices", row["name"])
        assert shown.status == 0
        assert "source" in shown.out
        assert tiny.cli("devices", row["name"], "--json").answer["name"] == row["name"]


def test_schema_is_json_and_knows_the_parts() -> None:
    said = tiny.cli("schema")
    schema = json.loads(said.out)
    assert schema["properties"].keys() == Recipe.model_fields.keys()


def test_report_is_built_again(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    (run / "report.html").unlink()
    said = tiny.cli("report", run)
    assert said.status == 0
    assert said.out.strip() == str(run / "report.html")
    assert (run / "report.html").stat().st_size > 1_000
    (run / "proof.json").write_text("{")
    said = tiny.cli("report", run)
    assert said.status == 5
    assert "proof.json" in said.errors[0]


@pytest.mark.parametrize(
    ("raised", "status", "word"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "not enough memory"),
        (OSError(28, "No space left on device", "/some/file"), 2, "/some/file: No space left"),
    ],
)
def test_what_stops_a_run_from_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: BaseException, status: int, word: str
) -> None:
    def stop(*args: Any, **options: Any) -> int:
        raise raised

    monkeypatch.setattr(stages, "_run", stop)
    said = tiny.cli("demo", "--run", tmp_path)
    assert said.status == status
    assert word in said.err
    assert len(said.err.splitlines()) == 1
