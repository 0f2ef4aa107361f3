"""Slices whose projections are fitted to the network they were cut from."""

from __future__ import annotations

import copy

import pytest
import torch
from decoders import decoder, said, some_ids
from test_slice_decoder import own_kl, sliced

from tutelage.students.decoders.choice import Parts
from tutelage.students.decoders.network import KINDS
from tutelage.students.decoders.refitting import can_refit, refit
from tutelage.students.decoders.slicing import with_parts

FITTED = [kind for kind in KINDS if kind != "gemma2"]
MANY = some_ids(count=200, seed=3)


def test_units_that_others_speak_for_are_not_missed():
    """Every unit of the first half has a double in the second, which goes."""
    whole = decoder("llama")
    with torch.no_grad():
        for layer in whole.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[12:] = linear.weight[:12]
                linear.bias[12:] = linear.bias[:12]
    units = torch.arange(24.0).flip(0).expand(4, 24)
    small = with_parts(whole, Parts(groups=torch.ones(4, 4), units=units), groups=4, inner=12)
    assert own_kl(small, whole, some_ids()) > 0.05
    refit(small, whole, MANY, ridge=0.0)
    torch.testing.assert_close(said(small), said(whole), atol=2e-3, rtol=0)
    down = whole.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(
        small.layers[0].mlp.down_proj.weight, down[:, :12] + down[:, 12:], atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("sizes", [{"inner": 12}, {"groups": 2}, {"layers": 2}])
def test_a_fitted_slice_says_more_like_the_whole_on_other_texts(kind, sizes):
    whole = decoder(kind)
    small = sliced(whole, **sizes)
    before, state = own_kl(small, whole, some_ids()), copy.deepcopy(small.state_dict())
    refit(small, whole, MANY)
    assert own_kl(small, whole, some_ids()) < 0.97 * before
    moved = {n for n, x in small.state_dict().items() if not torch.equal(x, state[n])}
    assert all(n.endswith(("o_proj.weight", "down_proj.weight")) for n in moved) and moved


def test_a_slice_with_fewer_numbers_is_fitted_in_those_it_has():
    whole = decoder("qwen3", num_attention_heads=4)
    small = sliced(whole, hidden=24, inner=16)
    before = own_kl(small, whole, some_ids())
    refit(small, whole, MANY)
    assert own_kl(small, whole, some_ids()) < before


def test_a_slice_of_a_slice_is_fitted_to_that():
    first = sliced(decoder("mistral"), layers=3, kept=(0, 1, 3))
    second = sliced(first, layers=2, kept=(0, 2))
    before = own_kl(second, first, some_ids())
    refit(second, first, MANY)
    assert second.origin.layers == (0, 3) and own_kl(second, first, some_ids()) < 0.9 * before


def test_what_lost_nothing_stays_as_it_is():
    whole = decoder("llama")
    same = sliced(whole)
    refit(same, whole, MANY)
    torch.testing.assert_close(same.state_dict(), whole.state_dict(), atol=1e-6, rtol=0)


def test_much_ridge_leaves_projections_where_they_are():
    whole = decoder("llama")
    small = sliced(whole, inner=12)
    before = copy.deepcopy(small.state_dict())
    refit(small, whole, MANY, ridge=1e9)
    torch.testing.assert_close(small.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_behind_a_projection_rules_it_out(kind):
    assert can_refit(decoder(kind)) == (kind in FITTED)
