"""Several networks asked as one: what they say, on disk, in a run, and where they are refused."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from tutelage.errors import CorruptFileError, RecipeError
from tutelage.pipeline.fitting import built_in_parameters, fit_teacher
from tutelage.pipeline.material import read_material
from tutelage.pipeline.teaching import open_teacher
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.ensemble import Ensemble
from tutelage.students.spec import StudentSpec
from tutelage.students.taps import find_taps
from tutelage.teach.signals import SignalCache
from tutelage.teach.torch_teacher import TorchTeacher

SPEC = StudentSpec.from_json({
    "family": "convnet", "image": [1, 8, 8], "classes": 3, "widths": [4, 8], "depths": [1, 1],
})  # fmt: skip


class Says(nn.Module):
    """Answers every example with the same numbers."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs):
        return self.logits.expand(len(inputs), -1)


def members(count=3):
    torch.manual_seed(0)
    return [SPEC.build().eval() for _ in range(count)]


def test_the_decision_is_the_log_of_the_mean_probability():
    """Of (3/4, 1/4) and (1/2, 1/2): (5/8, 3/8); of logits the mean would give another."""
    both = Ensemble([Says(math.log(3.0), 0.0), Says(7.0, 7.0)])
    said = both(torch.zeros(2, 1)).exp()
    torch.testing.assert_close(said, torch.tensor([[5 / 8, 3 / 8]] * 2))


def test_values_are_averaged_and_extremes_stay_finite():
    values = Ensemble([Says(1.0), Says(4.0), Says(-2.0)])(torch.zeros(2, 1))
    assert values.flatten().tolist() == [1.0, 1.0]
    extreme = Ensemble([Says(1e4, -1e4), Says(-1e4, 1e4)])(torch.zeros(1, 1))
    torch.testing.assert_close(extreme.exp(), torch.tensor([[0.5, 0.5]]))


def test_it_is_written_and_read_as_one_and_a_single_network_as_before(tmp_path):
    made, inputs = Ensemble(members()), torch.rand(5, 1, 8, 8)
    paths = students.save(tmp_path / "several", SPEC, made, {"target": None})
    assert [path.name for path in paths] == ["spec.json", "model.safetensors"]
    found = students.load(tmp_path / "several")
    assert isinstance(found, Ensemble) and not found.training
    assert torch.equal(found(inputs), made.eval()(inputs))
    students.save(tmp_path / "one", SPEC, members(1)[0])
    assert "members" not in json.loads((tmp_path / "one/spec.json").read_text())
    assert not isinstance(students.load(tmp_path / "one"), Ensemble)


@pytest.mark.parametrize("count", [0, 9, "two", True, 2])
def test_a_number_of_members_that_cannot_be_is_damage(tmp_path, count):
    students.save(tmp_path, SPEC, Ensemble(members(3)))
    data = json.loads((tmp_path / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps({**data, "members": count}))
    with pytest.raises(CorruptFileError):
        students.load(tmp_path)


def test_taps_are_those_of_the_first_member():
    torch.manual_seed(0)
    made, inputs = Ensemble(members()), torch.rand(2, 1, 8, 8)
    own = find_taps(made.members[0], inputs)
    assert [t.path for t in find_taps(made, inputs)] == [f"members.0.{t.path}" for t in own]
    teacher = TorchTeacher(made, classes=3, image_shape=(1, 8, 8))
    first = TorchTeacher(made.members[0], classes=3, image_shape=(1, 8, 8))
    read, alone = (t.read(inputs, features=True, maps=True) for t in (teacher, first))
    for mine, theirs in zip((*read.features, *read.maps), (*alone.features, *alone.maps),
                            strict=True):  # fmt: skip
        assert torch.equal(mine, theirs)
    assert not torch.equal(read.decision, alone.decision)
    assert any("3 networks are asked as one" in note for note in teacher.notes)


def test_another_last_member_is_another_teacher_to_the_signal_cache(tmp_path):
    recipe = Recipe.parse(
        tiny.recipe({"data": {"train": str(tiny.write_data(tmp_path / "d.npz"))}})
    )
    split = read_material(recipe).validation
    three, keys = members(), []
    for made in (three, three[:2], [*three[:2], members(4)[3]], three):
        teacher = TorchTeacher(Ensemble(made), classes=3, image_shape=(1, 8, 8))
        keys.append(SignalCache(tmp_path, split, views=1, features=True, maps=False,
                                teacher=teacher).key)  # fmt: skip
    assert len(set(keys)) == 3 and keys[0] == keys[3]


def several(folder, **teacher):
    """Return the tiny recipe with two members of two epochs."""
    return {
        "data": {"train": str(folder / "data.npz"), "validation": 0.2},
        "teacher": {"fit": True, "epochs": 2, "width": 4, "members": 2, **teacher},
        "export": {"precision": "float32"},
        "distill": {"epochs": 2, "batch": 32, "losses": {"dist": 1.0, "trajectory": 1.0}},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    tiny.write_data(folder / "data.npz")
    tiny.write_recipe(folder, several(folder))
    said = tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run", "--json")
    assert said.status in (0, 4), said.err
    return folder, said.answer


def test_a_run_is_taught_by_both_and_says_so(finished):
    folder, _ = finished
    stages = json.loads((folder / "run/run.json").read_text())["stages"]
    rows = stages["fit"]["result"]["members"]
    assert [row["seed"] for row in rows] == [0, 1_000_003]
    teacher = stages["teacher"]["result"]
    assert teacher["source"] == "2 networks fitted on the data (convnet)"
    assert any("alone these networks reach" in note for note in teacher["notes"])
    assert all(tap.startswith("members.0.") for tap in teacher["taps"]) and teacher["lenses"]
    page = (folder / "run/report.html").read_text()
    assert "2 networks fitted on the data" in page and "2 networks are asked as one" in page
    one, two = (students.load(folder / f"run/teacher/members/{i}") for i in (1, 2))
    assert not torch.equal(one.get_parameter("head.weight"), two.get_parameter("head.weight"))
    both = students.load(folder / "run/teacher")
    inputs = torch.rand(4, 1, 8, 8)
    mean = (one(inputs).softmax(1) + two(inputs).softmax(1)) / 2
    torch.testing.assert_close(both(inputs).exp(), mean)
    proof = json.loads((folder / "run/proof.json").read_text())
    assert "latency_p50_s" in {row["name"] for row in proof["figures"]["teacher"]}  # it exports
    assert teacher["parameters"] == 2 * sum(p.numel() for p in one.parameters())
    assert not list((folder / "run").rglob("*.pt")) + list((folder / "run").rglob("*.pkl"))


def test_the_written_teacher_teaches_again_as_a_folder(finished):
    folder, _ = finished
    changes = {**several(folder), "teacher": {"source": str(folder / "run/teacher")}}
    recipe = Recipe.parse(tiny.recipe(changes))
    teacher = open_teacher(recipe, read_material(recipe), trust_code=False)
    stages = json.loads((folder / "run/run.json").read_text())["stages"]
    assert teacher.fingerprint == stages["teacher"]["result"]["fingerprint"]


def test_each_member_is_trained_once_and_more_are_added_to_those_there(tmp_path):
    tiny.write_data(tmp_path / "data.npz", count=80)
    trained = []

    class Listens(Silent):
        def start(self, label, total, done=0):
            trained.append(label)

    def fit(count):
        recipe = Recipe.parse(tiny.recipe(several(tmp_path, members=count, epochs=1)))
        material = read_material(recipe)
        trained.clear()
        with Run(tmp_path / "run") as run:
            network = fit_teacher(recipe, material, run, Listens())
        assert built_in_parameters(recipe, material) == sum(p.numel() for p in network.parameters())
        return list(trained), network

    assert fit(2)[0] == ["Training teacher 1 of 2", "Training teacher 2 of 2"]
    assert fit(2)[0] == []
    labels, network = fit(3)
    assert labels == ["Training teacher 3 of 3"] and len(network.members) == 3


def test_values_are_taught_by_several_too(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(90, 1, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=10 + x.mean((1, 2)))
    recipe = Recipe.parse(tiny.recipe({**several(tmp_path, epochs=1), "task": "series",
                                       "augment": {}}))  # fmt: skip
    data = recipe.data.model_copy(update={"target": "values"})
    recipe = recipe.model_copy(update={"data": data})
    material = read_material(recipe)
    with Run(tmp_path / "run") as run:
        network = fit_teacher(recipe, material, run, Silent())
    assert students.note(tmp_path / "run/teacher")["target"]["mean"] == pytest.approx(10, abs=0.2)
    inputs = torch.rand(3, 1, 16)
    alone = [member(inputs) for member in network.members]
    torch.testing.assert_close(network(inputs), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"source": "encoder", "fit": "all", "members": 2}, "'members: 2' is for built-in"),
        ({"source": "a.onnx", "members": 2}, "'members: 2' is for built-in"),
        ({"fit": True, "members": 0}, "teacher.members"),
        ({"fit": True, "members": 9}, "teacher.members"),
    ],
)
def test_members_of_other_teachers_are_refused(teacher, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(tiny.recipe({"teacher": teacher}))


@pytest.mark.parametrize("student", [{"space": "sliced"}, {"start": "teacher"}])
def test_what_takes_one_network_s_weights_is_refused_before_training(tmp_path, student):
    tiny.write_data(tmp_path / "data.npz")
    tiny.write_recipe(tmp_path, {**several(tmp_path), "student": student})
    said = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    name, value = next(iter(student.items()))
    assert said.status == 2 and f"student.{name}: {value} takes the weights" in said.errors[0]
    assert not (tmp_path / "run/teacher").exists()


def test_an_older_run_s_scores_still_count_where_there_is_one_teacher():
    from tutelage.pipeline.lessons import teacher_inputs

    one = Recipe.parse(tiny.recipe({"teacher": {"fit": True}}))
    two = Recipe.parse(tiny.recipe({"teacher": {"fit": True, "members": 2}}))
    assert "members" not in teacher_inputs(one) and teacher_inputs(two)["members"] == 2
