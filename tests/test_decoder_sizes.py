"""Sizes of language models: shapes, slices within a limit, steps on the way to one."""

from __future__ import annotations

import math

import pytest
from decoders import config, decoder
from text_samples import refused

from tutelage.errors import InfeasibleError
from tutelage.students.decoders.network import KINDS, spec_of
from tutelage.students.decoders.sizes import (
    in_layers,
    parameters,
    plan_slices,
    shapes_of,
    steps_to,
    why_no_part,
    with_sizes,
)


def spec(kind="llama", **changes):
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 256, "vocab_size": 500,
        "head_dim": 8,
    }  # fmt: skip
    return spec_of(config(kind, **{**sizes, **changes}))


def sizes(found):
    return [(x.layers, x.inner, x.groups, x.vocabulary) for x in found]


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_those_of_the_built_network(kind):
    made = decoder(kind)
    built = {name.removeprefix("network."): tuple(x.shape) for name, x in made.state_dict().items()}
    assert shapes_of(made.spec) == built
    assert parameters(made.spec) == sum(x.numel() for x in made.network.parameters())
    rest = sum(math.prod(x) for name, x in built.items() if ".layers." not in name)
    assert in_layers(made.spec) == parameters(made.spec) - rest


def test_sizes_by_hand():
    """Two layers of hidden 64, 8 heads and 4 groups of 8 numbers, 32 units; a tied head."""
    small = spec("llama", num_hidden_layers=2, intermediate_size=32)
    attention = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 64
    feed = 2 * (64 * 32 + 32) + 32 * 64 + 64
    assert in_layers(small) == 2 * (attention + feed + 2 * 64)
    assert parameters(small) == in_layers(small) + 500 * 64 + 64


def test_other_sizes_leave_the_rest():
    whole = spec("gemma2")
    small = with_sizes(whole, layers=5, inner=64, groups=2, vocabulary=99)
    assert sizes([small]) == [(5, 64, 2, 99)] and small.heads == 4 and small.head_size == 8
    assert small.config["layer_types"] == whole.config["layer_types"][:5]
    assert why_no_part(small, whole) == "" and why_no_part(whole, whole) == ""
    assert sizes([whole]) == [(12, 256, 4, 500)]
    assert why_no_part(whole, small) == "it has 5 layers and 12 are wanted"
    other = spec("gemma2", num_key_value_heads=2)
    assert why_no_part(other, whole) == "2 groups of it have 2 query heads each"
    assert why_no_part(spec("qwen3"), whole).startswith("its ")


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_slices_are_the_widest_that_fit(kind):
    whole = spec(kind)
    most = parameters(whole) // 2
    found = plan_slices(whole, most_bytes=most, bytes_of=parameters, count=4)
    assert len(found) == 4 and all(not why_no_part(x, whole) for x in found)
    assert [x.layers for x in found] == sorted({x.layers for x in found}, reverse=True)
    assert [x.inner for x in found] == sorted({x.inner for x in found})
    for one in found:
        assert parameters(one) <= most and one.inner % 32 == 0 and one.inner >= 64
        wider = {"inner": one.inner + 32} if one.inner < 256 else {"layers": one.layers + 1}
        assert parameters(with_sizes(one, **wider) if "inner" in wider else
                          with_sizes(whole, **wider)) > most  # fmt: skip
    assert found[-1].inner == 256


def test_slices_have_the_tokens_and_groups_asked_for():
    whole = spec()
    for one in plan_slices(
        whole, most_bytes=100_000, bytes_of=parameters, vocabulary=200, groups=2
    ):
        assert (one.vocabulary, one.groups, one.heads) == (200, 2, 4)
    assert plan_slices(whole, most_bytes=10**9, bytes_of=parameters) == [whole]
    single = plan_slices(whole, most_bytes=200_000, bytes_of=parameters, count=1)
    assert len(single) == 1


def test_a_limit_that_nothing_keeps_is_refused():
    whole = spec()
    least = parameters(with_sizes(whole, layers=1, inner=32))
    found = plan_slices(whole, most_bytes=least, bytes_of=parameters)
    assert sizes(found) == [(1, 32, 4, 500)]
    with pytest.raises(InfeasibleError, match=f"within {least - 1:,} bytes.* takes {least:,}"):
        plan_slices(whole, most_bytes=least - 1, bytes_of=parameters)


def test_steps_lose_about_a_third_each():
    whole = spec("qwen3", num_hidden_layers=24, intermediate_size=1024)
    wanted = with_sizes(whole, layers=7, inner=288, groups=1, vocabulary=100)
    found = steps_to(whole, wanted)
    assert found[-1] == wanted and len(found) == 5
    assert {x.vocabulary for x in found} == {100}
    for before, after in zip([whole, *found], found, strict=False):
        assert why_no_part(after, before) == "" and after != before
        assert 0.55 < in_layers(after) / in_layers(before) < 0.7
    assert len(steps_to(whole, wanted, most=0.6)) == 3


def test_steps_keep_heads_that_divide_the_hidden_size():
    whole = spec("llama", num_attention_heads=32, num_key_value_heads=32, head_dim=2)
    for one in steps_to(whole, with_sizes(whole, layers=3, inner=64, groups=4)):
        assert 64 % one.heads == 0


def test_one_step_where_little_goes():
    whole = spec()
    wanted = with_sizes(whole, layers=10)
    assert steps_to(whole, wanted) == [wanted] and steps_to(whole, whole) == [whole]
    refused("it has 10 layers", steps_to, wanted, whole)
    refused("most is 1.5", steps_to, whole, wanted, most=1.5)
