"""Pixels and labels from arrays, converted with care."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportArgumentType=false

import numpy as np
import pytest
from test_vision_data import refused, same, some_pixels

from tutelage.tasks.vision.base import make_images


def test_floats_are_converted_with_care():
    levels = np.arange(256).reshape(1, 16, 16)
    same(make_images(levels / 255, [0], source="s"), levels[..., None], [0])
    same(make_images((levels / 255).astype(np.float32), [0], source="s"), levels[..., None], [0])
    same(make_images(levels.astype(np.float32), [0], source="s"), levels[..., None], [0])
    nearly = np.minimum(levels + 0.4, 255)
    same(make_images(nearly, [0], source="s"), levels[..., None], [0])
    same(make_images(levels.astype(np.int64), [0], source="s"), levels[..., None], [0])


@pytest.mark.parametrize(
    "pixels",
    [
        np.linspace(-1, 1, 64),
        np.linspace(0, 16, 64),  # fractions on an unknown scale
        np.linspace(0, 256, 64),
        np.full(64, np.nan),
        np.full(64, 65535, np.uint16),
        np.full(64, -1),
    ],
)
def test_other_pixel_ranges_are_refused(pixels):
    refused("neither 0..1 nor 0..255", make_images, pixels.reshape(1, 8, 8), [0], source="s")


def test_channels_first_and_flat_arrays():
    colour = some_pixels(2, (8, 9, 3))
    same(make_images(colour.transpose(0, 3, 1, 2), [0, 1], source="s"), colour, [0, 1])
    square = some_pixels(2, (8, 8, 1))
    same(make_images(square.reshape(2, 64), [0, 1], source="s"), square, [0, 1])
    same(
        make_images(some_pixels(2, (8, 9, 2)), [0, 1], source="s"),
        some_pixels(2, (8, 9, 2)),
        [0, 1],
    )
    refused("are not images", make_images, np.zeros((2, 2, 2, 2, 2), np.uint8), [0, 1], source="s")


def test_arrays_are_resized():
    found = make_images(np.full((2, 8, 9, 5), 77, np.uint8), [0, 1], source="s", size=(4, 6))
    assert found.shape == (4, 6, 5) and (found.pixels == 77).all()


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, -1, 2], "label -1 of example 1 is out of range"),
        ([0, 1, 70000], "label 70000 of example 2 is out of range"),
        ([0.0, 1.0, 2.0], "labels of type float64"),
        ([0, 1], "3 images but 2 labels"),
        (np.eye(3, dtype=int) * 2, "argmax"),
        ([0, None, 1], "example 1 has no label"),
        (["a", "", "b"], "example 1 has no label"),
    ],
)
def test_bad_labels(labels, text):
    refused(text, make_images, some_pixels(3), labels, source="s")


def test_labels_may_count_from_one():
    same(
        make_images(some_pixels(3), [1, 3, 2], source="s"),
        some_pixels(3),
        [0, 2, 1],
        ("1", "2", "3"),
    )
