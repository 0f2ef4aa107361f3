"""The vision transformer as a student: knobs, tokens, taps, the exported file, costs, int8."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tutelage.errors import RecipeError
from tutelage.export.artifact import ArtifactMeta, OnnxModel, load_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import parity
from tutelage.export.quantize import layer_names, quantize_int8
from tutelage.students.spec import StudentSpec, load, save
from tutelage.students.taps import find_taps
from tutelage.tasks import find_task

KNOBS: dict[str, Any] = {"family": "vit", "image": [1, 28, 28], "classes": 10, "layers": 3,
                         "hidden": 48, "heads": 3, "inner": 96}  # fmt: skip
META = ArtifactMeta(
    task="vision", classes=tuple("abcdefghij"), shape=(1, 28, 28), mean=(0.5,), std=(0.5,),
    version="0",
)  # fmt: skip


def network_of(**changes: Any) -> Any:
    torch.manual_seed(0)
    network: Any = StudentSpec.from_json({**KNOBS, **changes}).build()
    with torch.no_grad():
        for module in network.modules():  # as after training: running statistics that differ
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(std=0.1)
                module.bias.normal_(std=0.3)
    return network.eval()


def images(n=6, shape=(1, 28, 28)):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def said(network, x):
    with torch.no_grad():
        return network(x)


def test_a_spec_comes_back_from_json_and_its_weights_from_disk(tmp_path):
    made, network = StudentSpec.from_json(KNOBS), network_of()
    assert StudentSpec.from_json(json.loads(json.dumps(made.to_json()))) == made
    save(tmp_path, made, network)
    torch.testing.assert_close(said(load(tmp_path), images()), said(network, images()))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"patch": 3}, "a power of two"),
        ({"patch": 0}, "goes from 1"),
        ({"heads": 5}, "do not divide it evenly"),
        ({"image": [28, 28]}, "image is"),
        ({"image": 28}, "it is a list"),
        ({"layers": True}, "write whole numbers"),
        ({"depth": 2}, "no knob 'depth'"),
    ],
)
def test_a_wrong_knob_is_refused(changes, what):
    with pytest.raises(RecipeError, match=what):
        StudentSpec.from_json({**KNOBS, **changes})


@pytest.mark.parametrize(
    ("shape", "patch", "tokens"),
    [((1, 28, 28), 4, 49), ((3, 32, 48), 8, 24), ((1, 8, 8), 2, 16), ((3, 9, 13), 4, 12),
     ((1, 5, 5), 1, 25), ((1, 1, 3), 4, 1)],
)  # fmt: skip
def test_images_of_any_size_become_tokens(shape, patch, tokens):
    network = network_of(image=list(shape), patch=patch)
    taps = find_taps(network, images(2, shape))
    assert [tap.path for tap in taps] == [f"stages.{i}" for i in range(3)]
    assert {tap.shape for tap in taps} == {(tokens, 48)}
    x = images(3, shape)
    assert said(network, x).shape == (3, 10)
    torch.testing.assert_close(said(network, x[1:2]), said(network, x)[1:2])


def test_every_parameter_learns():
    network = network_of().train()
    network(images()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_layer_is_that_of_torch():
    layer, heads, x = network_of().stages[0], 3, torch.randn(2, 49, 48)
    y = layer.qkv(layer.attention_norm(x)).reshape(2, 49, heads, 3, 16).permute(3, 0, 2, 1, 4)
    told = F.scaled_dot_product_attention(y[0], y[1], y[2]).transpose(1, 2).reshape(2, 49, 48)
    want = x + layer.out(told)
    want = want + layer.mlp(layer.mlp_norm(want))
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-5)


def test_where_a_patch_stands_is_seen():
    network, x = network_of(), images()
    moved = x.roll(8, dims=3)
    assert (said(network, x) - said(network, moved)).abs().max() > 1e-4
    with torch.no_grad():
        network.positions.zero_()
        network.stem = nn.Conv2d(1, 48, 4, 4)  # blind to its neighbours: now the order is lost
    torch.testing.assert_close(said(network, x), said(network, moved), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_exported_file_agrees(tmp_path, dynamic):
    network, x = network_of(), images()
    path = export_onnx(network, x.shape[1:], tmp_path / "m.onnx", meta=META, dynamic_batch=dynamic)
    found = parity(path, said(network, x).numpy(), x.numpy())
    assert found.largest_error < 1e-5 and found.agreement == 1.0
    operators = {node.op_type for node in load_onnx(path).graph.node}
    assert not operators & {"Shape", "If", "Loop", "Where", "Expand", "BatchNormalization"}


def test_int8_is_a_third_of_the_bytes_at_the_same_operations(tmp_path):
    network, x = network_of(), images(32)
    whole = export_onnx(network, (1, 28, 28), tmp_path / "float.onnx", meta=META)
    small = quantize_int8(whole, tmp_path / "int8.onnx", x.numpy())
    names = layer_names(whole)
    assert {"stem.0", "stages.0.qkv", "stages.2.mlp.2", "head"} <= set(names)
    # By hand, 49 tokens of 48: a layer is qkv, out, mlp and twice scores (all heads together).
    layer = 49 * 48 * (3 * 48 + 48 + 2 * 96) + 2 * 49 * 49 * 48
    stem = 14 * 14 * 24 * 9 + 49 * 48 * 24 * 9 + 49 * 48 * 48
    for path in (whole, small):
        assert graph_costs(path).macs == 3 * layer + stem + 48 * 10
    assert small.stat().st_size < whole.stat().st_size / 3
    want, got = (OnnxModel(path.read_bytes()).run(x.numpy()) for path in (whole, small))
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()


def test_the_planner_does_not_offer_one_unasked():
    assert "vit" not in find_task("vision").families


class TimmBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.ls1, self.drop_path1 = nn.Identity(), nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.drop_path1(self.ls1(self.attn(y, y, y, need_weights=False)[0]))
        return x + self.mlp(self.norm2(x))


class TimmPatches(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, 4, 4), nn.Identity()

    def forward(self, x):
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class TimmLike(nn.Module):
    """The layout of timm's VisionTransformer: a class token, a Sequential of blocks, fc_norm."""

    def __init__(self, depth: int, dim: int = 16) -> None:
        super().__init__()
        self.patch_embed = TimmPatches(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, dim))
        self.pos_drop, self.patch_drop, self.norm_pre = nn.Dropout(), nn.Identity(), nn.Identity()
        self.blocks = nn.Sequential(*(TimmBlock(dim) for _ in range(depth)))
        self.norm, self.fc_norm, self.head_drop = nn.LayerNorm(dim), nn.Identity(), nn.Dropout()
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm_pre(self.patch_drop(self.pos_drop(x + self.pos_embed)))
        return self.head(self.head_drop(self.fc_norm(self.norm(self.blocks(x))[:, 0])))


def test_a_network_laid_out_as_timm_lays_it_is_tapped_at_its_blocks():
    taps = find_taps(TimmLike(4), torch.rand(2, 3, 16, 16))
    assert [(tap.path, tap.shape) for tap in taps] == [(f"blocks.{i}", (17, 16)) for i in range(4)]
    assert [t.path for t in find_taps(TimmLike(12), torch.rand(2, 3, 16, 16), limit=3)] == [
        "blocks.3", "blocks.7", "blocks.11",
    ]  # fmt: skip
