"""What is wrong is told in one line (what, where, what to do) and leaves earlier files whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import Finished
from PIL import Image
from torch import nn

from tutelage.api import export

Job = Callable[..., Path]
NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels=1, broken=False):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)
        self.broken = broken

    def forward(self, x):
        logits = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return logits * float("nan") if self.broken else logits

def good(classes): return Net(classes)
def five(): return Net(5)
def broken(classes): return Net(classes, broken=True)
def colour(classes): return Net(classes, channels=3)
def number(): return 3
def fails(): raise ValueError("no\\nluck")
"""


def refused(said: tiny.Said, status: int, *words: str) -> None:
    """Hold a refusal to its form: one line, no traceback, the right status, what it must name."""
    assert said.status == status, said.err
    assert len(said.errors) == 1, said.err
    assert said.err.rstrip().splitlines()[-1] == said.errors[0]
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.errors[0]


def run(recipe: Path, *options: str) -> tiny.Said:
    return tiny.cli("run", recipe, "--run", recipe.parent / "run", *options)


def save(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    np.savez(folder / "data.npz", x=pixels, y=labels)


def save_folder(folder: Path, sides: tuple[int, ...] = (8,)) -> Path:
    pixels, labels = tiny.images(30)
    for i, label in enumerate(labels):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        side = sides[i % len(sides)]
        Image.fromarray(pixels[i, :, :, 0]).resize((side, 8)).save(place / f"{i}.png")
    return folder


X, Y = tiny.images()
ARRAYS: list[tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]] = [
    ("one class", X, 0 * Y, ("data.npz:x", "one class only")),
    ("negative label", X, Y - 1, ("label -1 of example 0", "out of range")),
    ("huge label", X, Y * 70_000, ("label 140000 of example 2", "out of range")),
    ("label gap", X, Y * 2, ("no example of class '1'",)),
    ("label count", X, Y[:-1], ("data.npz",)),
    ("fractions", X, Y + 0.5, ("labels of type float64",)),
    ("three examples", X[:3], Y[:3], ("1 images of class '0' where 3 are needed",)),
    ("no examples", X[:0], Y[:0], ("data.npz",)),
    ("no image", X[:, 0, 0, 0], Y, ("are not images",)),
    ("no pixel", X[:, :0], Y, ("are not images",)),
    ("off scale", X * 300.0, Y, ("neither 0..1 nor 0..255",)),
    ("one grey pixel", X[:, :1, :1], Y, ("test images", "also training images")),
]


@pytest.mark.parametrize(("pixels", "labels", "words"), [a[1:] for a in ARRAYS],
                         ids=[a[0] for a in ARRAYS])  # fmt: skip
def test_data_that_cannot_be_learned_from(
    job: Job, pixels: np.ndarray, labels: np.ndarray, words: tuple[str, ...]
) -> None:
    recipe = job()
    save(recipe.parent, pixels, labels)
    refused(run(recipe), 2, *words)


def test_paths_and_files_that_hold_no_data(job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("not an archive")
    broken = save_folder(tmp_path / "broken") / "class0/0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    save_folder(tmp_path / "mixed", sides=(8, 9))
    for name, words in {
        "missing.npz": ("does not exist", "correct the path"),
        "empty": ("is an empty folder",),
        "text.npz": ("is not a readable .npz",),
        "broken": ("class0/0.png", "cannot be read", "replace or remove"),
        "mixed": ("differ in size", "data.size"),
    }.items():
        refused(run(job({"data": {"train": name}})), 2, name, *words)


def test_a_labels_file_that_would_not_be_read_is_refused(job: Job) -> None:
    said = run(job({"data": {"train": "data.npz", "labels": "labels.idx"}}))
    refused(said, 2, "data.npz is no IDX file", "labels.idx", "remove")


def test_a_folder_of_images_works(job: Job, tmp_path: Path) -> None:
    save_folder(tmp_path / "photos")
    said = run(job({"data": {"train": "photos", "validation": 0.2}}))
    assert said.status == 0, said.err


def test_train_and_test_must_not_overlap(job: Job) -> None:
    said = run(job({"data": {"train": "data.npz", "test": "data.npz"}}))
    refused(said, 2, "300 of 300 test images", "remove the duplicates")


SHAPES = {
    "coloured pixel": {"shape": (1, 1, 3), "count": 90},
    "two classes": {"classes": 2},
    "300 classes": {"classes": 300, "count": 1_200, "shape": (8, 8, 1)},
    "not square": {"shape": (6, 20, 1), "count": 90},
    "colour": {"shape": (8, 8, 3), "count": 90},
    "nine examples": {"count": 9},
}


@pytest.mark.parametrize("options", list(SHAPES.values()), ids=list(SHAPES))
def test_unusual_data_works_from_end_to_end(
    tmp_path: Path, quick: None, options: dict[str, Any]
) -> None:
    tiny.write_data(tmp_path / "data.npz", **options)
    changes = {
        "teacher": {"fit": True, "epochs": 1, "width": 8},
        "distill": {"epochs": 1, "batch": 64},
    }
    said = run(tiny.write_recipe(tmp_path, changes))
    assert said.status == 0, said.err


TEACHERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "five": ({}, ("5 classes", "the data has 3")),
    "broken": ({}, ("says NaN", "normalisation")),
    "colour": ({}, ("3 channels", "teacher.channels: repeat")),
    "number": ({}, ("net.py:number", "nn.Module")),
    "fails": ({}, ("net.py, line 21", "ValueError: no")),
    "goood": ({}, ("no function 'goood'", "Did you mean 'good'")),
    "good": ({"weights": "net.safetensors"}, ("net.safetensors", "does not exist")),
    "good ": ({"mean": [0.5, 0.5], "std": [0.2, 0.2]}, ("teacher.mean has 2 values",)),
    "good  ": ({"taps": ["body"]}, ("no tap 'body'",)),
}


@pytest.mark.parametrize("name", list(TEACHERS))
def test_teachers_that_cannot_teach(job: Job, tmp_path: Path, name: str) -> None:
    options, words = TEACHERS[name]
    (tmp_path / "net.py").write_text(NETWORKS)
    recipe = job({"teacher": {"source": f"net.py:{name.strip()}", **options}})
    refused(run(recipe, "--trust-code"), 2, *words)


def test_code_runs_only_when_it_is_trusted(job: Job, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("open('ran', 'w')" + NETWORKS)
    for part in ("teacher", "student"):
        recipe = job({part: {"source": "net.py:good"}})
        refused(run(recipe), 2, f"the {part} 'net.py:good'", "--trust-code")
    assert not (Path.cwd() / "ran").exists()


def test_ones_own_student_works_and_a_wrong_one_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORKS)
    said = run(job({"student": {"source": "net.py:good"}}), "--trust-code")
    assert said.status == 0, said.err
    said = run(job({"student": {"source": "net.py:five"}}), "--trust-code")
    refused(said, 2, "5 classes")


@pytest.fixture(scope="module")
def onnx_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    return export(
        network, tmp_path_factory.mktemp("teacher") / "teacher.onnx", shape=(1, 8, 8),
        classes=("a", "b", "c"), mean=(0.0,), std=(1.0,),
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["features", "trajectory", "attention", "rkd", "cka", "srd"])
def test_an_onnx_teacher_has_no_taps(job: Job, onnx_teacher: Path, loss: str) -> None:
    recipe = job({"teacher": {"source": str(onnx_teacher)}, "distill": {"losses": {loss: 1.0}}})
    refused(run(recipe), 2, "distill.losses", loss, "decisions only", "kl, dkd or dist")


def test_an_onnx_teacher_teaches_by_its_decisions(job: Job, onnx_teacher: Path) -> None:
    # Untrained, so it might as well be permuted: the data's own order says that it is not.
    source = {"source": str(onnx_teacher), "classes": ["0", "1", "2"]}
    teacher = {"teacher": source, "export": {"precision": "float32"}}
    said = run(job({**teacher, "distill": {"epochs": 1, "batch": 32}}))
    assert said.status == 0, said.err
    refused(run(job({**teacher, "distill": {"pairs": [["a", "b"]]}})), 2, "distill.pairs")


RECIPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "device": ({"device": "nucleo-l4r6"}, ("unknown device", "nucleo-l4r5")),
    "limit 0": ({"budget": {"storage": 0}}, ("storage", "positive")),
    "limit 0 kB": ({"budget": {"storage": "0 kB"}}, ("storage", "positive")),
    "limit nan": ({"budget": {"storage": float("nan")}}, ("storage", "nan")),
    "limit 'nan kB'": ({"budget": {"memory": "nan kB"}}, ("memory",)),
    "limit -1": ({"budget": {"latency": "-1 ms"}}, ("latency",)),
    "accuracy 0": ({"budget": {"accuracy": 0}}, ("accuracy", "between 0 and 1")),
    "wrong unit": ({"budget": {"energy": "5 kB"}}, ("energy", "not in J")),
    "no part": ({"budget": "100 kB"}, ("budget: wants keys of its own below it",)),
    "no number": ({"seed": "abc"}, ("seed: should be a valid integer (given: 'abc')",)),
    "key": ({"distil": {}}, ("unknown key 'distil'", "'distill'")),
    "inner key": ({"distill": {"epoch": 2}}, ("unknown key 'distill.epoch'", "'epochs'")),
    "task": ({"task": "visoin"}, ("visoin", "vision")),
    "loss": ({"distill": {"losses": {"kll": 1}}}, ("distill.losses", "'kll'", "'kl'")),
    "option": (
        {"distill": {"losses": {"kl": {"temprature": 2}}}},
        ("distill.losses", "'temprature'", "'temperature'"),
    ),
    "value": ({"distill": {"losses": {"kl": {"temperature": 0}}}}, ("temperature", "0")),
    "no loss": ({"distill": {"losses": {}}}, ("losses",)),
    "no weight": ({"distill": {"losses": {"kl": 0}}}, ("distill.losses", "weight")),
    "bad weight": ({"distill": {"losses": {"kl": -1}}}, ("distill.losses.kl",)),
    "student tap": (
        {"distill": {"losses": {"features": 1}, "pairs": [["stages.9", "stages.0"]]}},
        ("distill.pairs", "student has no tap 'stages.9'"),
    ),
    "teacher tap": (
        {"distill": {"losses": {"features": 1}, "pairs": [["stages.0", "nowhere"]]}},
        ("distill.pairs", "teacher has no tap 'nowhere'"),
    ),
    "own tap": ({"student": {**tiny.SMALL, "taps": ["body"]}}, ("no tap 'body'",)),
    "family": ({"student": {"spec": {"family": "resnet"}}}, ("resnet", "convnet")),
    "knob": ({"student": {"spec": {**tiny.SMALL["spec"], "kernal": 3}}}, ("'kernal'", "'kernel'")),
    "block": ({"student": {"spec": {**tiny.SMALL["spec"], "block": "odd"}}}, ("odd",)),
    "image": ({"student": {"spec": {**tiny.SMALL["spec"], "image": [1, 9, 9]}}}, ("[1, 9, 9]",)),
    "classes": ({"student": {"spec": {**tiny.SMALL["spec"], "classes": 5}}}, ("classes is 5",)),
    "threads": ({"threads": 0}, ("threads",)),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_that_cannot_be(job: Job, name: str) -> None:
    changes, words = RECIPES[name]
    refused(run(job(changes)), 2, *words)


def test_losses_and_a_fixed_student_are_refused_before_a_teacher_is_trained(
    tmp_path: Path,
) -> None:
    tiny.write_data(tmp_path / "data.npz")
    for name in ("loss", "option", "no weight", "family", "knob", "classes"):
        said = run(tiny.write_recipe(tmp_path, RECIPES[name][0]))
        refused(said, 2, RECIPES[name][1][0])
        assert "Training" not in said.err
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize("own", [False, True])
def test_a_given_student_that_cannot_fit_is_refused_before_a_teacher_is_trained(
    tmp_path: Path, own: bool
) -> None:
    tiny.write_data(tmp_path / "data.npz")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    student = {"student": {"source": "net.py:build"}} if own else {}
    recipe = tiny.write_recipe(tmp_path, {"budget": {"storage": "100 B"}, **student})
    said = tiny.cli("run", recipe, "--run", tmp_path / "run", *(["--trust-code"] if own else []))
    refused(said, 3, "the given student does not fit", "storage")
    assert "Training" not in said.err


def test_earlier_files_stay_whole(job: Job, finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    kept = ("student", "artifacts", "signals", "teacher", "checkpoints", "proof.json", "plan.json",
            "report.html", "recipe.yaml")  # fmt: skip
    before = tiny.hashes(tmp_path / "run", *kept)
    bad = [changes for changes, _ in RECIPES.values()]
    bad += [{"data": {"train": "missing.npz"}}, {"teacher": {"source": "missing.onnx"}}]
    for changes in bad[::2]:
        said = run(tiny.write_recipe(tmp_path, changes))
        assert said.status == 2
    assert tiny.hashes(tmp_path / "run", *kept) == before
    shutil.copy(finished.folder / "data.npz", tmp_path)
    said = run(tiny.write_recipe(tmp_path))
    assert said.status == 0, said.err
    assert "Teaching" not in said.err, "what was done before is still done"
    assert tiny.hashes(tmp_path / "run", *kept[:5]) == tiny.hashes(finished.run, *kept[:5])
