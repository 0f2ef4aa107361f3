"""Steps of int8 weights: no sum of two products leaves 16 bits, on any processor."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tutelage.export.rounding import TOP, weight_steps


def levels_of(weights, *, summed):
    rows = torch.from_numpy(weights)
    steps = weight_steps(rows, summed=summed).numpy()
    return np.rint(weights / steps.reshape(-1, *[1] * (weights.ndim - 1)))


def test_by_hand():
    rows = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 1.0], [-1.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    assert (weight_steps(rows) * TOP).tolist() == pytest.approx([2.0, 3.0, 2.0, 0.0])
    # 3 + 1 and -1 - 2 are the largest sums of neighbours.
    assert (weight_steps(rows, summed=True) * TOP).tolist() == pytest.approx([2.0, 4.0, 3.0, 0.0])
    assert (weight_steps(rows[:, :1], summed=True) * TOP).tolist() == [1.0, 3.0, 1.0, 0.0]


def test_neighbours_are_channels_then_pixels():
    weight = torch.zeros(1, 2, 1, 2)  # the kernel reads pixel 0 of both channels, then pixel 1
    weight[0, :, 0, 0], weight[0, :, 0, 1] = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 3.0])
    assert float(weight_steps(weight, summed=True) * TOP) == pytest.approx(5.0)
    weight[0, 1, 0, 0] = 4.0  # next to 1.0 below it, and to the 2.0 of the next pixel
    assert float(weight_steps(weight, summed=True) * TOP) == pytest.approx(6.0)


@pytest.mark.parametrize("signs", ["mixed", "positive", "negative"])
def test_two_products_fit_16_bits(signs):
    weights = np.random.default_rng(0).normal(size=(200, 37))
    weights = {"mixed": weights, "positive": abs(weights), "negative": -abs(weights)}[signs]
    sums = 255 * (levels := levels_of(weights, summed=True))[:, 1:] + 255 * levels[:, :-1]
    assert sums.max() <= 2**15 - 1 and sums.min() >= -(2**15)
    loose = levels_of(weights, summed=False)
    assert abs(255 * (loose[:, 1:] + loose[:, :-1])).max() > 2**15


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8, 13, 16, 33])
@pytest.mark.parametrize("kernel", [1, 3])
def test_onnxruntime_adds_up_what_the_integers_say(channels, kernel):
    """Fails on x86 without VNNI where neighbours are not summed; elsewhere it cannot fail."""
    random = np.random.default_rng(channels)
    images = random.integers(200, 256, (2, channels, 7, 7)).astype(np.uint8)
    weights = abs(random.normal(size=(8, channels, kernel, kernel)))
    levels = levels_of(weights, summed=True).astype(np.int8)
    want = torch.nn.functional.conv2d(
        torch.from_numpy(images).double(), torch.from_numpy(levels).double(), padding=kernel // 2
    ).numpy()
    step = np.float32(want.max() / 250)
    names = ["x", "one", "zero", "w", "ones", "none", "step", "zero"]
    values = {"one": np.float32(1), "zero": np.uint8(0), "w": levels, "none": np.int8(0),
              "ones": np.ones(8, np.float32), "step": step}  # fmt: skip
    node = helper.make_node("QLinearConv", names, ["y"], pads=[kernel // 2] * 4)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, images.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, want.shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (said,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})
    assert np.abs(said.astype(int) - np.rint(want / step)).max() <= 1
