"""Splits of images: disjoint, stratified, a function of seed and content."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportArgumentType=false

import numpy as np
import pytest
from test_vision_data import names_of, refused, some_images, some_labels, some_pixels, write_folder

from tutelage.errors import RecipeError
from tutelage.tasks.vision.base import make_images
from tutelage.tasks.vision.task import arrange, load


def test_splits_are_disjoint_complete_and_stratified():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    images = make_images(some_pixels(1000, (8, 8, 1)), labels, source="s")
    data = arrange(images, validation_share=0.1, seed=3)
    parts = [data.train, data.validation, data.test]
    assert [np.bincount(part.labels).tolist() for part in parts] == [
        [432, 216, 72], [48, 24, 8], [120, 60, 20]
    ]  # fmt: skip
    assert sum(len(names_of(part)) for part in parts) == 1000
    assert set.union(*(names_of(part) for part in parts)) == names_of(images)
    for part in parts:
        where = {image.tobytes(): label for image, label in zip(images.pixels, labels, strict=True)}
        assert [where[image.tobytes()] for image in part.pixels] == part.labels.tolist()


def test_split_is_a_function_of_seed_and_content():
    images = some_images()
    order = np.random.default_rng(5).permutation(300)
    a, b, c = arrange(images), arrange(images.take(order)), arrange(images, seed=1)
    for split in ("train", "validation", "test"):
        assert names_of(getattr(a, split)) == names_of(getattr(b, split))
        assert names_of(getattr(a, split)) != names_of(getattr(c, split))
    assert arrange(images).train.fingerprint == a.train.fingerprint


def test_equal_images_fall_on_one_side():
    images = some_images(303)  # 303 of each class with copies, whose fifth parts a triple
    data = arrange(images.take(np.repeat(np.arange(303), 3)))
    assert len(data.train) + len(data.validation) + len(data.test) == 909  # duplicates are kept
    assert not names_of(data.train) & names_of(data.test)
    assert not names_of(data.train) & names_of(data.validation)
    assert data.notes == ()


def test_overlap_is_noted_or_refused():
    train, other = some_images(300), some_images(200, seed=1)
    for shared, verdict in ((0, ()), (2, 1), (3, None)):
        pixels = other.pixels.copy()
        pixels[:shared] = train.pixels[:shared]
        test = make_images(pixels, other.labels, source="other")
        if verdict is None:
            message = refused("remove the duplicates", arrange, train, test=test)
            assert "3 of 200 test images of other are also training images of set0" in message
        else:
            notes = arrange(train, test=test).notes
            assert len(notes) == (verdict or 0)


def test_overlap_found_before_validation_is_taken_out():
    train = some_images(300)
    refused("300 of 300", arrange, train, test=train)


def test_test_labels_follow_the_class_names(tmp_path):
    write_folder(tmp_path / "a", some_pixels(12), some_labels())
    write_folder(tmp_path / "b", some_pixels(4, seed=1), [0, 1, 0, 1], ("bee", "cat"))
    data = load(tmp_path / "a", tmp_path / "b")
    assert data.test.classes == data.train.classes == ("ant", "bee", "cat")
    assert data.test.labels.tolist() == [1, 1, 2, 2]
    write_folder(tmp_path / "b", some_pixels(2, seed=2), [0, 0], ("dog",))
    refused("the class 'dog', which is not among", load, tmp_path / "a", tmp_path / "b")


def test_test_of_another_shape_or_label_range():
    train = some_images()
    refused("8x9x3", arrange, train, test=some_images(30, shape=(8, 9, 3)))
    wide = make_images(some_pixels(30, (8, 8, 1), 1), some_labels(30, 5), source="wide")
    refused("the class '3'", arrange, train, test=wide)
    bare = make_images(some_pixels(30, (8, 8, 1), 1), None, source="bare")
    refused("has no labels", arrange, train, test=bare)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_bad_share(share):
    with pytest.raises(RecipeError, match="validation_share"):
        arrange(some_images(), validation_share=share)
