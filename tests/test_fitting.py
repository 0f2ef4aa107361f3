"""Layers of slices are fitted to the network's: in order, on what they read by then."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from test_slice import convnet, images
from torch import nn

from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.families.encoder import Encoder, EncoderSpec
from tutelage.students.slices import fitting
from tutelage.students.slices.channels import cut, recalibrated
from tutelage.students.slices.convnet import slice_convnet
from tutelage.students.slices.encoder import slice_encoder
from tutelage.students.slices.fitting import fit, own


def apart(one, other, inputs):
    with torch.no_grad():
        return float((one(inputs) - other(inputs)).square().mean())


class Doubled(nn.Module):
    """Each channel comes twice; grouped, strided and dilated convolutions read them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2)
        self.third = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            for layer in (self.first, self.second, self.third):
                layer.weight[4:] = layer.weight[:4]
                if layer.bias is not None:
                    layer.bias[4:] = layer.bias[:4]

    def forward(self, x):
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def test_channels_that_others_speak_for_are_not_missed():
    whole = Doubled().eval()
    small, half = copy.deepcopy(whole), torch.arange(4)
    with torch.no_grad():
        for name in ("first", "second", "third"):
            layer = getattr(small, name)
            read = half if name == "second" else torch.arange(layer.weight.shape[1])
            layer.weight = nn.Parameter(layer.weight[half][:, read])
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias[half])
        small.third.groups = 4
        small.head.weight = nn.Parameter(small.head.weight[:, half])
    kept = {"first": half, "second": half, "third": half, "head": torch.arange(3)}
    before = apart(small, whole, images(64))
    first = small.first.weight.clone()
    fit(small, whole, own(kept), images(300))
    assert apart(small, whole, images(64)) < 1e-2 * before
    torch.testing.assert_close(small.first.weight, first, atol=1e-5, rtol=0)  # lost nothing
    sums = whole.second.weight[:4, :4] + whole.second.weight[:4, 4:]
    torch.testing.assert_close(small.second.weight, sums, atol=0.02, rtol=0)


@pytest.mark.parametrize("block", ["plain", "depthwise"])
def test_a_fitted_slice_decides_more_like_the_network_on_other_images(block):
    whole = convnet(block, widths=(8, 16))
    spec = dataclasses.replace(whole.spec, widths=(6, 12))
    inputs, others = images(300), torch.randn(100, 1, 12, 12)
    plain = slice_convnet(whole, spec, inputs)
    fitted = slice_convnet(whole, spec, inputs, fitted=True)
    before = min(apart(n, whole, others) for n in (plain, recalibrated(plain, inputs)))
    assert apart(fitted, whole, others) < 0.7 * before
    for mine, theirs in zip(fitted.modules(), plain.modules(), strict=True):
        if isinstance(mine, nn.BatchNorm2d):  # their statistics still hold, of filters scaled
            means = [norm.running_mean / norm.running_var.sqrt() for norm in (mine, theirs)]
            torch.testing.assert_close(*means)
    assert all(torch.isfinite(x).all() for x in fitted.state_dict().values())


@pytest.mark.parametrize("block", ["plain", "separable"])
def test_series_are_fitted_alike(block):
    torch.manual_seed(0)
    spec = ConvNet1dSpec(
        channels=2, length=40, classes=3, widths=(8, 12), depths=(1, 2), block=block
    )
    whole, inputs = ConvNet1d(spec), torch.randn(300, 2, 40)
    with torch.no_grad():
        whole.train()(inputs)
    smaller, others = dataclasses.replace(spec, widths=(6, 8)), torch.randn(100, 2, 40)
    plain = slice_convnet(whole.eval(), smaller, inputs)
    fitted = slice_convnet(whole, smaller, inputs, fitted=True)
    assert apart(fitted, whole, others) < 0.8 * apart(plain, whole, others)


def test_what_is_left_makes_up_for_blocks_that_went():
    """What the second block adds is a linear function of what the first one's last layer reads."""
    for block in ("plain", "depthwise"):
        whole = convnet(block, widths=(8, 16), depths=(2, 2))
        spec = dataclasses.replace(whole.spec, depths=(1, 1))
        inputs, others = images(300), torch.randn(100, 1, 12, 12)
        cut = slice_convnet(whole, spec, inputs)
        fitted = slice_convnet(whole, spec, inputs, fitted=True)
        assert apart(fitted, whole, others) < 0.5 * apart(cut, whole, others)


def test_the_network_that_is_sliced_stays_as_it_was():
    whole = convnet(widths=(8, 16), depths=(2, 2)).train()
    before = copy.deepcopy(whole.state_dict())
    spec = dataclasses.replace(whole.spec, widths=(6, 12), depths=(1, 2))
    fitted = slice_convnet(whole, spec, images(300), fitted=True)
    assert whole.training and not fitted.training
    torch.testing.assert_close(dict(whole.state_dict()), dict(before), atol=0, rtol=0)


def test_a_sum_is_met_where_what_is_added_to_it_was_lost():
    """The shortcut lost half of what it carried; the block's last layer writes it instead."""
    torch.manual_seed(0)
    whole = convnet(widths=(8,), depths=(1,)).eval()
    small = copy.deepcopy(whole)
    with torch.no_grad():
        small.stem[0].weight[4:] = 0.0
    aims = {
        "stages.0.0.second.0": fitting.Aim(
            outputs=torch.arange(8), of="stages.0.0.relu", reads=True, rest="stages.0.0",
            through="stages.0.0.shortcut", norm="stages.0.0.second.1",
        )
    }  # fmt: skip
    before = apart(small, whole, images(64))
    fit(small, whole, aims, images(300))
    assert apart(small, whole, images(64)) < 0.5 * before


def test_which_outputs_stayed_is_told():
    whole = convnet(widths=(8, 12))
    small, kept = cut(whole, images(), lambda _, channels: channels // 2)
    stem = kept["stem.0"]
    assert torch.equal(small.get_submodule("stem.0").weight, whole.stem[0].weight[stem])
    layers = (nn.Conv2d, nn.Linear)
    assert set(kept) == {n for n, m in whole.named_modules() if isinstance(m, layers)}
    assert kept["head"].tolist() == list(range(5))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_of_texts_pads_do_not_count(norm):
    torch.manual_seed(0)
    spec = EncoderSpec(
        vocabulary=50, length=12, classes=4, layers=2, hidden=32, heads=4, inner=64, norm=norm,
        embedding=16,
    )  # fmt: skip
    whole = Encoder(spec).eval()
    ids = torch.randint(1, 50, (400, 12))
    lengths = torch.randint(2, 12, (400, 1))
    ids[torch.arange(12) >= lengths] = 0
    smaller = dataclasses.replace(spec, hidden=24, heads=3, inner=40, embedding=12)
    plain, fitted = (
        slice_encoder(whole, smaller, ids[:300], fitted=flag) for flag in (False, True)
    )  # fmt: skip
    assert apart(fitted, whole, ids[300:]) < 0.7 * apart(plain, whole, ids[300:])
    longer = EncoderSpec(**{**dataclasses.asdict(spec), "length": 24})
    wide = Encoder(longer).eval()
    state = whole.state_dict() | {"positions": torch.cat([whole.positions, whole.positions])}
    wide.load_state_dict(state)
    padded = torch.cat([ids, torch.zeros_like(ids)], dim=1)
    other = dataclasses.replace(smaller, length=24)
    more = slice_encoder(wide, other, padded[:300], fitted=True)
    near = apart(more, wide, padded[300:])
    assert near < 1.5 * apart(fitted, whole, ids[300:])


def test_of_large_maps_fewer_examples_are_taken_and_more_of_each(monkeypatch):
    whole = convnet(widths=(8, 16))
    spec, inputs = dataclasses.replace(whole.spec, widths=(6, 12)), images(300)
    plain = slice_convnet(whole, spec, inputs)
    seen, real = [], fitting._Fitting.move
    monkeypatch.setattr(
        fitting._Fitting, "move", lambda self, some: seen.append(len(some)) or real(self, some)
    )
    monkeypatch.setattr(fitting, "_NUMBERS", 8 * 144 * 100)  # maps of the stem, of 100 examples
    fitted = slice_convnet(whole, spec, inputs, fitted=True)
    assert seen == [100]
    assert apart(fitted, whole, images(64)) < apart(plain, whole, images(64))


def test_what_pads_otherwise_stays_and_empty_texts_do_no_harm():
    torch.manual_seed(0)
    spec = EncoderSpec(vocabulary=50, length=8, classes=4, layers=1, hidden=32, heads=4, inner=32)
    whole, ids = Encoder(spec).eval(), torch.randint(1, 50, (100, 8))
    ids[3:40] = 0
    smaller = dataclasses.replace(spec, hidden=24, heads=3)
    fitted = slice_encoder(whole, smaller, ids, fitted=True)
    assert all(torch.isfinite(x).all() for x in fitted.state_dict().values())
    one = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"))
    two = copy.deepcopy(one)
    with torch.no_grad():
        two[0].weight.mul_(2.0)
    fit(one, two, own({"0": torch.arange(4)}), images(50))
    torch.testing.assert_close(one[0].weight * 2, two[0].weight)
