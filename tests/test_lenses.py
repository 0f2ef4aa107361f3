"""Lenses say early what the teacher decides at its end."""

import pytest
import torch

from tutelage.teach.lenses import Lens, fit_lens, fit_lenses

N, CHANNELS, CLASSES = 600, 6, 4


def linear_teacher(seed=0, noise=0.0):
    draw = torch.Generator().manual_seed(seed)
    head = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(9))
    x = torch.randn(N, CHANNELS, generator=draw) * torch.tensor([1, 10, 0.1, 1, 3, 1]) + 5
    centred = (x - 5) / torch.tensor([1, 10, 0.1, 1, 3, 1])
    decision = centred @ head.T + noise * torch.randn(N, CLASSES, generator=draw)
    return x, decision


def divergence(lens, x, decision):
    p = decision.softmax(-1)
    return float((p * (p.log() - lens(x).log_softmax(-1))).sum(-1).mean())


def test_a_lens_is_one_linear_map():
    lens = Lens(weight=torch.tensor([[1.0, 2], [0, -1]]), bias=torch.tensor([0.5, 0]), agreement=1)
    assert torch.equal(lens(torch.tensor([[3.0, 1.0]])), torch.tensor([[5.5, -1.0]]))


def test_a_lens_recovers_a_linear_teacher_whatever_the_scales():
    x, decision = linear_teacher()
    lens = fit_lens(x, decision, linear_teacher(1))
    assert lens.weight.shape == (CLASSES, CHANNELS) and lens.bias.shape == (CLASSES,)
    assert lens.agreement > 0.97
    assert divergence(lens, *linear_teacher(1)) < 0.01
    assert not lens.weight.requires_grad and not lens.bias.requires_grad


def test_agreement_is_counted_on_what_was_held_out():
    x, decision = linear_teacher()
    held, said = linear_teacher(1)
    lens = fit_lens(x, decision, (held, said.roll(1, 0)))
    want = (lens(held).argmax(-1) == said.roll(1, 0).argmax(-1)).float().mean()
    assert lens.agreement == pytest.approx(float(want))
    assert lens.agreement < 0.6


def test_the_fit_is_deterministic_and_draws_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (fit_lens(*linear_teacher(), linear_teacher(1)) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_linear_map_nearby_does_better():
    """The objective is convex, so a random step away from the fit must cost."""
    x, decision = linear_teacher(noise=1.0)
    lens = fit_lens(x, decision, linear_teacher(1))
    scale, mean = x.std(0), x.mean(0)

    def cost(weight, bias):
        loss = -(decision.softmax(-1) * (x @ weight.T + bias).log_softmax(-1)).sum(-1).mean()
        return float(loss + 1e-4 * (weight * scale).square().sum())

    best = cost(lens.weight, lens.bias)
    draw = torch.Generator().manual_seed(2)
    for _ in range(20):
        step = 0.05 * torch.randn(lens.weight.shape, generator=draw) / scale
        assert cost(lens.weight + step, lens.bias - step @ mean) > best


def test_half_precision_and_a_dead_channel_are_fine():
    x, decision = linear_teacher()
    x[:, 3] = 0.0
    lens = fit_lens(x.half(), decision, (x, decision))
    assert lens.weight.isfinite().all() and lens.weight.dtype == torch.float32
    assert lens(x.half()).dtype == torch.float32
    assert (lens.weight[:, 3] == 0).all()


def test_each_tap_has_its_own_lens_in_order():
    x, decision = linear_teacher()
    blind = torch.zeros(N, 2)
    lenses = fit_lenses([blind, x], decision, [blind, x], decision)
    assert [lens.weight.shape[1] for lens in lenses] == [2, CHANNELS]
    assert lenses[0].agreement < 0.6 < 0.95 < lenses[1].agreement
    with pytest.raises(ValueError):
        fit_lenses([x], decision, [x, x], decision)
