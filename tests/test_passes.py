"""Inputs of any nesting, and how a network is called with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tutelage.errors import StudentError
from tutelage.passes import call, count_of, mapped, run_once, shown, source_of, tensors
from tutelage.students.taps import find_taps, reading

A, B = torch.arange(6.0).reshape(2, 3), torch.arange(2)
NESTED: Any = {"pixels": A, "rest": (B, {"deep": A + 1})}


class Tells(nn.Module):
    """Returns what it was called with."""

    def forward(self, *parts: Any, **named: Any) -> Any:
        return parts, named


@pytest.mark.parametrize(
    ("inputs", "parts", "named"),
    [(A, (A,), {}), ((A, B), (A, B), {}), ({"x": A, "y": B}, (), {"x": A, "y": B})],
)
def test_a_dict_goes_in_as_keywords_and_a_tuple_as_arguments(
    inputs: Any, parts: Any, named: Any
) -> None:
    got, told = call(Tells(), inputs)
    assert len(got) == len(parts) and all(a is b for a, b in zip(got, parts, strict=True))
    assert told.keys() == named.keys() and all(told[k] is named[k] for k in named)


def test_every_tensor_is_reached_in_its_place() -> None:
    assert [t.ndim for t in tensors(NESTED)] == [2, 1, 2]
    doubled = mapped(NESTED, lambda t: t * 2)
    assert torch.equal(doubled["pixels"], A * 2)
    assert torch.equal(doubled["rest"][0], B * 2)
    assert torch.equal(doubled["rest"][1]["deep"], (A + 1) * 2)
    assert count_of(NESTED) == 2
    assert shown(NESTED) == "pixels: 3, rest: (one number, deep: 3)"


def test_a_look_leaves_the_modes_and_says_what_failed_in_one_line() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    network[0].eval()
    run_once(lambda x: network(x), network, A, StudentError)
    assert [m.training for m in network] == [False, True]
    with pytest.raises(StudentError, match="cannot read an input of 5: RuntimeError"):
        run_once(lambda x: network(x), network, torch.zeros(2, 5), StudentError)
    assert network.training


def test_taps_are_found_and_read_through_a_pass_of_ones_own() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 5), nn.ReLU()),
        nn.Linear(5, 2),
    )  # fmt: skip

    def forward(module: nn.Module, inputs: Any) -> Any:
        return {"logits": module(inputs["pixels"])}

    taps = find_taps(network, NESTED, forward=forward)
    assert [(tap.path, tap.shape) for tap in taps] == [("0.1", (4,)), ("1.1", (5,))]
    found = reading(network, NESTED, taps, features=True, maps=False, forward=forward)
    assert torch.equal(found.decision, network(A))
    assert torch.equal(found.features[0], network[0](A))


def test_a_pass_is_hashed_by_its_source() -> None:
    assert source_of(call) == ""
    assert "n(x['ids'])" in source_of(lambda n, x: n(x['ids']))  # fmt: skip
    assert source_of(Tells()) == "Tells"  # an object has no source: its name stands for it
