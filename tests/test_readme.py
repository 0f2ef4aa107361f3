"""What the README shows is what the program does."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny
import yaml
from conftest import Finished

import tutelage
from tutelage.cli.main import app
from tutelage.pipeline.material import read_material
from tutelage.recipe import Recipe

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
WALL = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tutelage", "torch", "onnx"):
            raise ImportError(name + " is walled off")

sys.meta_path.insert(0, Wall())
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)


def test_the_example_runs_the_artifact_with_onnxruntime_and_numpy_alone(
    finished: Finished, tmp_path: Path
) -> None:
    code = next(block for block in blocks("python") if "image.npy" in block)
    shutil.copy(finished.run / "artifacts/student-int8.onnx", tmp_path)
    test = read_material(Recipe.read(finished.recipe)).data.test
    assert test.labels is not None
    right = 0
    for i in range(4):
        np.save(tmp_path / "image.npy", test.pixels[i])
        done = subprocess.run(
            [sys.executable, "-c", WALL + code], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        right += done.stdout.strip() == test.classes[int(test.labels[i])]
    assert right >= 3


def test_the_recipe_is_a_recipe() -> None:
    for block in blocks("yaml"):
        Recipe.parse(yaml.safe_load(block))


def test_the_calls_from_python_fit_their_functions() -> None:
    found = 0
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tutelage."):
                function = getattr(tutelage, ast.unparse(node.func).removeprefix("tutelage."))
                names = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                bound = inspect.signature(function).bind(*node.args, **names)
                assert not bound.arguments.get("parts"), "an argument of no parameter"
                found += 1
    assert found >= 2


def test_the_table_names_every_command_and_no_other() -> None:
    shown = set(re.findall(r"^\| `tutelage (\w+)", TEXT, flags=re.M))
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert shown == known
    for command in shown:
        assert tiny.cli(command, "--help").status == 0


def test_the_exit_codes_are_those_of_the_help() -> None:
    codes = "0 done; 2 the recipe, data or arguments are wrong; 3 no student can meet the budget;"
    assert codes in " ".join(TEXT.split())
    assert codes in str(app.info.epilog)


def test_the_commands_of_the_shell_examples_are_known_with_their_options() -> None:
    lines = re.findall(r"^ +(?:\.venv/bin/)?tutelage (.+?)(?:  +#.*)?$", TEXT, flags=re.M)
    assert len(lines) >= 4
    for line in lines:
        command, *rest = line.split()
        helped = " ".join(tiny.cli(command, "--help").out.split())
        for word in rest:
            if word.startswith("--"):
                assert word in helped, line
