"""Whole runs without labels, with an agreement in place of an accuracy, and with few labels."""

import dataclasses
import json
import re

import conftest
import numpy as np
import pytest
import tiny
import torch
import yaml
from torch import nn

import tutelage
from tutelage.errors import TutelageError
from tutelage.export.artifact import read_meta
from tutelage.pipeline import fitting
from tutelage.pipeline.class_names import with_classes
from tutelage.pipeline.material import read_material
from tutelage.recipe import Recipe
from tutelage.students import spec as students

NAMES = ("low", "middle", "high")


@pytest.fixture(scope="module")
def named(finished, tmp_path_factory):
    """A folder with images without labels, and an ONNX teacher that names its classes."""
    folder = tmp_path_factory.mktemp("named")
    np.savez(folder / "data.npz", x=tiny.images(200)[0])
    own = read_material(Recipe.read(finished.recipe)).normalisation
    teacher = tutelage.load(finished.run / "teacher")
    tutelage.export(
        teacher,
        folder / "teacher.onnx",
        shape=(1, 8, 8),
        classes=NAMES,
        mean=own.mean,
        std=own.std,
    )
    return folder


def recipe(folder, **changes):
    given = {
        "teacher": {"source": "teacher.onnx"}, "distill": {"epochs": 6, "batch": 32}, **changes
    }  # fmt: skip
    return tiny.write_recipe(folder, given)


def error_of(path, folder):
    said = tiny.cli("run", path, "--run", folder / "refused")
    assert said.status == 2 and len(said.errors) == 1
    return said.errors[0]


@pytest.fixture(scope="module")
def unlabelled(named, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tutelage.pipeline.proving.measure_memory", conftest._no_memory)
        student = {"candidates": 2}
        said = tiny.cli("run", recipe(named, student=student), "--run", named / "run", "--json")
    assert said.status == 0, said.err
    return named / "run", said


def test_without_labels_every_figure_is_agreement(unlabelled):
    run, said = unlabelled
    answer = said.answer
    assert answer["student"]["metric"] == "agreement"
    low, high = answer["student"]["spread"]
    assert 0.6 < low < answer["student"]["value"] <= high <= 1 and answer["student"]["n"] == 40
    assert answer["teacher"] == {"metric": "agreement", "value": None}
    assert "has no labels" in said.err
    proof = json.loads((run / "proof.json").read_text())
    names = {f["name"] for who in ("teacher", "student") for f in proof["figures"][who]}
    assert {"agreement_test", "agreement_validation"} <= names
    assert not any("accuracy" in n or "f1" in n for n in names)
    same = next(f for f in proof["fidelity"] if f["name"] == "agreement")
    assert same["value"] == answer["student"]["value"] and proof["classes"] == []
    plan = json.loads((run / "plan.json").read_text())
    assert {c["trial"]["name"] for c in plan["candidates"]} == {"agreement_validation"}
    assert read_meta(run / answer["chosen"]).classes == NAMES


def test_the_report_speaks_of_agreement_alone(unlabelled):
    html = (unlabelled[0] / "report.html").read_text()
    words = re.sub(r"<(style|script)\b.*?</\1>", "", html, flags=re.S)
    words = re.sub(r"<pre\b.*?</pre>", "", words, flags=re.S)
    assert "Validation agreement" in words and "decides as its teacher on" in words
    assert "Agreement in trial" in words
    assert not re.search("accuracy", words, re.I), re.findall(".{60}ccuracy.{40}", words)[:3]


def test_the_table_in_the_terminal_says_agreement(unlabelled, named, quick):
    said = tiny.cli("run", named / "recipe.yaml", "--run", unlabelled[0])
    assert "test agreement with the teacher" in said.out and "accuracy" not in said.out


def test_what_needs_labels_is_refused_in_one_line(named, tmp_path):
    assert "teacher.fit learns from labels" in error_of(
        recipe(named, teacher={"fit": True}), tmp_path
    )
    losses = {"losses": {"cross_entropy": 1.0}}
    assert "reads labels, but the data has none" in error_of(
        recipe(named, distill=losses), tmp_path
    )
    assert "budget.accuracy cannot be judged" in error_of(
        recipe(named, budget={"accuracy": "90 %"}), tmp_path
    )
    two = {"source": "teacher.onnx", "classes": ["a", "b"]}
    assert "decides among 3 classes" in error_of(recipe(named, teacher=two), tmp_path)
    twice = {"source": "teacher.onnx", "classes": ["a", "b", "a"]}
    assert "name 'a' twice" in error_of(recipe(named, teacher=twice), tmp_path)


def test_classes_are_the_recipes_else_the_teachers_else_numbers(named, finished):
    def classes(**teacher):
        made = Recipe.read(recipe(named, teacher=teacher))
        return with_classes(made, read_material(made), trust_code=False).classes

    assert classes(source="teacher.onnx") == NAMES
    assert classes(source="teacher.onnx", classes=["x", "y", "z"]) == ("x", "y", "z")
    assert classes(source=str(finished.run / "teacher")) == ("0", "1", "2")
    (named / "net.py").write_text("def build(classes):\n    raise SystemExit\n")
    made = Recipe.read(recipe(named, teacher={"source": "net.py:build"}))
    with pytest.raises(TutelageError, match="name them in teacher.classes"):
        with_classes(made, read_material(made), trust_code=True)


def test_distill_and_fit_take_none_for_labels(finished, quick, tmp_path):
    teacher, (images, _) = tutelage.load(finished.run / "teacher"), tiny.images(200)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    taught = tutelage.distill(teacher, student, (images, None), epochs=3, threads=1)
    assert taught.validation.name == "agreement_validation" and taught.validation.n == 16
    result = tutelage.fit(
        teacher, (images, None), device="nucleo-l4r5", run=tmp_path / "run", student=tiny.SMALL,
        distill={"epochs": 2}, threads=1,
    )  # fmt: skip
    assert result.figure("student", "agreement_test").n == 40


# --- few labels --------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    """Write 5 % of the digits with labels, a quarter without; a test file stays apart."""
    from sklearn.datasets import load_digits

    x, y = load_digits().images.astype(np.float32) / 16, load_digits().target
    few = np.concatenate([np.flatnonzero(y == c)[:9] for c in range(10)])
    others = np.setdiff1d(np.arange(len(x)), few)
    np.savez(tmp_path / "few.npz", x=x[few], y=y[few])
    np.savez(tmp_path / "more.npz", x=x[others[:450]])
    np.savez(tmp_path / "test.npz", x=x[others[-300:]], y=y[others[-300:]])
    return tmp_path


def of_digits(folder, **data):
    places = {"train": str(folder / "few.npz"), "test": str(folder / "test.npz"), **data}
    return Recipe.parse({
        "data": {"validation": 0.2, **places}, "teacher": {"fit": True, "epochs": 12, "width": 8},
        "budget": {"storage": "30 kB"}, "augment": {"views": 2}, "threads": 1,
        "student": {"spec": {"family": "convnet", "widths": [6, 12], "depths": [1, 1]}},
        "distill": {"epochs": 20, "batch": 32},
    })  # fmt: skip


def test_few_labels_and_many_images_without(digits, quick, monkeypatch):
    seen = []

    class Spied(fitting.Distillation):
        def loss(self, batch):
            seen.append(batch[0])
            return super().loss(batch)

    monkeypatch.setattr(fitting, "Distillation", Spied)
    made = of_digits(digits, unlabelled=str(digits / "more.npz"))
    material = read_material(made)
    labels = material.data.train.labels
    assert (labels == -1).sum() == 450 and material.labelled.count == (labels >= 0).sum() == 70
    result = tutelage.pipeline.run_recipe(made, digits / "run")
    assert seen and all((batch.labels >= 0).all() for batch in seen)  # the teacher's lessons
    assert max(int(batch.index.max()) for batch in seen) < 70
    run = json.loads((digits / "run" / "run.json").read_text())
    assert run["stages"]["data"]["result"]["counts"]["train"] == 520
    assert "450 unlabelled" in " ".join(run["stages"]["data"]["result"]["notes"])
    assert result.figure("student", "accuracy_test").n == 300
    assert result.figure("student", "accuracy_test").value > 0.4  # guessing is 0.1


def test_keys_follow_the_unlabelled_content_and_only_that(digits):
    def contents(**data):
        material = read_material(of_digits(digits, **data))
        splits = (material.train, material.labelled, material.validation, material.test)
        return [split.content for split in splits]

    alone = contents()
    assert alone == contents()
    assert alone[0] == alone[1]
    more = contents(unlabelled=str(digits / "more.npz"))
    assert more == contents(unlabelled=str(digits / "more.npz"))
    assert more[0] not in (alone[0], more[1])
    x = np.load(digits / "more.npz")["x"]
    np.savez(digits / "other.npz", x=np.concatenate([x[:-1], 1 - x[-1:]]))
    assert contents(unlabelled=str(digits / "other.npz"))[0] != more[0]


def test_normalisation_is_fitted_on_all_training_inputs(digits):
    np.savez(digits / "white.npz", x=np.ones((200, 8, 8), np.float32))
    few = read_material(of_digits(digits)).normalisation
    both = read_material(of_digits(digits, unlabelled=str(digits / "white.npz"))).normalisation
    assert both.mean[0] > few.mean[0] + 0.2


# --- series and texts --------------------------------------------------------------------------


def test_a_series_run_without_labels(tmp_path, quick):
    from test_series_run import FAMILIES, RECIPE, windows

    values, _ = windows(90)
    np.savez(tmp_path / "data.npz", x=np.nan_to_num(values))
    knobs = {**FAMILIES["convnet1d"], "channels": 2, "length": 40, "classes": 3, "widths": [8, 8]}
    torch.manual_seed(1)
    spec = students.StudentSpec.from_json(knobs)
    students.save(tmp_path / "teacher", spec, spec.build())
    given = {
        **RECIPE, "teacher": {"source": "teacher", "classes": ["slow", "middle", "fast"]},
        "student": {"spec": FAMILIES["gru"]}, "distill": {"epochs": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    said = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    assert said.answer["student"]["metric"] == "agreement" and said.answer["student"]["n"] == 18


def test_texts_take_the_names_of_a_hugging_face_teacher(tmp_path):
    transformers = pytest.importorskip("transformers")
    from test_text_run import encoder, mails

    encoder(tmp_path)
    config = transformers.BertConfig.from_pretrained(tmp_path)
    config.num_labels, config.id2label = 3, {0: "ham", 1: "spam", 2: "news"}
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    (tmp_path / "mails.jsonl").write_text(
        "\n".join(json.dumps({"text": m["text"]}) for m in mails())
    )
    made = Recipe.parse({
        "task": "text", "data": {"train": str(tmp_path / "mails.jsonl")},
        "teacher": {"source": str(tmp_path)},
    })  # fmt: skip
    material = with_classes(made, read_material(made), trust_code=False)
    assert material.classes == ("ham", "spam", "news") and material.knobs["classes"] == 3
    assert material.train.batch(torch.arange(4), 0).labels is None
    assert dataclasses.replace(material, classes=()).metric == "agreement"
