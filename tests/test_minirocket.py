"""The teacher that is solved for: its features by plain loops, its ridge beside scikit-learn."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tiny
import torch
import yaml
from sklearn.linear_model import Ridge

from tutelage.errors import RecipeError, TeacherError
from tutelage.pipeline.checking import check_recipe
from tutelage.pipeline.fitting import built_in_spec, fit_teacher
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import read_material
from tutelage.progress import Silent
from tutelage.recipe import Recipe, TeacherPart
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.built_in import TEACHERS
from tutelage.students.ensemble import Ensemble
from tutelage.students.families import minirocket
from tutelage.students.families.minirocket import (
    MiniRocket,
    MiniRocketSpec,
    Shares,
    _dilations,
    ridge,
)
from tutelage.tasks import find_task


def waves(n=24, channels=1, length=40, seed=0):
    """Return series of two frequencies at any phase, and which they have."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    steps = np.arange(length)
    phase = random.uniform(0, 2 * np.pi, (n, channels, 1))
    speed = np.where(labels, 0.9, 0.6)[:, None, None]
    series = np.sin(speed * steps + phase) + 0.1 * random.normal(size=(n, channels, length))
    return torch.tensor(series, dtype=torch.float32), torch.from_numpy(labels)


def by_hand(part, series):
    """Return the shares of `part`, kernel by kernel and step by step."""
    found = []
    places = list(itertools.combinations(range(9), 3))
    first = 0
    for at, (dilation, count) in enumerate(zip(part.dilations, part.counts, strict=True)):
        for half in (0, 1):
            inside = half == 1 and series.shape[2] > 8 * dilation
            kernels = []
            for kernel in range(half, 84, 2):
                row = part.read[at, kernel].numpy() @ series.numpy()
                padded = np.pad(row, ((0, 0), (4 * dilation, 4 * dilation)))
                said = sum(
                    (2.0 if i in places[kernel] else -1.0)
                    * padded[:, i * dilation : i * dilation + row.shape[1]]
                    for i in range(9)
                )
                if inside:
                    said = said[:, 4 * dilation : -4 * dilation]
                biases = part.biases[kernel, first : first + count].numpy()
                kernels.append([(said > bias).mean(1) for bias in biases])
            found.append(np.array(kernels).reshape(-1, len(series)).T)
        first += count
    return np.concatenate(found, 1)


@pytest.mark.parametrize(("channels", "length"), [(1, 40), (3, 17), (1, 2)])
def test_shares_are_those_of_plain_loops(channels, length):
    torch.manual_seed(1)
    series = torch.randn(5, channels, length)
    part = Shares(channels, length, 300)
    part.requires_grad_(False).set_biases(series)
    with torch.no_grad():
        found = part(series)
    assert found.shape == (5, part.count) == (5, 252)
    wanted = by_hand(part, series)
    # A step right at its bias may fall on either side.
    assert np.mean(np.abs(found.numpy() - wanted) > 1e-6) < 0.01
    assert 0.2 < float(found.mean()) < 0.8


@pytest.mark.parametrize(("length", "each"), [(2, 3), (24, 59), (1460, 59), (1460, 10)])
def test_dilations_reach_over_the_series_and_no_feature_is_lost(length, each):
    found = _dilations(length, each)
    assert sum(found.values()) == each and min(found.values()) >= 1
    assert 8 * max(found) < max(9, length)
    assert 16 * max(found) >= length - 1 or max(found) == 1


@pytest.mark.parametrize("views", [1, 2])
def test_the_ridge_is_scikit_learns_and_leaves_each_out(views):
    random = np.random.default_rng(0)
    features = random.normal(size=(14, 30)) * random.uniform(0.1, 3, 30) + 2
    targets = random.normal(size=(14 // views, 2)).repeat(views, 0)
    features[2:4] = features[:2]  # copies: several directions say nothing, not the mean's alone
    weight, bias, left_out = ridge(torch.from_numpy(features), torch.from_numpy(targets), views)
    scaled = (features - features.mean(0)) / features.std(0, ddof=1)
    errors = {}
    for power in range(-6, 4):
        said = []
        for first in range(0, 14, views):
            out = np.arange(first, first + views)
            alone = Ridge(alpha=10.0**power * 30)
            alone.fit(np.delete(scaled, out, 0), np.delete(targets, out, 0))
            said += list(alone.predict(scaled[out]))
        errors[power] = np.square(targets - said).mean(), said
    best = min(errors, key=lambda power: errors[power][0])
    whole = Ridge(alpha=10.0**best * 30).fit(scaled, targets)
    said = features.astype(np.float32) @ weight.numpy() + bias.numpy()
    np.testing.assert_allclose(said, whole.predict(scaled), atol=1e-4)
    np.testing.assert_allclose(left_out.numpy(), errors[best][1], atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_it_learns_waves_and_says_how_sure_it_is(channels, tmp_path):
    (series, labels), (more, truth) = waves(channels=channels), waves(40, channels, seed=1)
    torch.manual_seed(0)
    spec = students.StudentSpec(
        family="minirocket",
        knobs=MiniRocketSpec(channels=channels, length=40, classes=2, features=840),
    )
    network = spec.build()
    network.solve(torch.stack([series, series + 0.05], 1), labels, "classes")
    said = network(more)
    assert float((said.argmax(1) == truth).float().mean()) >= 0.95
    assert float(said.softmax(1).max(1).values.mean()) > 0.7
    students.save(tmp_path, spec, network)
    again = students.load(tmp_path)
    torch.testing.assert_close(again(more), said, rtol=0, atol=0)
    assert isinstance(again, MiniRocket)


def test_long_series_are_read_few_at_a_time(monkeypatch):
    spec = MiniRocketSpec(channels=1, length=40, classes=2, features=84)
    network, series = MiniRocket(spec), torch.randn(7, 1, 40)
    monkeypatch.setattr(minirocket, "_MOST_STEPS", 100)
    frugal, seen, few = MiniRocket(spec), [], []
    frugal.load_state_dict(network.state_dict())
    frugal.shares[0].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    halves = frugal.shares[0]._halves
    monkeypatch.setattr(
        frugal.shares[0], "_halves", lambda x, at: few.append(len(x)) or halves(x, at)
    )
    torch.testing.assert_close(frugal(series), network(series))
    assert few[:: len(few) // 4] == [2, 2, 2, 1]
    assert seen == [7]  # whoever looks inside sees all of them


def test_it_predicts_values():
    random = np.random.default_rng(0)
    speeds = torch.from_numpy(random.uniform(0.3, 1.2, 60).astype(np.float32))
    steps = torch.arange(48)
    series = torch.sin(speeds[:, None, None] * steps + torch.rand(60, 1, 1) * 6)
    network = MiniRocket(MiniRocketSpec(channels=1, length=48, classes=1, features=840))
    network.solve(series[:40, None], speeds[:40], "values")
    said = network(series[40:])[:, 0]
    left = float((said - speeds[40:]).square().mean() / speeds[40:].var())
    assert left < 0.2


def recipe_of(tmp_path, n=24, length=40, teacher=None, **parts):
    series, labels = waves(n, length=length)
    np.savez(tmp_path / "waves.npz", x=series.numpy(), y=labels.numpy())
    return Recipe.parse(
        {
            "task": "series",
            "data": {"train": str(tmp_path / "waves.npz")},
            "teacher": {"fit": True, **(teacher or {})},
            **parts,
        }
    )


@pytest.mark.parametrize(
    ("teacher", "parts", "family"),
    [
        ({}, {}, "minirocket"),
        ({"members": 2}, {}, "minirocket"),
        ({"network": "inception"}, {}, "convnet1d"),
        ({"network": "resnet1d"}, {}, "convnet1d"),
        ({"width": 16}, {}, "convnet1d"),
        ({"epochs": 3}, {}, "convnet1d"),
        ({}, {"distill": {"losses": {"dist": 1.0, "trajectory": 1.0}}}, "convnet1d"),
        ({}, {"student": {"space": "sliced"}}, "convnet1d"),
        ({}, {"student": {"start": "teacher"}}, "convnet1d"),
    ],
)
def test_few_series_get_it_where_nothing_asks_for_a_trained_network(
    tmp_path, teacher, parts, family
):
    recipe = recipe_of(tmp_path, teacher=teacher, **parts)
    assert built_in_spec(recipe, read_material(recipe)).family == family


@pytest.mark.parametrize(
    ("parts", "losses", "mixup"),
    [
        ({}, {"kl": 1.0}, 0.5),
        ({"distill": {"losses": {"dist": 1.0}}}, {"dist": 1.0}, 0.5),
        ({"distill": {"losses": {"kl": 1.0, "cross_entropy": 1.0}}}, None, 0.0),
        ({"augment": {"mixup": 0.2}}, {"kl": 1.0}, 0.2),
        ({"augment": {"mixup": 0.2}, "distill": {"losses": {"cross_entropy": 1.0}}}, None, 0.2),
    ],
)
def test_series_are_mixed_where_the_teacher_alone_says_what_they_are(
    tmp_path, parts, losses, mixup
):
    recipe = recipe_of(tmp_path, **parts)
    material = read_material(recipe)
    assert material.augment.mixup == mixup
    assert material.labelled is not None
    untouched = material.labelled.batch(torch.arange(4), 0).inputs
    varied = material.labelled.batch(torch.arange(4), 1).inputs  # a teacher learns from no mixture
    assert float((varied - untouched).abs().mean()) < 0.2
    if losses is not None:
        found = with_usual(recipe, material.decides, material.task, len(material.classes))
        assert found.distill.losses == losses


def test_many_series_get_a_trained_network(tmp_path, monkeypatch):
    minirocket = dataclasses.replace(TEACHERS["minirocket"], most=10)
    monkeypatch.setitem(TEACHERS._entries, "minirocket", minirocket)
    recipe = recipe_of(tmp_path)
    assert built_in_spec(recipe, read_material(recipe)).family == "convnet1d"
    named = recipe_of(tmp_path, teacher={"network": "minirocket"})
    with pytest.raises(TeacherError, match="takes up to 10 labelled examples"):
        built_in_spec(named, read_material(named))


def test_families_that_are_none_are_refused(tmp_path):
    recipe = recipe_of(tmp_path, teacher={"network": "convnet"})
    with pytest.raises(TeacherError, match="which has minirocket and inception and resnet1d"):
        built_in_spec(recipe, read_material(recipe))
    with pytest.raises(RecipeError, match=r"teacher\.network"):
        recipe_of(tmp_path, teacher={"network": "minirokcet"})
    with pytest.raises(RecipeError, match="is for built-in teachers"):
        recipe_of(tmp_path, teacher={"fit": False, "source": "x.onnx", "network": "minirocket"})


def test_members_are_solved_for_each_and_a_run_that_goes_on_keeps_them(tmp_path):
    recipe = recipe_of(tmp_path, teacher={"members": 2})
    material = read_material(recipe)
    with Run(tmp_path / "run") as run:
        network = fit_teacher(recipe, material, run, Silent())
        assert isinstance(network, Ensemble)
        first, second = (member.biases for member in (m.shares[0] for m in network.members))
        assert not torch.equal(first, second)
        fitted = run.manifest["stages"]["fit"]["result"]
        assert [member["figure"] for member in fitted["members"]] == [1.0, 1.0]
    with Run(tmp_path / "run") as run:
        again = fit_teacher(recipe, material, run, Silent())
    inputs = torch.randn(3, 1, 40)
    torch.testing.assert_close(again(inputs), network(inputs), rtol=0, atol=0)


def test_a_run_is_taught_by_it_and_measures_it_too(tmp_path):
    recipe_of(tmp_path, n=60)
    student = {"family": "convnet1d", "widths": [4, 8], "depths": [1, 1], "kernel": 5}
    recipe = {
        "task": "series",
        "data": {"train": "waves.npz", "validation": 0.2},
        "teacher": {"fit": True},
        "student": {"spec": student},
        "augment": {"views": 2},
        "distill": {"epochs": 2, "batch": 16},
        "threads": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    assert "solving for minirocket on 38 examples" in said.err
    teacher = json.loads((tmp_path / "run/run.json").read_text())["stages"]["teacher"]["result"]
    assert teacher["source"] == "fitted on the data (minirocket)"
    proof = json.loads((tmp_path / "run/proof.json").read_text())
    figures = {f["name"]: f for f in proof["figures"]["teacher"]}
    assert figures["macs"]["where"] == "counted on teacher-float32.onnx"  # it was exported
    again = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run", "--json")
    assert again.status == 0 and "solving" not in again.err


def test_it_is_no_student(tmp_path):
    recipe = recipe_of(tmp_path, student={"spec": {"family": "minirocket"}})
    with pytest.raises(RecipeError, match="is a teacher alone; take one of convnet1d, gru"):
        check_recipe(recipe, read_material(recipe))


def test_init_knows_series_by_their_file(tmp_path):
    series, labels = waves(30)
    rows = ["@univariate true", "@classLabel true 0 1", "@data"]
    for values, label in zip(series[:, 0].tolist(), labels.tolist(), strict=True):
        rows.append(",".join(f"{x:.4f}" for x in values) + f":{label}")
    (tmp_path / "waves.ts").write_text("\n".join(rows))
    out = tmp_path / "recipe.yaml"
    said = tiny.cli("init", "fit", tmp_path / "waves.ts", "--out", out)
    assert said.status == 0, said.err
    recipe = yaml.safe_load(out.read_text())
    assert recipe["task"] == "series" and recipe["distill"]["losses"] == {"kl": 1.0}
    assert "# epochs: 1200 " in out.read_text()  # 2,400 steps, two an epoch


def test_the_recipe_names_every_built_in_teacher_and_every_one_has_a_task():
    named = TeacherPart.model_json_schema()["properties"]["network"]["anyOf"][0]["enum"]
    of_tasks = {name for task in ("vision", "series", "text") for name in find_task(task).teachers}
    assert set(named) == set(TEACHERS) == of_tasks
