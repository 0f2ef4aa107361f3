"""Taps of student and teacher are paired, and what maps one to the other begins fitted."""

from types import SimpleNamespace as Fake
from typing import Any

import tiny
import torch

from tutelage.pipeline.taps import build_lesson, pair_taps
from tutelage.recipe import Recipe
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.taps import find_taps, reading
from tutelage.teach.signals import Split
from tutelage.types import Batch


def network(*widths, seed=0):
    torch.manual_seed(seed)
    spec = ConvNetSpec(
        image=(1, 8, 8), classes=tiny.CLASSES, widths=widths, depths=(1,) * len(widths)
    )
    return ConvNet(spec).train()


def split(count, seed):
    pixels, labels = tiny.images(count, seed=seed)
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1

    def batch(index, view):
        return Batch(inputs=inputs[index], labels=torch.from_numpy(labels)[index], index=index)

    return Split(name="some", count=count, content=f"{seed}", batch=batch)


class Answers:
    """What a teacher says of a split, asked as it is read."""

    def __init__(self, teacher, taps, of):
        self.key, self.lenses, self.split = "answers", (), of
        self.teacher, self.taps = teacher, taps

    def read(self, index, view):
        inputs = self.split.batch(index, view).inputs
        return reading(self.teacher, inputs, self.taps, features=True, maps=False)


def parts(student, teacher, held=200, losses=None) -> tuple[Any, ...]:
    """Return a recipe, material and what the teacher said, as `pair_taps` takes them."""
    teacher = teacher.eval()
    taps = find_taps(teacher, torch.zeros(2, 1, 8, 8))
    train, validation = split(200, 1), split(held, 2)
    material = Fake(
        train=train, validation=validation, outputs=tiny.CLASSES, decides="classes", views=1,
        data=Fake(train=Fake(labels=tiny.images(200, seed=1)[1])),
    )  # fmt: skip
    taught = Fake(
        teacher=Fake(taps=taps), train=Answers(teacher, taps, train),
        validation=Answers(teacher, taps, validation), validation_decision=None,
    )  # fmt: skip
    recipe = Recipe.parse(
        {
            "data": {"train": "digits"}, "teacher": {"fit": True},
            "distill": {"losses": losses or {"dist": 1.0, "features": 4.0}},
        }
    )  # fmt: skip
    return recipe, material, taught, student


def features_lost(student, teacher, start):
    """Return what a student loses of the teacher's features in its first step."""
    recipe, material, taught, student = parts(student, teacher)
    paired = pair_taps(recipe, material, taught, student, start=start)
    lesson = build_lesson(recipe, material, taught, student.train(), paired)
    examples = material.train.batch(torch.arange(200), 0)
    said = lesson.read(examples.inputs)
    answer = taught.train.read(torch.arange(200), 0)
    return lesson.objective(said, answer, examples.labels).parts["features"].item()


def test_a_fresh_student_begins_by_what_it_can_say_already():
    """The mean of the teacher's features loses 1; drawn maps lose more, fitted ones less."""
    student, teacher = network(6, 10, seed=1), network(12, 20, seed=2)
    drawn = features_lost(student, teacher, None)
    assert features_lost(student, teacher, student) < min(1.0, drawn)


def test_pairing_and_fitting_leave_the_student_as_it_was():
    student, teacher = network(6, 10, seed=1), network(12, 20)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    recipe, material, taught, _ = parts(student, teacher)
    pair_taps(recipe, material, taught, student, start=student)
    assert student.training
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())


def test_nothing_is_fitted_where_nothing_is_mapped_or_too_little_is_held_out():
    student, teacher = network(6, 10), network(12, 20)
    recipe, material, taught, _ = parts(student, teacher, losses={"dist": 1.0})
    assert not pair_taps(recipe, material, taught, student, start=student).projections
    recipe, material, taught, _ = parts(student, teacher, held=9)
    paired = pair_taps(recipe, material, taught, student, start=student)
    assert paired.pairing is not None and not paired.projections
