"""What `import tutelage` offers, and what is said when an optional library is missing."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tutelage
from tutelage import errors
from tutelage.errors import MissingExtra, TutelageError

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


@pytest.mark.parametrize("name", tutelage.__all__)
def test_every_public_name_is_there_and_documented(name):
    thing = getattr(tutelage, name)
    assert callable(thing) and (inspect.getdoc(thing) or "").strip()


def test_public_names_are_listed_once_and_no_other_is_offered():
    assert len(set(tutelage.__all__)) == len(tutelage.__all__) <= 12
    assert dir(tutelage) == sorted(tutelage.__all__)
    space: dict[str, object] = {}
    exec("from tutelage import *", space)  # what a user may type at a prompt
    assert set(tutelage.__all__) == space.keys() - {"__builtins__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        tutelage.distil  # noqa: B018


@pytest.mark.parametrize("before", ["", "import tutelage.api, tutelage.cli.main"])
def test_names_that_are_subpackages_too_can_be_called_whatever_was_imported(before):
    code = f"{before}\nimport tutelage\n" + "\n".join(
        f"assert callable(tutelage.{name}), '{name}'" for name in tutelage.__all__
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_function_has_types():
    from tutelage import api

    for name in api.__all__:
        signature = inspect.signature(getattr(api, name))
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(
            p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()
        )


def all_errors() -> list[type[TutelageError]]:
    found = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, Exception)]
    assert len(found) > 10
    return found


def test_every_error_has_a_meaning_and_an_exit_code():
    for error in all_errors():
        assert issubclass(error, TutelageError) and inspect.getdoc(error)
        assert error.exit_code in (2, 3, 4, 5)
    assert errors.InfeasibleError.exit_code == 3
    assert errors.BudgetMissedError.exit_code == 4
    assert errors.CorruptFileError.exit_code == 5


def timm():
    from tutelage.teach.teachers import load_teacher

    load_teacher("timm:resnet18", classes=3, image_shape=(3, 32, 32))


def torchvision():
    from tutelage.teach.teachers import load_teacher

    load_teacher("torchvision:resnet18", classes=3, image_shape=(3, 32, 32))


def parquet(tmp_path):
    from tutelage.tasks.vision.reading import read_splits

    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    read_splits(tmp_path / "x.parquet")


def energy():
    from tutelage.measure.energy import _nvml_counter

    _nvml_counter()


def gguf(tmp_path):
    from gguf_samples import byte_level, config_of, network

    from tutelage.export.gguf import write_gguf

    model = network()
    tokenizer = byte_level(tmp_path / "tokenizer")
    write_gguf(
        tmp_path / "x.gguf", config_of(model), model.state_dict(), tokenizer, quantization="f16"
    )


def tracker(name):
    def call(tmp_path):
        from tutelage.train.trackers import open_tracker

        open_tracker(name, tmp_path)

    return call


# What asks for the library, the module that is missing, the project on the index that has it.
OPTIONAL = {
    "timm": (timm, "timm", "timm"),
    "torchvision": (torchvision, "torchvision", "torchvision"),
    "parquet": (parquet, "pyarrow", "pyarrow"),
    "energy": (energy, "pynvml", "nvidia-ml-py"),
    "gguf": (gguf, "gguf", "gguf"),
    "tensorboard": (tracker("tensorboard"), "tensorboard", "tensorboard"),
    "mlflow": (tracker("mlflow"), "mlflow", "mlflow"),
    "wandb": (tracker("wandb"), "wandb", "wandb"),
    "trackio": (tracker("trackio"), "trackio", "trackio"),
}


@pytest.mark.parametrize("case", OPTIONAL)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(case, tmp_path, monkeypatch):
    call, module, project = OPTIONAL[case]
    monkeypatch.setitem(sys.modules, module, None)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else real(name)
    )
    with pytest.raises(MissingExtra) as caught:
        call(tmp_path) if inspect.signature(call).parameters else call()
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    found = re.search(r"pip install 'tutelage\[([a-z]+)\]'$", message)
    assert found, message
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = [re.split(r"[<>=!~ ]", line)[0] for line in extras[found[1]]]
    assert project in wanted, f"installing {found[1]} would not bring {project}"
