"""Teachers that are not ours as data: traced whole, sliced, rebuilt, refused."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign_net
import pytest
import tiny
import torch
from torch import nn

from tutelage.errors import RecipeError
from tutelage.pipeline.foreign import sliceable
from tutelage.report.overview import describe
from tutelage.students import spec as students
from tutelage.students.families.graph_net import GraphNet, blocks_of, inherited
from tutelage.students.slices.graph import (
    is_part,
    narrower,
    shallower,
    slice_graph,
    width_groups,
    without,
)
from tutelage.students.spec import StudentSpec
from tutelage.students.taps import find_taps
from tutelage.teach.torch_teacher import Renormalised, Reordered, TorchTeacher
from tutelage.teach.tracing import Untraced, as_graph

IMAGE = (1, 8, 8)
STEM = "stages.0.1_stem_0.1_stem_0"


@pytest.fixture(scope="module")
def graph() -> GraphNet:
    return as_graph(foreign_net.build(), IMAGE, 3)


def noise(count: int, planes: int = 1) -> torch.Tensor:
    return torch.randn(count, planes, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_traced_network_says_the_same_logits(graph: GraphNet) -> None:
    inputs = noise(5)
    assert torch.allclose(graph(inputs), foreign_net.build()(inputs), atol=1e-5, rtol=0)
    assert [tap.shape for tap in find_taps(graph, inputs)] == [(8, 8, 8), (20, 4, 4)]
    assert {node.op for node in graph.spec.nodes} >= {"depthwise", "add", "mul", "cat", "relu6"}


def test_channels_that_go_together_have_one_width(graph: GraphNet) -> None:
    groups = width_groups(graph.spec)
    together: dict[str, list[str]] = {}
    for name, first in groups.items():
        together.setdefault(first, []).append(name.partition("_")[2])
    assert sorted(together.values()) == [
        ["down", "third_chain_6"],
        ["first_a"],
        ["second_a"],
        ["side"],
        ["stem_0", "first_c", "second_c"],
        ["third_chain_0", "third_chain_5_up"],
        ["third_chain_5_down"],
    ]
    least = {node.name.partition("_")[2]: node.out for node in narrower(graph.spec, 0.01).nodes}
    grouped = {"first_a", "second_a", "stem_0", "first_c", "second_c"}  # two groups read or say it
    free = {name.partition("_")[2] for name in groups}
    assert {least[name] for name in grouped} == {4}
    assert {least[name] for name in free - grouped} == {2}


def test_different_slices_are_told_apart_in_the_report(graph: GraphNet) -> None:
    every = [narrower(spec, n / 8) for spec in shallower(graph.spec) for n in range(1, 9)]
    found = [json.dumps(StudentSpec(family="graph", knobs=s).to_json()) for s in every]
    assert len({describe(json.loads(x)) for x in found}) == len(set(found)) > 16


@torch.no_grad()
def test_a_slice_is_as_its_spec_says_and_is_rebuilt_bit_by_bit(
    graph: GraphNet, tmp_path: Path
) -> None:
    fewer = shallower(graph.spec)
    assert [sum(b.spare for b in blocks_of(spec)) for spec in fewer] == [3, 1, 0]
    spec = narrower(fewer[1], 0.5)
    assert is_part(spec, graph.spec) and not is_part(graph.spec, spec)
    small = slice_graph(graph, spec, noise(16))
    own = {node.name: node.out for node in graph.spec.nodes}
    layers = {path.split(".")[-1]: layer for path, layer in small.named_modules()}
    for node in spec.nodes:
        if node.op in ("conv", "linear"):
            assert len(layers[node.name].weight) == node.out
            assert node.out <= own[node.name] // 2 + 1 or "head" in node.name
    stem, whole = layers["1_stem_0"].weight, dict(graph.named_modules())[STEM].weight
    assert all(row.tolist() in [r.tolist() for r in whole] for row in stem) and len(stem) == 4
    students.save(tmp_path, StudentSpec(family="graph", knobs=spec), small)
    again = students.load(tmp_path)
    assert again.spec == spec and torch.equal(again(noise(4)), small(noise(4)))


@torch.no_grad()
def test_a_fitted_slice_decides_more_like_the_network(graph: GraphNet) -> None:
    spec = narrower(graph.spec, 0.75)
    plain, fitted = (
        slice_graph(graph, spec, noise(300), fitted=flag) for flag in (False, True)
    )  # fmt: skip
    others = torch.randn(100, *IMAGE)
    first, last = ((n(others) - graph(others)).square().mean() for n in (plain, fitted))
    assert last < 0.7 * first


def test_what_is_left_of_a_graph_makes_up_for_blocks_that_went(graph: GraphNet) -> None:
    for block in [block for block in blocks_of(graph.spec) if block.spare]:
        spec, others = without(graph.spec, block), torch.randn(100, *IMAGE)
        plain, fitted = (
            slice_graph(graph, spec, noise(300), fitted=flag) for flag in (False, True)
        )  # fmt: skip
        first, last = ((n(others) - graph(others)).square().mean() for n in (plain, fitted))
        assert last < 0.7 * first


@torch.no_grad()
def test_a_slice_of_all_is_the_network_itself_and_blocks_go_by_what_is_missed(
    graph: GraphNet,
) -> None:
    inputs = noise(16)
    assert torch.equal(slice_graph(graph, graph.spec, inputs)(inputs), graph(inputs))
    idle = inherited(graph.spec, graph.state_dict())
    for name, parameter in idle.named_parameters():
        if "first_c" in name:
            parameter.zero_()  # this block says what it reads: it is never missed
    second = next(block for block in blocks_of(idle.spec) if "second" in block.name)
    kept = slice_graph(idle, without(idle.spec, second), inputs)
    assert torch.allclose(kept(inputs), idle(inputs), atol=1e-6)


def plain(**changes: Any) -> dict[str, Any]:
    conv = {"name": "1_a", "op": "conv", "of": ["input"], "out": 3, **changes}
    nodes = [conv, {"name": "2", "op": "mean", "of": ["1_a"]}]
    return {
        "family": "graph", "image": [1, 8, 8], "classes": 3,
        "nodes": [*nodes, {"name": "3", "op": "flatten", "of": ["2"]}],
    }  # fmt: skip


def test_a_plain_spec_is_built_and_written_as_it_was() -> None:
    spec = StudentSpec.from_json(plain())
    assert spec.build()(noise(2)).shape == (2, 3)
    assert json.loads(json.dumps(spec.to_json())) == plain()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"op": "exec"}, "no operator"),
        ({"name": "forward"}, "a node is named 'forward'"),
        ({"of": ["2"]}, "which no earlier node is"),
        ({"of": "input"}, "list of names"),
        ({"of": ["input", "input"]}, "reads 2 outputs"),
        ({"out": 10**9}, "whole numbers from 1 to"),
        ({"out": True}, "whole numbers"),
        ({"out": 2}, "does not say 3 numbers"),
        ({"kernel": [9, 9]}, "shape"),
        ({"padding": [1024, 1024], "out": 65_536}, "too large"),
        ({"stride": [0, 1]}, "whole numbers from 1"),
        ({"op": "norm", "out": 0, "eps": float("nan")}, "eps"),
        ({"op": "scale", "out": 0, "by": [1.0, 1.0], "plus": [0.0]}, "need 1 numbers"),
        ({"code": "print()"}, "is no node"),
    ],
)
def test_a_hostile_spec_is_refused_in_a_line(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why) as said:
        StudentSpec.from_json(plain(**changes))
    assert "\n" not in str(said.value)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.b(self.b(self.a(x))).mean((2, 3))


class Deciding(Twice):
    def forward(self, x):
        return self.a(x if x.sum() > 0 else -x).mean((2, 3))


class Held(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()  # what cannot be copied


class Attending(Twice):
    def forward(self, x):
        return (self.a(x).softmax(1)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Twice(), "'b' is called twice"),
        (Deciding(), "torch.export cannot follow it"),
        (Held(), "cannot follow it"),
        (Attending(), "it computes softmax"),
    ],
)
def test_what_is_no_list_of_known_operators_is_said(network: nn.Module, why: str) -> None:
    with pytest.raises(Untraced, match=why):
        as_graph(network, IMAGE, 4)


@torch.no_grad()
def test_what_is_done_round_a_teacher_is_part_of_its_graph() -> None:
    inner = TorchTeacher(
        foreign_net.build(planes=3), classes=3, image_shape=IMAGE, channels="repeat"
    )
    own = SimpleNamespace(mean=(0.3,) * 3, std=(0.2,) * 3)
    teacher = Reordered(Renormalised(inner, own, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), (2, 0, 1))
    found, why = sliceable(teacher, IMAGE)
    assert found is not None and not why and found[1].knobs.image == IMAGE
    inputs = noise(4)
    assert torch.allclose(found[0](inputs), teacher.read(inputs).decision, atol=1e-5)


@torch.no_grad()
def test_a_slice_may_teach_the_next_one() -> None:
    own = SimpleNamespace(mean=(0.3,), std=(0.2,))
    teacher: Any = TorchTeacher(foreign_net.build(), classes=3, image_shape=IMAGE)
    inputs = noise(4)
    for _ in range(2):  # the second is a graph that scales its input already
        teacher = Renormalised(teacher, own, (0.4,), (0.1,))
        found, _ = sliceable(teacher, IMAGE)
        assert found is not None
        assert torch.allclose(found[0](inputs), teacher.read(inputs).decision, atol=1e-5)
        teacher = TorchTeacher(found[0], classes=3, image_shape=IMAGE)


@torch.no_grad()
def test_windows_of_a_pooling_are_counted_as_torch_does() -> None:
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(3)]  # the last reads 2 x 2 pixels
    network = nn.Sequential(nn.Conv2d(1, 4, 1), *pools, nn.Flatten(), nn.Linear(4, 3)).eval()
    assert torch.allclose(as_graph(network, IMAGE, 3)(noise(4)), network(noise(4)), atol=1e-5)


def test_a_function_as_teacher_is_sliced_and_ships(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz", count=120)
    shutil.copy(foreign_net.__file__, tmp_path / "net.py")
    recipe = tiny.write_recipe(
        tmp_path,
        {
            "student": {"space": "sliced", "candidates": 1},
            "teacher": {"source": str(tmp_path / "net.py:build"), "classes": ["0", "1", "2"]},
            "budget": {"storage": "20 kB"},
            "distill": {"epochs": 1, "batch": 32},
            "augment": {"views": 1},
            "export": {"largest_loss": 0.9},
        },
    )
    run = tmp_path / "run"
    said = tiny.cli("run", recipe, "--run", run, "--json", "--trust-code")
    assert said.status == 0, said.err
    assert "starts with the weights of the teacher" in said.err
    spec = json.loads((run / "student/spec.json").read_text())
    network = students.load(run / "student")
    assert spec["family"] == "graph" and network(noise(2)).shape == (2, 3)
    artifacts = {a["precision"]: a for a in said.answer["artifacts"]}
    assert {"float32", "int8"} <= set(artifacts)
    proof = json.loads((run / "proof.json").read_text())
    assert all(row["largest_error"] < 1e-4 for row in proof["parity"] if "32" in row["artifact"])
