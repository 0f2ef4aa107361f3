"""A teacher that numbers its classes otherwise than the data does."""

import json

import numpy as np
import pytest
import tiny
import torch

from tutelage.errors import RecipeError, TeacherError
from tutelage.pipeline.class_order import class_order, refuse_other_order
from tutelage.teach.torch_teacher import Reordered, TorchTeacher

NAMES = ("bag", "boot", "coat")


def test_the_order_gives_the_teachers_number_of_each_class():
    assert class_order(["coat", "bag", "boot"], NAMES) == [1, 2, 0]


@pytest.mark.parametrize("named", [["bag", "boot"], ["bag", "boot", "hat"], ["bag"] * 3])
def test_other_names_are_refused(named):
    with pytest.raises(RecipeError, match=r"teacher\.classes must name"):
        class_order(named, NAMES)


def test_a_permuted_teacher_is_refused_with_its_own_order():
    labels = np.arange(300) % 3
    said = np.array([1, 2, 0])[labels]  # teacher's 0 is coat, 1 is bag, 2 is boot
    with pytest.raises(TeacherError, match=r'classes: \["coat", "bag", "boot"\]') as caught:
        refuse_other_order(said, labels, NAMES)
    assert "right on 0%" in str(caught.value) and "on 100%" in str(caught.value)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_a_teacher_that_is_right_or_that_guesses_is_not_suspected(share):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    said = np.where(random.random(600) < share, labels, random.integers(0, 3, 600))
    refuse_other_order(said, labels, NAMES)


def test_the_datas_own_order_in_the_recipe_is_an_answer():
    labels = np.arange(300) % 3
    refuse_other_order((labels + 1) % 3, labels, NAMES, NAMES)


def test_reordered_rearranges_decisions_and_changes_the_fingerprint():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    teacher = TorchTeacher(module, classes=3, image_shape=(1, 2, 2), taps=[])
    other, inputs = Reordered(teacher, [1, 2, 0]), torch.randn(5, 1, 2, 2)
    assert torch.equal(other.read(inputs).decision, teacher.read(inputs).decision[:, [1, 2, 0]])
    assert other.fingerprint != teacher.fingerprint


def test_the_recipes_order_is_used_in_a_run(finished, job, tmp_path):
    names = json.loads((finished.run / "run.json").read_text())["stages"]["data"]["result"][
        "classes"
    ]
    teacher = {"source": str(finished.run / "teacher"), "classes": names[::-1]}
    said = tiny.cli("run", job({"teacher": teacher}), "--run", tmp_path / "run")
    assert said.status == 2 and "in another order" not in said.out
    assert f'teacher.classes: ["{names[0]}"' in said.err
