"""Slicing: channels that go together go together, and what stays is the network's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tutelage.errors import StudentError
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slices import channels
from tutelage.students.slices.channels import (
    cut,
    even_share,
    importance,
    recalibrated,
)
from tutelage.students.slices.convnet import blocks_that_stay, is_part, slice_convnet, with_blocks


def convnet(block="plain", widths=(8, 12), depths=(2, 2), classes=5, seed=0, **knobs):
    torch.manual_seed(seed)
    spec = ConvNetSpec(
        image=(1, 12, 12), classes=classes, widths=widths, depths=depths, block=block, **knobs
    )
    network = ConvNet(spec)
    network.train()
    with torch.no_grad():
        for _ in range(3):  # statistics of the norms that are not the first ones
            network(torch.randn(16, 1, 12, 12))
    return network.eval()


def images(count=32):
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def slice_channels(network, examples, share):
    return cut(network, examples, lambda _, channels: even_share(channels, share))[0]


class Joined(nn.Module):
    """Two convolutions side by side, whose channels are put one after the other and normed."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 6, 3, padding=1)
        self.right = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.mix = nn.Conv2d(14, 10, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        both = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.mix(self.norm(both).relu()).mean((2, 3)))


@pytest.mark.parametrize("block", ["plain", "depthwise"])
def test_the_whole_share_is_the_same_network(block):
    teacher = convnet(block)
    whole = slice_channels(teacher, images(), 1.0)
    assert whole is not teacher
    assert torch.equal(whole(images()), teacher(images()))
    spec = ConvNetSpec(**{f: getattr(teacher.spec, f) for f in teacher.spec.__slots__})
    again = slice_convnet(teacher, spec, images())
    assert torch.equal(again(images()), teacher(images()))


@pytest.mark.parametrize("block", ["plain", "depthwise"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_every_layer_keeps_its_share_and_the_decision_all_its_outputs(block, share):
    teacher = convnet(block, widths=(8, 16))
    small = slice_channels(teacher, images(), share)
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d):
            before = teacher.get_submodule(name).out_channels
            assert module.out_channels == even_share(before, share), name
            if module.groups > 1:
                assert module.groups == module.in_channels == module.out_channels
    assert small(images()).shape == (32, 5)
    assert teacher.spec.widths == (8, 16)  # the network itself is left as it was
    assert teacher.stem[0].out_channels == 8


def test_shares_are_even_and_never_none():
    assert [even_share(16, s) for s in (1, 0.5, 0.3, 0.01)] == [16, 8, 4, 2]
    assert (even_share(7, 1), even_share(1, 0.5)) == (7, 1)


@pytest.mark.parametrize("block", ["plain", "depthwise"])
def test_what_stays_is_the_teachers_own_rows(block):
    teacher = convnet(block)
    small = slice_channels(teacher, images(), 0.5)
    rows = {tuple(row.flatten().tolist()): i for i, row in enumerate(teacher.stem[0].weight)}
    kept = [rows[tuple(row.flatten().tolist())] for row in small.stem[0].weight]
    assert kept == sorted(kept) and len(kept) == 4
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(small.stem[1], name), getattr(teacher.stem[1], name)[kept])
    inside = "first" if block == "plain" else "expand"
    mine, theirs = (getattr(n.stages[0][0], inside)[0].weight for n in (small, teacher))
    columns = theirs[:, kept]
    assert all(any(torch.equal(row, other) for other in columns) for row in mine)


def test_dead_channels_go_first_and_change_nothing():
    teacher = convnet()
    dead = [1, 4, 6, 7]
    with torch.no_grad():  # the inner channels of one block that are always 0
        norm = teacher.stages[0][0].first[1]
        norm.weight[dead], norm.bias[dead] = 0.0, 0.0
    target = "stages.0.0.first.0"
    small, _ = cut(teacher, images(), lambda name, n: 4 if name == target else n)
    assert small.get_submodule(target).out_channels == 4
    assert torch.allclose(small(images()), teacher(images()), atol=1e-6)


def test_importance_is_the_fisher_information_of_a_gate():
    layer = nn.Linear(2, 2, bias=False)  # the gates of logits z: d log p(y) / d m_c
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    x = torch.tensor([[0.5, 0.25]])  # z = (0.5, 0.5), p = (0.5, 0.5)
    found = importance(layer, x)[layer]  # +-0.5 x 0.5, the sign by the label that is drawn
    assert found.abs().tolist() == [[0.25, 0.25]]
    assert found.sum() == 0


def test_channels_side_by_side_are_cut_in_their_norm():
    torch.manual_seed(0)
    network = Joined().eval()
    small = slice_channels(network, images(), 0.5)
    shapes = [small.left.out_channels, small.right.out_channels, small.norm.num_features]
    assert shapes == [4, 4, 8]
    assert (small.mix.in_channels, small.mix.out_channels) == (8, 4)
    assert small(images()).shape == (32, 3)


def test_of_a_grouped_convolution_each_group_loses_the_same_channels():
    torch.manual_seed(0)
    network = Odd(nn.Conv2d(8, 8, 3, groups=2)).eval()
    small = slice_channels(network, images(), 0.5)
    assert (small.layer.in_channels, small.layer.out_channels, small.layer.groups) == (4, 4, 2)
    assert small.layer.weight.shape == (4, 2, 3, 3)
    flat = network.conv.weight.flatten(1).tolist()
    first = [flat.index(row.tolist()) for row in small.conv.weight.flatten(1)]
    assert [i + 4 for i in first[:2]] == first[2:] and max(first[:2]) < 4


class Odd(nn.Module):
    def __init__(self, layer, fails=False) -> None:
        super().__init__()
        self.conv, self.layer, self.fails = nn.Conv2d(1, 8, 3), layer, fails
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x)
        if self.fails:
            x = x.detach().numpy()  # not on a network that autograd can follow
            x = torch.from_numpy(x).requires_grad_(True).view(x.shape[0], 8, 10, 10)
        return self.head(self.layer(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), "it has no convolution"),
        (Odd(nn.GroupNorm(2, 8)), "'layer' is a GroupNorm"),
        (Odd(nn.Conv2d(8, 4, 1, groups=4)), "convolution of 4 groups"),
        (Odd(nn.Identity(), fails=True), "does not follow from 'conv'"),
    ],
    ids=["dense", "norm", "groups", "untraced"],
)
def test_what_cannot_be_sliced_is_refused_in_one_line(network, why):
    with pytest.raises(StudentError, match="Choose student.space: compact") as caught:
        slice_channels(network, images(), 0.5)
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("block", ["plain", "depthwise"])
def test_a_sliced_convnet_is_a_convnet_of_its_spec(block):
    teacher = convnet(block, depths=(2, 3))
    spec = ConvNetSpec(image=(1, 12, 12), classes=5, widths=(6, 4), depths=(1, 2), block=block)
    small = slice_convnet(teacher, spec, images())
    again = ConvNet(small.spec)
    again.load_state_dict(small.state_dict())
    assert small.spec == spec
    assert torch.equal(again.eval()(images()), small(images()))


@pytest.mark.parametrize("block", ["plain", "separable"])
@pytest.mark.parametrize("expand", [1, 2])
def test_a_sliced_network_of_series_is_of_its_spec(block, expand):
    torch.manual_seed(0)
    whole = ConvNet1dSpec(
        channels=2, length=40, classes=4, widths=(8, 12), depths=(2, 3), block=block, expand=expand
    )
    teacher = ConvNet1d(whole).eval()
    series = torch.randn(32, 2, 40, generator=torch.Generator().manual_seed(1))
    spec = dataclasses.replace(whole, widths=(6, 4), depths=(1, 2))
    assert is_part(spec, whole)
    small = slice_convnet(teacher, spec, series)
    assert small.spec == spec and small(series).shape == (32, 4)
    again = ConvNet1d(spec)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(series), small(series))
    same = slice_convnet(teacher, whole, series)
    assert torch.equal(same(series), teacher(series))


def test_what_is_part_of_what():
    whole = ConvNetSpec(image=(1, 12, 12), classes=5, widths=(8, 12), depths=(2, 2))
    for knobs, yes in (
        ({}, True),
        ({"widths": (8, 10)}, True),
        ({"depths": (1, 2)}, True),
        ({"widths": (8, 14)}, False),
        ({"depths": (2, 3)}, False),
        ({"widths": (8, 12, 12), "depths": (2, 2, 2)}, False),
        ({"block": "depthwise"}, False),
        ({"classes": 4}, False),
    ):
        assert is_part(dataclasses.replace(whole, **knobs), whole) is yes, knobs
    series = ConvNet1dSpec(
        channels=1, length=40, classes=5, widths=(8, 12), depths=(2, 2), block="inception"
    )
    assert not is_part(series, series)
    assert not is_part(series, whole)


def test_the_block_that_is_missed_least_goes_first():
    teacher = convnet(depths=(1, 3))
    with torch.no_grad():  # what block 1 of stage 1 adds is nothing
        teacher.stages[1][1].second[1].weight.zero_()
        teacher.stages[1][1].second[1].bias.zero_()
    stay = blocks_that_stay(teacher, (1, 2), images())
    fewer = with_blocks(teacher, stay)
    assert stay == ((0,), (0, 2))
    assert torch.equal(fewer(images()), teacher(images()))
    assert fewer.spec.depths == (1, 2) and len(teacher.stages[1]) == 3
    least = blocks_that_stay(teacher, (1, 1), images())
    assert least == ((0,), (0,))  # the first changes shapes, and stays


def test_norms_are_recalibrated_to_the_examples():
    teacher = convnet()
    small = slice_channels(teacher, images(), 0.5)
    found = recalibrated(small, images())
    read = small.stem[0](images())
    assert torch.allclose(found.stem[1].running_mean, read.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(found.stem[1].running_var, read.var((0, 2, 3)), atol=1e-5)
    assert found.stem[1].momentum == small.stem[1].momentum and not found.training
    for (name, before), after in zip(small.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_what_channels_count_is_found_once_where_it_is_remembered(monkeypatch):
    asked = []
    find = channels.importance
    monkeypatch.setattr(channels, "importance", lambda *a: asked.append(1) or find(*a))
    teacher, other = convnet(), convnet(seed=1)
    alone = [slice_channels(teacher, images(), share).state_dict() for share in (0.75, 0.5)]
    with channels.remembering():
        again = [slice_channels(teacher, images(), share).state_dict() for share in (0.75, 0.5)]
        slice_channels(other, images(), 0.5)
    torch.testing.assert_close(again, alone, atol=0, rtol=0)
    assert len(asked) == 2 + 1 + 1
