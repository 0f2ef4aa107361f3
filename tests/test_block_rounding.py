"""Weights rounded as a GGUF file rounds them: the same numbers, felt while a network learns."""

from __future__ import annotations

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from language_samples import Speech, rows  # noqa: E402
from torch import nn  # noqa: E402

from tutelage.devices.gguf_sizes import QUANTIZATIONS, stored_type  # noqa: E402
from tutelage.export.block_rounding import rounded  # noqa: E402
from tutelage.train.block_rounding import block_rounded  # noqa: E402
from tutelage.train.language import LanguageLesson  # noqa: E402


def weights(rows=64, columns=96):
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    drawn[0] = 0
    drawn[1, :32] = 0.25  # one number alone
    drawn[2, :32] = torch.arange(-8, 8).repeat_interleave(2) * 0.5  # ties
    drawn[3, :32] = torch.linspace(0, 3e-38, 32)  # too small for a scale
    return drawn


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_it_says_what_is_read_back_from_a_file(quantization):
    given = weights()
    stored = stored_type("model.layers.0.mlp.up_proj.weight", tuple(given.shape), quantization)
    kind = gguf.GGMLQuantizationType(stored.number)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(gguf.quants.quantize(given.numpy(), kind), kind)
    assert np.array_equal(rounded(given, stored).numpy(), want)
    assert torch.equal(given, weights())


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.odd = nn.Embedding(8, 32), nn.Linear(32, 33), nn.Linear(33, 2)

    def forward(self, ids):
        return self.odd(self.up(self.embed(ids)))


def test_a_network_computes_with_rounded_weights_and_keeps_its_own():
    network = Small()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    want = rounded(network.up.weight, stored_type("up.weight", (33, 32), "q4_0"))
    with block_rounded(network, "q4_0"):
        assert torch.equal(network.up.weight, want) and not torch.equal(want, before["up.weight"])
        assert torch.equal(network.odd.weight, before["odd.weight"])  # f16: 32 does not divide it
        network(torch.arange(8)).sum().backward()
        (learns,) = (p for n, p in network.named_parameters() if "up" in n and "weight" in n)
        assert torch.equal(learns, before["up.weight"]) and learns.grad.abs().sum() > 0
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_eight_bits_and_more_are_not_felt(quantization):
    network = Small()
    with block_rounded(network, quantization):
        assert not any("parametrizations" in name for name, _ in network.named_modules())


def test_a_lesson_is_named_by_the_rounding_that_it_feels():
    student, keys = Speech(), []
    student.layers.append(nn.Linear(32, 32))
    for quantization in ("f16", "q8_0", "q5_1", "q4_1"):
        with block_rounded(student, quantization):
            made = LanguageLesson(
                student, rows(4), rows(4, seed=1), losses={"token_cross_entropy": 1.0}, batch=2,
                seed=0,
            )  # fmt: skip
        keys.append(made.key)
    assert len(set(keys)) == 3 and keys[0] == keys[1]
