"""Vision transformers of timm, transformers and torchvision, read as networks of our own family.

Covers a patch stem, learned positions, pre-norm layers with GELU, and a class token or the mean
over tokens; layer scale goes into the weights. What was read is asked about two images of noise and
must say what the teacher says, so that whatever else a teacher has (register or distillation
tokens, norms of queries, relative positions, attention pools) makes it another network.
"""

from __future__ import annotations

import copy
import dataclasses
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.vit import ViT, ViTSpec
from tutelage.teach.hf_vision import HfClassifier
from tutelage.teach.starting import by_heads

_Parts = dict[str, Any]
_TIMM = {
    "patches": "patch_embed.proj", "token": "cls_token", "positions": "pos_embed", "head": "head",
}  # fmt: skip
_WHOLES = (
    {**_TIMM, "norm": "norm"},
    {**_TIMM, "norm": "fc_norm"},
    {
        "patches": "vit.embeddings.patch_embeddings.projection",
        "token": "vit.embeddings.cls_token", "positions": "vit.embeddings.position_embeddings",
        "norm": "vit.layernorm", "head": "classifier",
    },
    {
        "patches": "conv_proj", "token": "class_token", "positions": "encoder.pos_embedding",
        "norm": "encoder.ln", "head": "heads.head",
    },
)  # fmt: skip
_HF_NORMS = {"attention_norm": "layernorm_before", "mlp_norm": "layernorm_after"}
_LAYERS = (
    {  # timm
        "attention": "attn", "weight": "attn.qkv.weight", "bias": "attn.qkv.bias",
        "out": "attn.proj", "up": "mlp.fc1", "act": "mlp.act", "down": "mlp.fc2",
        "attention_norm": "norm1", "mlp_norm": "norm2", "out_scale": "ls1", "down_scale": "ls2",
    },
    {  # transformers
        **_HF_NORMS, "attention": "attention", "query": "attention.q_proj",
        "key": "attention.k_proj", "value": "attention.v_proj", "out": "attention.o_proj",
        "up": "mlp.fc1", "act": "mlp.activation_fn", "down": "mlp.fc2",
    },
    {  # transformers before 5
        **_HF_NORMS, "attention": "attention.attention", "query": "attention.attention.query",
        "key": "attention.attention.key", "value": "attention.attention.value",
        "out": "attention.output.dense", "up": "intermediate.dense",
        "act": "intermediate.intermediate_act_fn", "down": "output.dense",
    },
    {  # torchvision
        "attention": "self_attention", "weight": "self_attention.in_proj_weight",
        "bias": "self_attention.in_proj_bias", "out": "self_attention.out_proj", "up": "mlp.0",
        "act": "mlp.1", "down": "mlp.3", "attention_norm": "ln_1", "mlp_norm": "ln_2",
    },
)  # fmt: skip
_CLOSE = 1e-4  # of the largest logit: sums in another order, over dozens of layers


def as_vit(teacher: nn.Module, size: tuple[int, int]) -> ViT | None:
    """Return a vision transformer that reads images of `size` as a network of our own family.

    It says what the teacher says. None where no such network does.
    """
    if not any(_parts(module, paths) for module in teacher.modules() for paths in _LAYERS):
        return None
    try:
        teacher = copy.deepcopy(teacher).cpu().float().eval()
        network = _read(teacher, size)
        images = torch.randn(2, *network.spec.image, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            said, own = network(images), teacher(images)
        same = float((said - own).abs().max() / own.abs().max()) < _CLOSE
    except Exception:  # a question, not a fallback: a foreign network may have any parts
        return None
    return network if same else None


def reading(
    network: nn.Module, channels: int, scale: Float[Tensor, "1 c 1 1"],
    shift: Float[Tensor, "1 c 1 1"],
) -> ViT | None:  # fmt: skip
    """Return the network that says of images what this one says of `images * scale + shift`.

    Images of one channel are repeated for a network of more. None for another network, and where
    the stem pads: what stands at the edges is not scaled.
    """
    if not isinstance(network, ViT) or network.spec.stem != "patch":
        return None
    spec = dataclasses.replace(network.spec, image=(channels, *network.spec.image[1:]))
    found, stem = ViT(spec).eval(), network.stem[0]
    assert isinstance(stem, nn.Conv2d) and stem.bias is not None
    kernels = stem.weight * scale
    state = network.state_dict()
    state["stem.0.weight"] = kernels if channels > 1 else kernels.sum(1, keepdim=True)
    state["stem.0.bias"] = stem.bias + (stem.weight * shift).sum((1, 2, 3))
    found.load_state_dict(state)
    return found


def _read(teacher: nn.Module, size: tuple[int, int]) -> ViT:
    body: Any = teacher
    bgr = False
    if isinstance(teacher, HfClassifier):
        body = teacher.body
        bgr = teacher.preprocessing is not None and teacher.preprocessing.bgr
    found = [_parts(module, paths) for module in body.modules() for paths in _LAYERS]
    layers = [parts for parts in found if parts is not None]
    wholes = (_parts(body, paths) for paths in _WHOLES)
    whole = next((w for w in wholes if w and isinstance(w["norm"], nn.LayerNorm)), None)
    if whole is None:
        raise ValueError("another layout")
    patches, attention = whole["patches"], layers[0]["attention"]
    heads = getattr(attention, "num_heads", 0) or getattr(attention, "num_attention_heads", 0)
    late = hasattr(body, "fc_norm") and whole["norm"] is body.fc_norm
    spec = ViTSpec(
        image=(patches.in_channels, *size), classes=whole["head"].out_features,
        layers=len(layers), hidden=patches.out_channels, heads=heads,
        inner=layers[0]["up"].out_features, patch=patches.stride[0], stem="patch",
        pool="class" if whole["token"] is not None else "mean_first" if late else "mean",
        eps=whole["norm"].eps,
    )  # fmt: skip
    network: Any = ViT(spec).eval()
    with torch.no_grad():
        kernels = patches.weight.flip(1) if bgr else patches.weight
        _fill(network.stem[0], kernels, patches.bias)
        network.positions.copy_(_same(_positions(whole, spec.squares), network.positions))
        for stage, layer in zip(network.stages, layers, strict=True):
            _fill_layer(stage, layer)
        _fill(network.norm, whole["norm"].weight, whole["norm"].bias)
        _fill(network.head, whole["head"].weight, whole["head"].bias)
    return network


def _parts(module: nn.Module, paths: dict[str, str]) -> _Parts | None:
    try:
        return {name: attrgetter(path)(module) for name, path in paths.items()}
    except AttributeError:
        return None


def _positions(whole: _Parts, squares: int) -> Tensor:
    """Return what is added to each token; the class token, if any, is part of the first."""
    rows = whole["positions"][0]
    if whole["token"] is None:
        return rows
    first = whole["token"][0]
    if len(rows) > squares:  # it has a position of its own
        first, rows = first + rows[:1], rows[1:]
    return torch.cat([first, rows])


def _fill_layer(stage: Any, layer: _Parts) -> None:
    weights, biases = _query_key_value(layer)
    stage.qkv.weight.copy_(_same(by_heads(weights, stage.heads), stage.qkv.weight))
    stage.qkv.bias.copy_(_same(by_heads(biases, stage.heads), stage.qkv.bias))
    _fill(stage.out, *_scaled(layer, "out"))
    _fill(stage.mlp[0], layer["up"].weight, layer["up"].bias)
    _fill(stage.mlp[2], *_scaled(layer, "down"))
    for name in ("attention_norm", "mlp_norm"):
        _fill(getattr(stage, name), layer[name].weight, layer[name].bias)
    units = torch.linspace(-6, 6, 100)
    if not torch.allclose(layer["act"](units), F.gelu(units), atol=1e-6):
        raise ValueError("another activation")


def _query_key_value(layer: _Parts) -> tuple[list[Tensor], list[Tensor]]:
    kinds = [layer[kind] for kind in ("query", "key", "value") if kind in layer]
    if kinds:
        weights, biases = [kind.weight for kind in kinds], [kind.bias for kind in kinds]
    else:
        weight, bias = layer["weight"], layer["bias"]
        weights, biases = weight.chunk(3), [None] * 3 if bias is None else bias.chunk(3)
    none = torch.zeros(len(weights[0]))
    return list(weights), [none if bias is None else bias for bias in biases]


def _scaled(layer: _Parts, name: str) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weight and bias, times the scale of what it adds where there is one."""
    linear, scale = layer[name], layer.get(f"{name}_scale")
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return linear.weight, linear.bias
    return linear.weight * gamma[:, None], None if linear.bias is None else linear.bias * gamma


def _fill(target: Any, weight: Tensor, bias: Tensor | None) -> None:
    target.weight.copy_(_same(weight, target.weight))
    target.bias.copy_(torch.zeros_like(target.bias) if bias is None else _same(bias, target.bias))


def _same(tensor: Tensor, target: Tensor) -> Tensor:
    if tensor.shape != target.shape:
        raise ValueError("another shape")
    return tensor
