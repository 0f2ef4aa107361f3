"""Language models with fewer layers, units, groups and tokens: what stays is the network's own."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from decoders import decoder, said, some_ids
from text_samples import refused
from torch import nn

from tutelage.students.decoders.choice import Parts, changes_without, depths_by_kl, energies
from tutelage.students.decoders.network import KINDS
from tutelage.students.decoders.sizes import with_sizes
from tutelage.students.decoders.slicing import slice_decoder, with_layers, with_parts


def sliced(whole, *, tokens=None, kept=None, **sizes):
    wanted = with_sizes(whole.spec, **sizes)
    return slice_decoder(whole, wanted, some_ids(), vocabulary=tokens, kept=kept)


def without(whole, gone):
    """Return a copy whose layers `gone` add nothing; their places stay."""
    masked = copy.deepcopy(whole)
    with torch.no_grad():
        for number in gone:
            layer = masked.layers[number]
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.zero_()
                if linear.bias is not None:
                    linear.bias.zero_()
    return masked


def own_kl(small, whole, ids):
    own, other = (said(network, ids).log_softmax(-1) for network in (whole, small))
    return float((own.exp() * (own - other)).sum(-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_is_the_same_network(kind):
    whole = decoder(kind)
    same = sliced(whole)
    assert torch.equal(said(same), said(whole)) and same.spec == whole.spec
    assert same.network is not whole.network
    every = sliced(whole, tokens=torch.arange(61))
    assert torch.equal(said(every), said(whole)) and every.spec == whole.spec


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_layers_skips_them(kind):
    whole = decoder(kind)
    small = sliced(whole, layers=2, kept=(0, 3))
    torch.testing.assert_close(said(small), said(without(whole, (1, 2))))
    types = whole.spec.config.get("layer_types")
    if types is not None:
        assert small.spec.config["layer_types"] == [types[0], types[3]]
    assert len(whole.layers) == 4 and small.spec.layers == len(small.layers) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_units_and_groups_masks_the_others(kind):
    whole = decoder(kind)
    parts = energies(whole, some_ids())
    small = sliced(whole, inner=10, groups=2)
    masked = copy.deepcopy(whole)
    with torch.no_grad():
        for number, layer in enumerate(masked.layers):
            units = parts.units[number].argsort(descending=True)[10:]
            groups = parts.groups[number].argsort(descending=True)[2:]
            layer.mlp.down_proj.weight[:, units] = 0.0
            for group in groups.tolist():  # two query heads of four numbers
                layer.self_attn.o_proj.weight[:, 8 * group : 8 * group + 8] = 0.0
    torch.testing.assert_close(said(small), said(masked))
    assert (small.spec.heads, small.spec.groups, small.spec.head_size) == (4, 2, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_tokens_gives_their_columns(kind):
    whole = decoder(kind)
    kept = torch.tensor([0, 1, 2, 3, *range(4, 61, 3)])
    small = sliced(whole, tokens=kept, vocabulary=len(kept))
    ids = torch.randint(4, len(kept), (3, 9), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(said(small, ids), said(whole, kept[ids])[..., kept])
    assert small.spec.tied is whole.spec.tied and small.spec.vocabulary == len(kept)


def test_special_tokens_are_numbered_anew():
    whole = decoder("qwen3", bos_token_id=5, eos_token_id=[9, 20], pad_token_id=20, unk_token_id=33)
    kept = torch.tensor([5, 8, 9, 20, 33])
    small = sliced(whole, tokens=kept, vocabulary=5)
    ends = [small.spec.config[f"{name}_token_id"] for name in ("bos", "eos", "pad", "unk")]
    assert ends == [0, [2, 3], 3, 4]
    assert small.network.get_input_embeddings().padding_idx == 3
    kept = torch.tensor([5, 8, 9, 32, 33])
    refused("leaves out token 20", sliced, whole, tokens=kept, vocabulary=5)


def test_everything_at_once_is_one_after_the_other():
    whole, ids = decoder("llama"), some_ids()
    kept = torch.arange(0, 61, 2)
    kept = torch.cat([torch.tensor([0, 1, 2]), kept[2:]])
    wanted = with_sizes(whole.spec, layers=3, inner=12, groups=2, vocabulary=len(kept))
    small = slice_decoder(whole, wanted, ids, vocabulary=kept)
    assert small.spec == dataclasses.replace(wanted, config=small.spec.config)
    fewer = with_layers(whole, list(depths_by_kl(whole, ids, least=3))[-1].kept)
    narrow = with_parts(fewer, energies(fewer, ids), groups=2, inner=12)
    ids = torch.randint(3, len(kept), (2, 8), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(said(small, ids), said(narrow, kept[ids])[..., kept])
    known = {float(x) for p in whole.parameters() for x in p.detach().flatten()}
    assert all(float(x) in known for p in small.parameters() for x in p.detach().flatten())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_changes_are_those_of_whole_networks_without_a_layer(kind):
    whole, ids = decoder(kind), some_ids(5, 11)
    found = changes_without(whole, ids, (0, 1, 3))
    naive = [own_kl(without(whole, {2, gone}), whole, ids) for gone in (0, 1, 3)]
    assert found == pytest.approx(naive, rel=1e-4) and min(naive) > 0.01


def test_many_tokens_are_judged_in_parts(monkeypatch):
    whole, ids = decoder(), some_ids(7, 10)
    at_once = changes_without(whole, ids, range(4)), energies(whole, ids)
    monkeypatch.setattr("tutelage.students.decoders.choice._TOKENS", 25)
    assert changes_without(whole, ids, range(4)) == pytest.approx(at_once[0], rel=1e-4)
    torch.testing.assert_close(energies(whole, ids).units, at_once[1].units)


def test_layers_are_judged_anew_after_each():
    """Layers 1 and 2 take back what the other adds: alone, each is missed more than layer 3 is.

    Once one of them is gone the other is in the way, and goes before layer 3.
    """
    whole = without(decoder("llama", tie_word_embeddings=False), (1, 2))
    push = 0.7 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole.layers[1].mlp.down_proj.bias.copy_(push)
        whole.layers[2].mlp.down_proj.bias.copy_(-push)
    ids = some_ids()
    alone = changes_without(whole, ids, range(4))
    assert alone[3] > max(alone[1:3]), alone
    depths = list(depths_by_kl(whole, ids, least=2))
    assert depths[0].kl == 0 and [d.kept for d in depths[::2]] == [(0, 1, 2, 3), (0, 3)]
    assert depths[2].kl == pytest.approx(0, abs=1e-5) and depths[1].kl > 0.01
    assert list(depths_by_kl(whole, ids, least=2, kept=depths[1].kept)) == depths[2:]
    naive = own_kl(without(whole, set(range(4)) - set(depths[1].kept)), whole, ids)
    assert depths[1].kl == pytest.approx(naive, rel=1e-4)


def test_a_layer_that_says_nothing_goes_first():
    whole = without(decoder("qwen3"), (2,))
    [_, depth] = depths_by_kl(whole, some_ids(), least=3)
    assert depth.kept == (0, 1, 3) and depth.kl == pytest.approx(0, abs=1e-6)
    assert torch.allclose(said(sliced(whole, layers=3)), said(whole), atol=1e-5)


def test_energy_is_the_mean_square_of_what_a_part_writes():
    whole, ids = decoder("llama"), some_ids()
    found = energies(whole, ids)
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, given, key=key: seen.update({key: given[0]}))
        for key, module in (
            ("o", whole.layers[1].self_attn.o_proj),
            ("d", whole.layers[1].mlp.down_proj),
        )
    ]
    said(whole, ids)
    for hook in hooks:
        hook.remove()
    down, out = whole.layers[1].mlp.down_proj.weight, whole.layers[1].self_attn.o_proj.weight
    unit = (seen["d"][..., 5:6] * down[:, 5]).detach()
    group = (seen["o"][..., 8:16] @ out[:, 8:16].T).detach()
    for wanted, value in ((unit, found.units[1, 5]), (group, found.groups[1, 1])):
        assert float(value) == pytest.approx(float(wanted.square().sum(-1).mean()), rel=1e-5)


def test_of_equals_the_first_parts_stay():
    whole = decoder("mistral")
    parts = Parts(groups=torch.ones(4, 4), units=torch.ones(4, 24))
    small = with_parts(whole, parts, groups=1, inner=3)
    for to, of in zip(small.layers, whole.layers, strict=True):
        assert torch.equal(to.mlp.up_proj.weight, of.mlp.up_proj.weight[:3])
        assert torch.equal(to.self_attn.v_proj.weight, of.self_attn.v_proj.weight[:4])


def test_a_slice_is_as_wide_as_the_network_in_memory():
    whole = decoder("llama").to(torch.bfloat16)
    small = sliced(whole, layers=3, kept=(0, 1, 2))
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert isinstance(small.layers, nn.ModuleList) and not small.training


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"layers": 5}, "it has 4 layers and 5 are wanted"),
        ({"inner": 25}, "it has 24 inner and 25 are wanted"),
        ({"vocabulary": 50}, "which 50 of 61 tokens are kept is not known"),
        ({"layers": 2, "kept": (0, 1, 2)}, "name 2, rising, of 0 to 3"),
        ({"layers": 2, "kept": (3, 1)}, "name 2, rising, of 0 to 3"),
        ({"layers": 2, "kept": (1, 4)}, "layers [1, 4] cannot be kept"),
        ({"vocabulary": 50, "tokens": list(range(49))}, "names 49 tokens and the spec has 50"),
        ({"vocabulary": 3, "tokens": [0, 2, 1]}, "tokens, rising, from 0 to 60"),
        ({"vocabulary": 3, "tokens": [1, 2, 61]}, "tokens, rising, from 0 to 60"),
    ],
)
def test_what_is_no_part_is_refused(sizes, why):
    sizes = dict(sizes)
    rows = sizes.pop("tokens", None)
    refused(why, sliced, decoder("llama"), tokens=rows and torch.tensor(rows), **sizes)


def test_too_few_layers_and_other_networks_are_refused():
    whole = decoder("llama")
    refused("0 layers cannot be kept of 4", depths_by_kl, whole, some_ids(), least=0)
    other = decoder("mistral").spec
    refused("its attention_bias is True", slice_decoder, whole, other, some_ids())
    refused("12 heads do not divide", with_sizes, decoder("llama", hidden_size=64).spec, groups=6)
