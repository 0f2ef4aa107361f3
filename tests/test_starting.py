"""Students that start from their teacher: its function where layers fit, else its embedding."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import tiny
import torch
import yaml
from test_inside import foreign, texts
from test_text_run import encoder as write_encoder
from test_text_run import mails
from torch import nn

from tutelage.errors import RecipeError, StudentError, TeacherError
from tutelage.pipeline.starting import first_student
from tutelage.recipe import Recipe
from tutelage.students.families import encoder, textconv
from tutelage.students.spec import StudentSpec
from tutelage.teach.starting import as_encoder, start_from

pytest.importorskip("transformers")

WHOLE = {"layers": 3, "hidden": 16, "heads": 2, "inner": 24, "norm": "post"}


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_a_teacher_with_a_head_of_ours_is_an_encoder_of_our_own(kind):
    teacher = foreign(kind)
    network = as_encoder(teacher, length=12)
    assert network is not None
    torch.testing.assert_close(said(network), said(teacher), rtol=0, atol=1e-5)


def test_a_teacher_of_another_layout_is_none():
    assert as_encoder(foreign("ModernBert"), length=12) is None
    teacher = foreign("Bert")
    teacher.head = None
    assert as_encoder(teacher, length=12) is None


def student(**changes) -> Any:
    torch.manual_seed(5)
    knobs = {"vocabulary": 40, "length": 12, "pad": 1, "classes": 3, **WHOLE, **changes}
    return encoder.Encoder(encoder.EncoderSpec(**knobs)).eval()


def said(network, ids=None):
    with torch.no_grad():
        return network(texts() if ids is None else ids)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "DistilBert"])
def test_a_student_of_the_same_size_says_what_the_teacher_says(kind):
    teacher, network = foreign(kind), student()
    taken = start_from(network, teacher)
    assert taken == ("its whole embedding", "layers 1, 2, 3 of 3", "its head")
    torch.testing.assert_close(said(network), said(teacher), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "taken"), [(1, "3"), (2, "1, 3")])
def test_a_shallower_student_takes_every_other_layer(layers, taken):
    teacher, network = foreign("Bert"), student(layers=layers)
    assert f"layers {taken} of 3" in start_from(network, teacher)
    kept = [teacher.body.encoder.layer[int(n) - 1] for n in taken.split(", ")]
    teacher.body.encoder.layer = nn.ModuleList(kept)
    torch.testing.assert_close(said(network), said(teacher), rtol=0, atol=1e-5)


def test_the_heaviest_inner_units_are_kept():
    teacher, network = foreign("Bert"), student(inner=20)
    with torch.no_grad():
        for layer in teacher.body.encoder.layer:
            layer.output.dense.weight[:, [3, 7, 8, 23]] = 0.0  # units that say nothing
    start_from(network, teacher)
    torch.testing.assert_close(said(network), said(teacher), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("Bert", {"norm": "pre"}, "no encoder with norm: post"),
        ("Bert", {"hidden": 8}, "hidden is 8 and the teacher's 16"),
        ("Bert", {"embedding": 4}, "embedding is 4 and the teacher's 16"),
        ("Bert", {"heads": 4}, "heads is 4 and the teacher's 2"),
        ("Bert", {"layers": 4}, "layers is 4, above the teacher's 3"),
        ("Bert", {"inner": 25}, "inner is 25, above the teacher's 24"),
        ("ModernBert", {}, "not laid out like BERT"),
    ],
)
def test_what_does_not_fit_starts_with_the_embedding_and_says_why(kind, changes, why):
    network, before = student(**changes), student(**changes)
    taken = start_from(network, foreign(kind))
    assert len(taken) == 2 and why in taken[1] and "SVD" in taken[0]
    for (name, now), (_, then) in zip(
        network.named_parameters(), before.named_parameters(), strict=True
    ):
        assert torch.equal(now, then) is (name != "embedding.weight"), name


def test_another_activation_takes_no_layers():
    taken = start_from(student(), foreign("Bert", hidden_act="relu"))
    assert "another activation" in taken[1]


def test_a_textconv_and_a_teacher_of_our_own_share_an_embedding():
    conv = textconv.TextConv(
        textconv.TextConvSpec(vocabulary=40, length=12, pad=1, classes=3, embedding=4)
    )
    before = conv.embedding.weight.detach().clone()
    start_from(conv, student())
    assert not torch.equal(conv.embedding.weight, before)
    with pytest.raises(StudentError, match=r"the teacher \(Linear\) has none"):
        start_from(conv, nn.Linear(2, 2))


def test_post_norm_is_a_knob():
    made = StudentSpec.from_json({"family": "encoder", "vocabulary": 9, "length": 4, "classes": 2,
                                  **WHOLE})  # fmt: skip
    assert StudentSpec.from_json(json.loads(json.dumps(made.to_json()))) == made
    ids = texts()
    torch.testing.assert_close(said(student(), ids[:, :9]), said(student(), ids), rtol=0, atol=1e-5)
    with pytest.raises(RecipeError, match="norm is 'mid'; it is pre or post"):
        StudentSpec.from_json({**made.to_json(), "norm": "mid"})


def recipe(**student):
    given = {"task": "text", "data": {"train": "x"}, "teacher": {"source": "y"}}
    return Recipe.parse({**given, "student": student})


def test_a_start_is_refused_where_nothing_can_be_taken_over(tmp_path):
    assert recipe().student.start == "nearest"
    with pytest.raises(RecipeError, match="for built-in students"):
        recipe(start="teacher", source="net.py:build")
    tiny.write_data(tmp_path / "data.npz", count=60)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, 3))\n"
    )
    other = {"source": str(tmp_path / "net.py:build")}
    tiny.write_recipe(tmp_path, {"teacher": other, "student": {**tiny.SMALL, "start": "teacher"}})
    run = ("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run", "--trust-code")
    answer = tiny.cli(*run)
    assert answer.status == 2 and "this teacher is another network" in answer.errors[0]
    assert not (tmp_path / "run/signals").exists(), "nothing was asked yet"

    class Told:
        teacher = object()  # an ONNX file: nothing can be seen of it

    knobs = encoder.EncoderSpec(vocabulary=40, length=12, classes=3, **WHOLE)
    spec = StudentSpec(family="encoder", knobs=knobs)
    with pytest.raises(TeacherError, match="gives decisions only"):
        first_student(recipe(start="teacher"), spec, Told())  # pyright: ignore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("start")
    write_encoder(made / "encoder")
    lines = [json.dumps(mail) for mail in mails()]
    (made / "train.jsonl").write_text("\n".join(lines))
    return made


def test_a_run_starts_from_its_teacher_exactly_and_resumes(folder):
    parts = {
        "task": "text", "data": {"train": "train.jsonl", "validation": 0.2},
        "teacher": {"source": "encoder", "fit": "all", "epochs": 12},
        "budget": {"storage": "1 MB"}, "export": {"precision": "float32"}, "threads": 1,
        "distill": {"losses": {"dist": 1}, "epochs": 2, "batch": 16, "rate": 1e-3},
    }  # fmt: skip
    spec = {"family": "encoder", "layers": 1, "hidden": 32, "heads": 2, "inner": 64}
    weights = {}
    for start in ("teacher", "fresh", "teacher"):
        given = {**parts, "student": {"spec": {**spec, "norm": "post"}, "start": start}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(given))
        answer = tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run", "--json")
        assert answer.status == 0, answer.err
        result = json.loads((folder / "run/run.json").read_text())["stages"]["distill"]["result"]
        found = tiny.hashes(folder / "run", "student")["student/model.safetensors"]
        assert weights.setdefault(start, found) == found
        if start == "teacher":
            taken = ["its whole embedding", "layers 2 of 2", "its head"]
            assert result["start"] == taken and "starts with layers 2 of 2" in answer.err
            # Taught for two epochs only, it is as good as what it took over.
            assert answer.answer["student"]["value"] > 0.8
            assert "started with layers 2 of 2" in (folder / "run/report.html").read_text()
        else:
            assert "start" not in result
    assert len(set(weights.values())) == 2


def test_a_narrower_text_student_starts_with_a_slice_of_its_teacher(folder):
    spec = {"family": "encoder", "layers": 1, "hidden": 16, "heads": 1, "inner": 32}
    given = {
        "task": "text", "data": {"train": "train.jsonl", "validation": 0.2},
        "teacher": {"source": "encoder", "fit": "all", "epochs": 12},
        "student": {"spec": {**spec, "norm": "post"}, "start": "teacher"},
        "budget": {"storage": "1 MB"}, "distill": {"epochs": 1, "batch": 16, "rate": 1e-3},
        "export": {"precision": "float32"}, "threads": 1,
    }  # fmt: skip
    (folder / "narrow.yaml").write_text(yaml.safe_dump(given))
    answer = tiny.cli("run", folder / "narrow.yaml", "--run", folder / "narrow", "--json")
    assert answer.status == 0, answer.err
    result = json.loads((folder / "narrow/run.json").read_text())["stages"]["distill"]["result"]
    assert result["start"] == [
        "the weights of the teacher, of the channels and blocks that stay, fitted to it"
    ]


def test_a_text_student_can_be_a_slice_of_its_teacher(folder):
    given = {
        "task": "text", "data": {"train": "train.jsonl", "validation": 0.2},
        "teacher": {"source": "encoder", "fit": "all", "epochs": 12},
        "budget": {"storage": "40 kB"}, "student": {"space": "sliced", "candidates": 2},
        "distill": {"epochs": 30, "batch": 16}, "threads": 1,
    }  # fmt: skip
    (folder / "sliced.yaml").write_text(yaml.safe_dump(given))
    planned = tiny.cli("plan", folder / "sliced.yaml", "--run", folder / "sliced", "--json")
    assert planned.status == 0, planned.err  # before the teacher has a head
    rows = planned.answer["candidates"]
    assert [row["name"] for row in rows] == [
        "encoder hidden 16, layers 2, sliced", "encoder hidden 16, layers 1, sliced"
    ]  # fmt: skip
    said = tiny.cli("run", folder / "sliced.yaml", "--run", folder / "sliced", "--json")
    assert said.status == 0, said.err
    plan = json.loads((folder / "sliced/plan.json").read_text())
    assert [c["spec"] for c in plan["candidates"]] == [row["spec"] for row in rows]
    assert {c["space"] for c in plan["candidates"]} == {"sliced"}
    for candidate in plan["candidates"]:
        spec = candidate["spec"]
        assert spec["norm"] == "post" and spec["hidden"] // spec["heads"] == 16
    assert "student: starts with the weights of the teacher" in said.err
    stages = json.loads((folder / "sliced/run.json").read_text())["stages"]
    assert stages["distill"]["result"]["rate"] == 1e-3  # unset, of a transformer's slice
    assert said.answer["student"]["value"] > 0.8


def test_init_fits_and_slices_an_encoder_without_a_classifier(folder):
    out = folder / "begun.yaml"
    said = tiny.cli("init", folder / "encoder", folder / "train.jsonl", "--out", out)
    assert said.status == 0, said.err
    begun = Recipe.read(out)
    assert (begun.task, begun.teacher.fit, begun.student.space) == ("text", "all", "sliced")
    plan = tiny.cli("plan", out, "--json")
    assert plan.status == 0, plan.err
    assert all(row["name"].endswith(", sliced") for row in plan.answer["candidates"])


def test_init_takes_a_classifier_as_it_is_and_another_layout_compactly(folder, tmp_path):
    shutil.copytree(folder / "encoder", tmp_path / "classifier")
    config = json.loads((tmp_path / "classifier/config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "classifier/config.json").write_text(json.dumps(config))
    out, given = tmp_path / "r.yaml", (tmp_path / "classifier", folder / "train.jsonl")
    said = tiny.cli("init", *given, "--out", out)
    assert said.status == 2 and "classifier.bias" in said.errors[0]  # it is none, and is not fitted
    config |= {"architectures": ["BertModel"], "hidden_act": "relu"}
    (tmp_path / "classifier/config.json").write_text(json.dumps(config))
    out = tmp_path / "r.yaml"
    assert (
        tiny.cli("init", tmp_path / "classifier", folder / "train.jsonl", "--out", out).status == 0
    )
    begun = Recipe.read(out)
    assert (begun.teacher.fit, begun.student.space) == ("all", "auto")
