"""The student's logits are scaled to the teacher's confidence, and no decision changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tutelage.train.confidence import fit_scale, scale_logits


def test_scale_is_found_again():
    torch.manual_seed(0)
    teacher = torch.randn(500, 5)
    assert fit_scale(teacher / 7, teacher) == pytest.approx(7, rel=1e-3)
    assert fit_scale(teacher * 20, teacher) == pytest.approx(0.05, rel=1e-3)


def test_scale_of_one_example_by_hand():
    # softmax(s (1, 0)) = (0.8, 0.2) where s = ln 4.
    teacher = torch.tensor([[math.log(0.8), math.log(0.2)]])
    assert fit_scale(torch.tensor([[1.0, 0.0]]), teacher) == pytest.approx(math.log(4), rel=1e-3)


def test_sure_and_right_student_stays_bounded():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert 1 < fit_scale(logits, 1e6 * logits) <= 1_000


def test_logits_that_are_not_finite_are_left_alone():
    assert fit_scale(torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2)) == 1.0


def test_last_linear_layer_is_scaled():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    example = torch.randn(6, 4)
    before, first = network(example), network[0].weight.clone()
    assert scale_logits(network, 2.5, example)
    torch.testing.assert_close(network(example), 2.5 * before)
    assert torch.equal(network[0].weight, first)


class _Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.head(x))


@pytest.mark.parametrize("network", [_Normed(), nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())])
def test_other_heads_are_left_as_they_are(network: nn.Module):
    example = torch.randn(2, 4) if isinstance(network, _Normed) else torch.randn(2, 1, 2, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not scale_logits(network, 2.0, example)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
