"""What a batch is made of is what the key of its signals hangs on."""

import numpy as np
import pytest
import tiny
import torch

from tutelage.pipeline.material import material_of
from tutelage.recipe import Recipe
from tutelage.tasks import find_task
from tutelage.tasks.vision.base import make_images
from tutelage.tasks.vision.task import arrange


def material(*, pixels=None, seed=0, **augment):
    images, labels = tiny.images(60)
    images = images if pixels is None else pixels(images)
    recipe = Recipe.parse({**tiny.recipe({"augment": {"views": 3, **augment}}), "seed": seed})
    arranged = arrange(make_images(images, labels, source="x"), validation_share=0.2, seed=0)
    return material_of(find_task("vision"), arranged, recipe)


def one_byte(images):
    changed = images.copy()
    changed[7, 3, 3, 0] ^= 1
    return changed


def test_the_same_data_has_the_same_content():
    assert material().train.content == material().train.content
    assert material().train.content == material(views=5).train.content


@pytest.mark.parametrize(
    "change", [{"pixels": one_byte}, {"seed": 1}, {"shift": 3}, {"flip": True}, {"mixup": 0.2}]
)
def test_one_changed_byte_augmentation_or_seed_changes_the_content(change):
    assert material(**change).content != material().content
    if "pixels" not in change:  # the byte may have fallen into another split
        assert material(**change).train.content != material().train.content
        # What is never varied does not hang on how the rest is.
        assert material(**change).validation.content == material().validation.content


def test_view_0_is_the_untouched_example_and_others_are_not():
    made = material(shift=2, erase=0.2)
    index = torch.arange(made.train.count)
    first, again = made.train.batch(index, 0), made.train.batch(index, 0)
    want = made.normalisation.apply(made.data.train.pixels)
    assert torch.equal(first.inputs, want) and torch.equal(again.inputs, first.inputs)
    second = made.train.batch(index, 1)
    assert not torch.equal(second.inputs, first.inputs)
    assert torch.equal(second.inputs, made.train.batch(index, 1).inputs)
    assert not torch.equal(second.inputs, made.train.batch(index, 2).inputs)
    held = made.validation.batch(torch.arange(made.validation.count), 2)
    assert torch.equal(held.inputs, made.normalisation.apply(made.data.validation.pixels))


def test_what_a_teacher_is_fitted_on_is_never_mixed():
    plain, made = material(shift=2), material(shift=2, mixup=0.3)
    index = torch.arange(made.train.count)
    assert made.labelled is not None and plain.labelled is plain.train
    assert made.labelled.content == plain.train.content != made.train.content
    want = plain.train.batch(index, 1).inputs
    assert torch.equal(made.labelled.batch(index, 1).inputs, want)
    assert not torch.equal(made.train.batch(index, 1).inputs, want)


def test_an_example_does_not_hang_on_its_neighbours_in_the_batch():
    made = material(shift=2, mixup=0.3)
    whole = made.train.batch(torch.arange(made.train.count), 2)
    some = made.train.batch(torch.tensor([9, 4, 30]), 2)
    assert torch.equal(some.inputs, whole.inputs[[9, 4, 30]])
    assert some.labels is not None and np.array_equal(some.index, [9, 4, 30])
