"""Strided pointwise convolutions: the same mathematics, and no death by two threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from tutelage.students.strided import sliced_strides

TRAINING = """
import torch
from torch import nn
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

class Lesson:
    key = "k"

    def __init__(self):
        self.modules = (nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 14, 1, 2)),)

    def doubt(self, figure):
        return 0.0

    def steps(self):
        return 60

    def batches(self, epoch, first):
        for step in range(first, 60):
            yield torch.randn(53, 1, 28, 28).to(memory_format=torch.channels_last)

    def loss(self, batch):
        return self.modules[0](batch).square().mean(), {}

    def evaluate(self, modules):
        return 0.0

torch.set_num_threads(2)
Trainer(Lesson(), Schedule(epochs=1, precision="float32")).train()
"""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 1, (2, 3)), nn.Conv2d(6, 6, 1, 2, groups=2)
    )


def gradients(network: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    output = network(inputs)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def test_output_and_gradients_are_those_of_the_plain_convolution():
    network, inputs = net(), torch.randn(3, 2, 9, 11)
    plain = gradients(network, inputs)
    with sliced_strides((network, network)):
        assert network[1].stride == (1, 1) and network[2].stride == (1, 1)
        sliced = gradients(network, inputs)
    for a, b in zip(plain, sliced, strict=True):
        torch.testing.assert_close(a, b)


def test_all_is_as_before_after_an_error():
    network = net()
    with pytest.raises(RuntimeError), sliced_strides((network,)):
        network(torch.randn(1, 3, 4, 4))
    assert network[1].stride == (2, 3) and not network[1]._forward_pre_hooks
    assert network(torch.randn(1, 2, 9, 11)).shape == (1, 6, 3, 2)


def test_training_with_two_threads_survives():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
