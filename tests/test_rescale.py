"""Filters before a batch norm are scaled to one size; what is said stays."""

from __future__ import annotations

import copy

import foreign_net
import pytest
import torch
from test_slice import convnet, images
from torch import nn

from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slices import convnet as slices
from tutelage.students.slices import graph as graph_slices
from tutelage.students.slices.convnet import slice_convnet
from tutelage.students.slices.graph import narrower, slice_graph
from tutelage.students.slices.graph_aims import normed
from tutelage.students.slices.rescale import SIZE, neighbours, rescale
from tutelage.teach.tracing import as_graph


def sizes(pairs):
    return torch.cat(
        [layer.weight.detach().flatten(1).square().mean(1).sqrt() for layer, _ in pairs]
    )


def grown(network, pairs):
    """Return a copy whose filters are ten to eighteen times as large."""
    found = copy.deepcopy(network)
    with torch.no_grad():
        for number, (layer, norm) in enumerate(pairs(found)):
            size = 10.0 + (3 * number + torch.arange(len(layer.weight))) % 9
            layer.weight.mul_(size.view(-1, *[1] * (layer.weight.ndim - 1)))
            norm.running_mean.mul_(size)
            norm.running_var.mul_(size.square())
    return found


def series():
    torch.manual_seed(0)
    spec = ConvNet1dSpec(channels=2, length=40, classes=3, widths=(8, 12), depths=(1, 2))
    return ConvNet1d(spec).eval(), neighbours, torch.randn(64, 2, 40)


def foreign():
    return as_graph(foreign_net.build(), (1, 8, 8), 3), normed, torch.randn(64, 1, 8, 8)


MADE = {
    "plain": lambda: (convnet(), neighbours, images(64)),
    "depthwise": lambda: (convnet("depthwise"), neighbours, images(64)),
    "series": series,
    "foreign": foreign,
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@torch.no_grad()
def test_what_is_said_stays_and_filters_are_of_one_size(made):
    network, pairs, inputs = made()
    large = grown(network, pairs)
    small = copy.deepcopy(large)
    rescale(pairs(small))
    found = sizes(pairs(small))
    assert len(found) > 8
    torch.testing.assert_close(found, torch.full_like(found, SIZE))
    assert not torch.allclose(sizes(pairs(large)), found, rtol=0.5)
    torch.testing.assert_close(small(inputs), large(inputs), rtol=1e-4, atol=1e-4)
    small.train()  # by the statistics of the batch
    large.train()
    torch.manual_seed(0)
    said = small(inputs)
    torch.manual_seed(0)
    torch.testing.assert_close(said, large(inputs), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_step_turns_large_filters_further_once_they_are_scaled():
    network, inputs = convnet(), images(64)
    large = grown(network, neighbours)
    small = copy.deepcopy(large)
    rescale(neighbours(small))

    def turned(student):
        layer = student.stages[0][0].first[0]
        before = layer.weight.flatten(1).clone()
        with torch.enable_grad():
            optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
            student.train()(inputs).logsumexp(1).mean().backward()
            optimizer.step()
        return 1 - torch.cosine_similarity(before, layer.weight.flatten(1)).mean()

    assert turned(small) > 4 * turned(large)


def test_what_another_layer_reads_too_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.other, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(x)
            return self.head((self.norm(x) + self.other(x)).mean((2, 3)))

    assert list(normed(as_graph(Twice().eval(), (1, 8, 8), 3))) == []


@torch.no_grad()
def test_a_filter_of_nothing_and_a_bias_do_no_harm():
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3).eval()
    layer.weight[0] = 0.0
    layer.weight[1:] *= 20
    inputs = torch.randn(8, 1, 6, 6)
    before = norm(layer(inputs))
    rescale([(layer, norm)])
    torch.testing.assert_close(norm(layer(inputs)), before, rtol=1e-4, atol=1e-4)
    assert layer.weight[0].abs().max() == 0


def sliced_convnet():
    whole = convnet()
    return slice_convnet(whole, slices.narrower(whole.spec, 0.5), images(300), fitted=True)


def sliced_graph():
    whole, inputs = foreign()[0], torch.randn(300, 1, 8, 8, generator=torch.Generator())
    return slice_graph(whole, narrower(whole.spec, 0.5), inputs, fitted=True)


@pytest.mark.parametrize(
    ("made", "module", "pairs", "side"),
    [(sliced_convnet, slices, neighbours, 12), (sliced_graph, graph_slices, normed, 8)],
)
def test_fitted_slices_begin_with_filters_of_that_size(made, module, pairs, side, monkeypatch):
    small = made()
    found = sizes(pairs(small))
    torch.testing.assert_close(found, torch.full_like(found, SIZE))
    monkeypatch.setattr(module, "rescale", lambda _: None)
    inputs = torch.randn(64, 1, side, side)
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), made()(inputs), rtol=1e-3, atol=1e-3)
