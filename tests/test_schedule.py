"""The schedule is a pure function of the step; the optimizer and the precision follow it."""

import math

import pytest
import torch
from torch import nn

from tutelage import passes
from tutelage.train import schedule as module
from tutelage.train.schedule import Schedule, autocast_dtype, build_optimizer


@pytest.mark.parametrize("shape", ["cosine", "onecycle"])
def test_the_rate_rises_falls_and_ends_at_the_floor(shape):
    plan = Schedule(epochs=1, shape=shape, rate=2.0, warmup=0.2, floor=0.01)
    rates = [plan.rate_at(step, 100) for step in range(100)]
    assert rates == [plan.rate_at(step, 100) for step in range(100)]
    assert max(rates) == rates[19] == rates[20] == 2.0
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < 0.25
    assert plan.rate_at(100, 100) == pytest.approx(0.02)
    # Half way down: the mean of top and floor.
    assert plan.rate_at(60, 100) == pytest.approx((2.0 + 0.02) / 2)


def test_rates_by_hand():
    plan = Schedule(epochs=1, rate=1.0, warmup=0.5, floor=0.0)
    assert plan.rate_at(0, 4) == pytest.approx(0.04 + 0.96 / 2)
    assert [plan.rate_at(step, 4) for step in (1, 2, 3)] == pytest.approx([1.0, 1.0, 0.5])
    cosine = Schedule(epochs=1, rate=1.0, warmup=0.5, floor=0.0, shape="cosine")
    assert cosine.rate_at(0, 4) == pytest.approx(0.5)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.15, 1.0])
def test_the_shortest_trainings_have_a_rate(total, warmup):
    plan = Schedule(epochs=1, warmup=warmup)
    rates = [plan.rate_at(step, total) for step in range(total)]
    assert all(math.isfinite(rate) and 0 < rate <= plan.rate for rate in rates)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_biases_and_norms_are_not_decayed(optimizer):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    made = build_optimizer(list(net.parameters()), Schedule(epochs=1, optimizer=optimizer))
    decayed, plain = made.param_groups
    assert [p.shape for p in decayed["params"]] == [net[0].weight.shape, net[2].weight.shape]
    assert decayed["weight_decay"] == 0.01 and plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4


def test_an_optimizer_may_have_one_kind_only():
    weight = [nn.Parameter(torch.ones(2, 2))]
    assert len(build_optimizer(weight, Schedule(epochs=1)).param_groups) == 1


CPU, WIDE, NARROW = torch.device("cpu"), nn.Linear(8, 64), nn.Linear(64, 8)


@pytest.mark.parametrize("native", [True, False])
def test_the_precision_asked_for_is_used(monkeypatch, native):
    monkeypatch.setattr(module, "native_bf16", lambda device: native)
    for net in (WIDE, NARROW):
        for name, want in (("bf16", torch.bfloat16), ("float32", torch.float32)):
            assert autocast_dtype(net, Schedule(epochs=1, precision=name), CPU) is want


def test_auto_takes_bf16_only_for_wide_layers_on_a_machine_that_has_it(monkeypatch):
    auto = Schedule(epochs=1)
    monkeypatch.setattr(module, "_has_tiles", lambda: False)
    monkeypatch.setattr(passes.torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert autocast_dtype(WIDE, auto, CPU) is torch.bfloat16
    assert autocast_dtype(NARROW, auto, CPU) is torch.float32
    mixed = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 1_000))
    assert autocast_dtype(mixed, auto, CPU) is torch.float32  # the median counts, not the widest
    assert autocast_dtype(nn.BatchNorm2d(64), auto, CPU) is torch.float32
    assert autocast_dtype(WIDE, auto, torch.device("mps")) is torch.float32
    monkeypatch.setattr(passes.torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert autocast_dtype(WIDE, auto, CPU) is torch.float32


def test_tiles_of_bf16_pay_for_narrow_convolutions_but_not_one_by_one(monkeypatch):
    auto = Schedule(epochs=1)
    monkeypatch.setattr(module, "native_bf16", lambda device: True)
    monkeypatch.setattr(module, "_has_tiles", lambda: True)
    plain = nn.Sequential(nn.Conv2d(3, 10, 3), nn.Conv2d(10, 16, 3), nn.Linear(16, 10))
    assert autocast_dtype(plain, auto, CPU) is torch.bfloat16
    thin = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10))
    assert autocast_dtype(thin, auto, CPU) is torch.float32
    depthwise = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64))
    assert autocast_dtype(depthwise, auto, CPU) is torch.float32
    assert autocast_dtype(nn.Linear(8, 40), auto, CPU) is torch.float32
    monkeypatch.setattr(module, "_has_tiles", lambda: False)
    assert autocast_dtype(plain, auto, CPU) is torch.float32


@pytest.mark.parametrize("has", [True, False])
def test_on_a_gpu_the_gpu_decides(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has)
    want = torch.bfloat16 if has else torch.float32
    assert autocast_dtype(NARROW, Schedule(epochs=1), torch.device("cuda")) is want
