"""One student taught once for all widths: its cuts, the sandwich rule, and runs over budgets."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_distillation import CLASSES, TRAIN, VALIDATION, VIEWS
from test_slice import convnet, images
from torch import nn

from tutelage.errors import RecipeError, StudentError
from tutelage.files import read_tensors
from tutelage.losses import Objective, Term
from tutelage.pipeline.elastic import elastic_specs
from tutelage.recipe import Recipe
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slices.convnet import slice_convnet
from tutelage.students.slices.elastic import (
    Nested,
    cut_of,
    drawn,
    first_of,
    narrowed,
    ordered,
    smallest,
)
from tutelage.train.distill import Distillation
from tutelage.train.elastic import ElasticLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule


def resized(network: Any, *widths: int) -> Any:
    return dataclasses.replace(network.spec, widths=widths)


@pytest.mark.parametrize("block", ["plain", "depthwise"])
def test_ordering_changes_no_decision_and_puts_what_a_slice_keeps_first(block: str) -> None:
    network: Any = convnet(block, widths=(8, 12))
    found: Any = ordered(network, images())
    assert torch.allclose(found(images()), network(images()), atol=1e-6)
    assert not torch.equal(found.stem[0].weight, network.stem[0].weight)
    spec = resized(network, 4, 8)
    first = ConvNet(spec)
    first.load_state_dict(first_of(found.state_dict(), first.state_dict()))
    wanted = slice_convnet(network, spec, images())
    assert torch.allclose(first.eval()(images()), wanted(images()), atol=1e-6)


@pytest.mark.parametrize("block", ["separable", "plain"])
def test_series_are_ordered_too_and_inception_is_refused(block: Any) -> None:
    spec = ConvNet1dSpec(
        channels=2, length=24, classes=3, widths=(8, 12), depths=(2, 1), block=block, expand=2
    )
    torch.manual_seed(0)
    network, series = ConvNet1d(spec).eval(), torch.randn(16, 2, 24)
    assert torch.allclose(ordered(network, series)(series), network(series), atol=1e-6)
    beside = ConvNet1d(dataclasses.replace(spec, block="inception"))
    with pytest.raises(StudentError, match="side by side"):
        ordered(beside, series)


def test_a_cut_is_the_first_channels_with_the_statistics_of_the_examples() -> None:
    network: Any = convnet()
    small: Any = cut_of(network, resized(network, 4, 6), images())
    assert type(small) is ConvNet and small.spec.widths == (4, 6)
    assert torch.equal(small.stages[1][0].first[0].weight,
                       network.stages[1][0].first[0].weight[:6, :4])  # fmt: skip
    seen = nn.functional.conv2d(images(), network.stem[0].weight[:4], padding=1)
    assert torch.allclose(small.stem[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    for spec in (resized(network, 10, 12), dataclasses.replace(network.spec, depths=(1, 1))):
        with pytest.raises(StudentError, match="holds none of"):
            cut_of(network, spec, images())


def test_nested_computes_and_learns_as_the_cut_alone() -> None:
    network: Any = convnet("depthwise")
    spec, before = resized(network, 4, 6), {k: v.clone() for k, v in network.state_dict().items()}
    alone = ConvNet(spec).train()
    alone.load_state_dict(first_of(network.state_dict(), alone.state_dict()))
    said = Nested(network)(spec, images())
    assert torch.equal(said, alone(images()))
    said.square().sum().backward()
    alone(images()).square().sum().backward()
    mine, theirs = network.get_parameter("head.weight"), alone.get_parameter("head.weight")
    assert mine.grad is not None and theirs.grad is not None
    assert torch.allclose(mine.grad[:, :6], theirs.grad, atol=1e-5)
    assert mine.grad[:, 6:].abs().max() == 0
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_what_is_drawn_lies_between_and_follows_the_seed() -> None:
    whole = ConvNetSpec(image=(1, 8, 8), classes=3, widths=(16, 33), depths=(2, 1))
    least = smallest(whole, 1 / 4)
    assert (least.widths, least.depths) == ((4, 8), (2, 1))
    random = np.random.default_rng(0)
    found = [drawn(whole, least, random).widths for _ in range(200)]
    assert {w for w, _ in found} == set(range(4, 17, 2))
    assert {w for _, w in found} == {*range(8, 33, 2), 33}
    again = np.random.default_rng(0)
    assert found[:9] == [drawn(whole, least, again).widths for _ in range(9)]
    assert drawn(whole, whole, random) == whole


def test_scores_of_narrowing_end_at_the_network_itself() -> None:
    network = convnet()
    scores = narrowed(network, resized(network, 2, 4), images(), images(48))
    assert scores.widths == ((2, 4, 6, 8), (4, 6, 8, 12))
    assert all(moved[-1] == 0 < moved[0] for moved in scores.moved)


def lesson(least: tuple[int, ...] = (2, 4)) -> ElasticLesson:
    torch.manual_seed(1)
    spec = ConvNetSpec(image=(1, 8, 8), classes=CLASSES, widths=(6, 8), depths=(1, 1))
    terms = (Term(name="cross_entropy", weight=1.0),)
    norms: Any = TRAIN.batch(torch.arange(64), 0).inputs
    return ElasticLesson(
        ConvNet(spec), Objective(terms), TRAIN, VALIDATION, smaller=Objective(terms),
        least=dataclasses.replace(spec, widths=least), classes=CLASSES, views=VIEWS, batch=16,
        seed=0, norms=norms,
    )  # fmt: skip


def test_the_loss_is_the_mean_over_the_whole_the_smallest_and_two_drawn() -> None:
    made = lesson()
    first, second = (list(lesson().batches(0, start)) for start in (0, 3))
    assert [b[2] for b in first[3:]] == [b[2] for b in second], "a resumed epoch draws the same"
    assert [spec.widths for spec in first[0][2]][0] == (2, 4)
    assert len({str(b[2]) for b in first}) > 1
    examples, _, specs = first[0]
    made.student.train()
    one = [nn.functional.cross_entropy(made.nested(s, examples.inputs), examples.labels)
           for s in (made.whole, *specs)]  # fmt: skip
    assert len(one) == 4
    assert torch.allclose(made.loss(first[0])[0], torch.stack(one).mean())


def test_every_cut_learns_and_narrower_lessons_are_others() -> None:
    made = lesson()
    history = Trainer(made, Schedule(epochs=6, rate=0.02, ema=0.9, precision="float32")).train()
    assert history.figure[-1] > 0.9
    for widths in ((6, 8), (4, 6), (2, 4)):
        cut = cut_of(made.student, resized(made.student, *widths), made.norms)
        assert Distillation.evaluate(made, (cut,)) > 0.85, widths
    assert lesson().key == lesson().key != lesson((4, 4)).key


def test_teaching_resumes_to_the_very_same_bits(tmp_path: Path) -> None:
    def trainer(path: Path | None) -> Any:
        return Trainer(lesson(), Schedule(epochs=2, checkpoint_s=0.0), checkpoint=path)

    whole, stopped = trainer(None), trainer(tmp_path / "state.safetensors")
    history, one_step = whole.train(), stopped._one_step

    def stopping(batch: Any, total: int) -> bool:
        if stopped.step == 9:
            raise KeyboardInterrupt
        return one_step(batch, total)

    stopped._one_step = stopping
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = trainer(tmp_path / "state.safetensors")
    assert again.train() == history
    mine, theirs = (t.lesson.student.state_dict() for t in (again, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def run(folder: Path, status: int = 0, further: int = 0, **changes: Any) -> Any:
    """Run the recipe in `folder/run`; return the manifest's stages and what was said."""
    if not (folder / "data.npz").exists():
        tiny.write_data(folder / "data.npz")
    student = {"space": "elastic", "further": further, "candidates": 3}
    distill = {"epochs": 4, "batch": 32}
    recipe = tiny.write_recipe(folder, {"student": student, "distill": distill, **changes})
    said = tiny.cli("run", recipe, "--run", folder / "run")
    assert said.status == status, said.err
    return json.loads((folder / "run/run.json").read_text())["stages"], said


TEACHER = {"fit": True, "epochs": 10, "width": 16}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that shipped the elastic student whole, as it was taught."""
    folder = tmp_path_factory.mktemp("elastic")
    stages, _ = run(folder, teacher=TEACHER)
    assert stages["elastic"]["result"]["start"] == "half of the teacher's channels"
    found = stages["distill"]["result"]
    assert (found["spec"]["widths"], found["epochs"]) == ([8, 16], 0)
    assert found["history"]["figure"] == []
    whole, shipped = (
        read_tensors(folder / f"run/{name}/model.safetensors")[0] for name in ("elastic", "student")
    )
    assert torch.equal(whole["stem.0.weight"], shipped["stem.0.weight"])
    return folder


def test_another_device_and_budget_are_cut_from_what_was_taught(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, with_graph = Distillation.evaluate, []

    def judged(self: Any, modules: tuple[nn.Module, ...]) -> float:
        with_graph.append(torch.is_grad_enabled())
        return evaluate(self, modules)

    monkeypatch.setattr(Distillation, "evaluate", judged)
    shutil.copytree(taught, tmp_path / "copy")
    folder, before = tmp_path / "copy", tiny.hashes(taught / "run", "elastic")
    stages, said = run(
        folder, further=1, teacher=TEACHER, device="esp32-s3", budget={"storage": "9.5 kB"}
    )
    assert "Teaching the elastic" not in said.err
    assert len(with_graph) > 2 and not any(with_graph)
    assert tiny.hashes(folder / "run", "elastic") == before
    found = stages["distill"]["result"]
    assert len(found["history"]["figure"]) == found["epochs"] == 1
    assert found["start"][0].startswith("the weights of the elastic student")
    plan = json.loads((folder / "run/plan.json").read_text())
    rows = plan["candidates"]
    assert plan["space"] == "elastic" and len(rows) >= 2
    assert sum(row["chosen"] for row in rows) == 1
    best = max(row["trial"]["value"] for row in rows)
    assert next(row["trial"]["value"] for row in rows if row["chosen"]) == best
    sizes = {row["parameters"] for row in rows}
    assert max(sizes) < sum(v.numel() for v in read_tensors(
        folder / "run/elastic/model.safetensors")[0].values())  # fmt: skip
    assert "cut from the elastic student" in (folder / "run/report.html").read_text()


def test_what_not_even_the_smallest_fits_is_refused(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "copy")
    _, said = run(tmp_path / "copy", 3, teacher=TEACHER, budget={"storage": "3 kB"})
    assert "the smallest student needs" in said.err
    longer = {"epochs": 5, "batch": 32}
    _, said = run(tmp_path / "copy", 3, teacher=TEACHER, budget={"storage": "3 kB"}, distill=longer)
    assert "Teaching the elastic" not in said.err  # another lesson, refused before it begins
    planned = tiny.cli("plan", tmp_path / "copy/recipe.yaml", "--run", tmp_path / "none")
    assert planned.status == 3 and "2-4" in planned.err


def test_the_start_is_of_the_teacher_where_it_can_be_cut() -> None:
    class Task:
        name, families = "vision", ("convnet",)

    class Given:
        task, knobs = Task(), {"image": (1, 8, 8), "classes": 3}

    given: Any = Given()
    from tutelage.students.spec import StudentSpec

    knobs = ConvNetSpec(image=(1, 8, 8), classes=3, widths=(16, 32), depths=(2, 2))
    own = StudentSpec(family="convnet", knobs=knobs)
    whole, least, sliced = elastic_specs(given, own)
    assert (whole.knobs.widths, least.knobs.widths, sliced) == ((8, 16), (2, 4), True)
    other = dataclasses.replace(own, knobs=dataclasses.replace(knobs, image=(1, 16, 16)))
    whole, least, sliced = elastic_specs(given, other)
    assert (whole.knobs.widths, least.knobs.widths, sliced) == ((16, 32), (4, 8), False)
    Task.families = ("encoder",)
    with pytest.raises(RecipeError, match="elastic is for images and series"):
        elastic_specs(given, None)


@pytest.mark.parametrize(
    ("student", "why"),
    [
        ({"space": "elastic", "start": "teacher"}, "has a start"),
        ({"start": "fresh", "further": 2}, "'further' is for students that begin with another"),
        ({"further": 0}, "'further: 0' is for 'space: elastic'"),
        ({"space": "elastic", "further": -1}, "further"),
        ({"space": "elastic", "spec": {"family": "convnet"}}, "'space' is for students"),
        ({"space": "elastic", "shrink": 2}, "'shrink' is for compact"),
    ],
)
def test_keys_that_make_no_sense_are_refused(student: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Recipe.parse(tiny.recipe({"student": student}))
