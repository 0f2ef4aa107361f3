"""Transformers of texts with fewer layers, heads and units: what stays is the network's own."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from tutelage.students.families.encoder import Encoder, EncoderSpec
from tutelage.students.slices.channels import moved, remembering
from tutelage.students.slices.encoder import SLICING, is_part, narrower, slice_encoder
from tutelage.students.slices.layers import Gates, layers_that_stay, shallower, with_layers

KINDS = [
    {"norm": "post"},
    {"norm": "post", "embedding": 12},
    {"norm": "pre"},
    {"norm": "pre", "embedding": 12},
]


def without(whole, layers, inputs):
    return with_layers(whole, layers_that_stay(whole, layers, inputs))


def encoder(classes=3, **knobs):
    torch.manual_seed(0)
    spec = EncoderSpec(
        vocabulary=30, length=10, classes=classes, **{"layers": 3, **knobs}, hidden=16, heads=4,
        inner=20, pad=1,
    )  # fmt: skip
    network = Encoder(spec).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def ids(count=24):
    random = torch.Generator().manual_seed(1)
    found = torch.randint(2, 30, (count, 10), generator=random)
    found[:, 7:] = 1
    return found


def said(network):
    with torch.no_grad():
        return network(ids())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 3])
def test_the_whole_is_the_same_network(kind, classes):
    whole = encoder(classes, **kind)
    assert torch.equal(said(slice_encoder(whole, whole.spec, ids())), said(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_is_of_its_spec_and_holds_the_networks_numbers(kind):
    whole = encoder(**kind)
    sizes = {"layers": 2, "hidden": 8, "heads": 2, "inner": 6}
    if kind.get("embedding"):
        sizes["embedding"] = 5
    spec = dataclasses.replace(whole.spec, **sizes)
    assert is_part(spec, whole.spec)
    small = slice_encoder(whole, spec, ids())
    assert small.spec == spec and said(small).shape == (24, 3)
    again = Encoder(spec)
    again.load_state_dict(small.state_dict())
    assert torch.equal(said(again.eval()), said(small))
    known = {float(x) for parameter in whole.parameters() for x in parameter.detach().flatten()}
    assert all(float(x) in known for p in small.parameters() for x in p.detach().flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_what_says_nothing_goes_first(kind):
    """Numbers of the stream, heads and units that change nothing are left out, and nothing else."""
    whole = encoder(**kind)
    stay = [0, 2, 3, 5, 8, 9, 12, 15]
    gone = [i for i in range(16) if i not in stay]
    with torch.no_grad():
        for stage in whole.stages:
            stage.out.weight[:, 4:8] = 0.0  # head 1
            stage.mlp[2].weight[:, [1, 4, 5, 7]] = 0.0
    spec = dataclasses.replace(whole.spec, inner=16)
    torch.testing.assert_close(said(slice_encoder(whole, spec, ids())), said(whole))
    with torch.no_grad():  # numbers that are always 0, and that nobody reads
        for stage in whole.stages:
            for linear in (stage.out, stage.mlp[2]):
                linear.weight[gone] = 0.0
                linear.bias[gone] = 0.0
            stage.qkv.weight[:, gone] = 0.0
            stage.mlp[0].weight[:, gone] = 0.0
            for norm in (stage.attention_norm, stage.mlp_norm):
                norm.weight[gone] = 0.0
                norm.bias[gone] = 0.0
        whole.head.weight[:, gone] = 0.0
    if kind["norm"] == "post":
        half = dataclasses.replace(whole.spec, hidden=8, heads=2)
        small = slice_encoder(whole, half, ids())
        assert torch.equal(small.head.weight, whole.head.weight[:, stay])


def test_heads_that_say_nothing_go_first():
    whole = encoder(norm="post")
    with torch.no_grad():
        for number, stage in enumerate(whole.stages):
            stage.out.weight[:, 4 * number : 4 * number + 4] = 0.0
    spec = dataclasses.replace(whole.spec, hidden=12, heads=3)
    small = slice_encoder(whole, spec, ids())
    for number, (to, of) in enumerate(zip(small.stages, whole.stages, strict=True)):
        heads = of.qkv.bias.unflatten(0, (4, 12))
        kept = [i for i in range(4) if i != number]
        assert torch.equal(to.qkv.bias.unflatten(0, (3, 12)), heads[kept])


def test_the_layer_that_is_missed_least_goes_first():
    whole = encoder(norm="pre")
    with torch.no_grad():  # the middle layer adds nothing
        for linear in (whole.stages[1].out, whole.stages[1].mlp[2]):
            linear.weight.zero_()
            linear.bias.zero_()
    fewer = without(whole, 2, ids())
    assert torch.equal(said(fewer), said(whole))
    assert fewer.spec.layers == 2 and len(whole.stages) == 3
    assert isinstance(fewer.stages, nn.ModuleList)


def test_layers_go_as_if_each_were_left_out_of_the_whole():
    whole, left = encoder(norm="post", layers=5), list(range(5))
    own = said(whole)

    def change(kept: list[int]) -> float:
        small = copy.deepcopy(whole)
        small.stages = nn.ModuleList(small.stages[i] for i in kept)
        return moved(said(small), own)

    while len(left) > 2:
        left.remove(min(left, key=lambda gone: change([i for i in left if i != gone])))
    fewer = without(whole, 2, ids())
    for kept, stage in zip(left, fewer.stages, strict=True):
        assert torch.equal(stage.qkv.weight, whole.stages[kept].qkv.weight)
    assert torch.equal(said(whole), own)


def test_what_is_remembered_of_layers_is_what_is_found_anew():
    whole = encoder(norm="post", layers=5)
    alone = {layers: said(without(whole, layers, ids())) for layers in (4, 1, 2, 5)}
    with remembering():
        for layers, want in alone.items():
            again = without(whole, layers, ids())
            assert torch.equal(said(again), want) and len(again.stages) == layers


def test_what_gates_say_is_asked_once_a_depth_where_it_is_remembered(monkeypatch):
    asked, ask = [], Gates.information

    def counted(gates, network, inputs):
        asked.append(len(network.stages))
        return ask(gates, network, inputs)

    monkeypatch.setattr(Gates, "information", counted)
    whole = encoder(norm="post")
    specs = [narrower(spec, share) for spec in shallower(whole.spec)[:2] for share in (0.5, 0.75)]
    alone = [slice_encoder(whole, spec, ids()) for spec in specs]
    assert asked == [3, 3, 2, 2]
    with remembering():
        again = [slice_encoder(whole, spec, ids()) for spec in specs]
    assert asked[4:] == [3, 2]
    assert all(torch.equal(said(a), said(b)) for a, b in zip(alone, again, strict=True))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, True),
        ({"layers": 1, "inner": 2}, True),
        ({"hidden": 8, "heads": 2}, True),
        ({"hidden": 8}, False),  # heads of another size
        ({"layers": 4}, False),
        ({"inner": 21}, False),
        ({"classes": 4}, False),
        ({"vocabulary": 29}, False),
        ({"embedding": 8}, False),  # of another kind
        ({"norm": "pre"}, False),
    ],
)
def test_what_is_part_of_what(changes, part):
    whole = encoder(norm="post").spec
    assert is_part(dataclasses.replace(whole, **changes), whole) is part


def test_narrower_and_shallower_specs_are_parts():
    for kind in KINDS:
        whole = encoder(**kind).spec
        steps = SLICING.steps(whole)
        found = [
            narrower(spec, n / steps) for spec in shallower(whole) for n in range(1, steps + 1)
        ]
        assert all(is_part(spec, whole) for spec in found)
        assert whole in found and len({spec.layers for spec in found}) == 3
