"""A foreign teacher as a network to slice: traced once, with the data's inputs and classes.

Covers convolutional classifiers of images given as torch modules (a Python function, a timm or
torchvision name) that `teach.tracing` can follow. It does not cover teachers of values.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tutelage.passes import call
from tutelage.pipeline.inheriting import own_network
from tutelage.students.families.graph import ACTIVATIONS, INPUT, GraphSpec, Node
from tutelage.students.families.graph_net import GraphNet, inherited
from tutelage.students.slices.graph import width_groups
from tutelage.students.spec import StudentSpec
from tutelage.teach.teachers import Teacher
from tutelage.teach.torch_teacher import Renormalised, Reordered, Rescaled, TorchTeacher
from tutelage.teach.tracing import Untraced, as_graph

Sliceable = tuple[nn.Module, StudentSpec]
UNLIKE = (
    "slices are of built-in networks, of convolutional ones of images, of plain vision "
    "transformers and of BERT's kind, and this is another network"
)
_AFTER_HEAD = (*ACTIVATIONS, "mean", "flatten")  # what leaves classes in their order
_traced: WeakKeyDictionary[TorchTeacher, GraphNet | str] = WeakKeyDictionary()


def sliceable(teacher: Teacher, shape: Sequence[int]) -> tuple[Sliceable | None, str]:
    """Return the network to slice with its spec, or None and why there is none.

    It reads what students read, examples of `shape`, and says the data's classes in their order.
    """
    own = own_network(teacher, shape)
    if own is not None:
        return own, ""
    try:
        network = _as_asked(teacher, shape)
    except Untraced as why:
        return None, f"{UNLIKE}: {why}"
    return (network, StudentSpec(family="graph", knobs=network.spec)), ""


def _as_asked(teacher: Teacher, shape: Sequence[int]) -> GraphNet:
    """Return a traced teacher with what is done round it; raises `Untraced`."""
    inner: Any = teacher
    order = inner.order if isinstance(inner, Reordered) else None
    inner = inner.teacher if order is not None else inner
    scale = (inner.scale, inner.shift) if isinstance(inner, Renormalised) else None
    inner = inner.teacher if scale is not None else inner
    if isinstance(inner, Rescaled):
        raise Untraced("what it says is converted to the unit of the labels")
    if not isinstance(inner, TorchTeacher) or inner.forward is not call or len(shape) != 3:
        raise Untraced("it is no torch module that is called on images alone")
    network = _traced_once(inner, (3 if inner.repeats else shape[0], shape[1], shape[2]))
    nodes: list[Node] = []
    if inner.repeats:
        nodes.append(Node(name=_unused("repeat", network.spec), op="cat", of=(INPUT,) * 3))
    if scale is not None:
        by, plus = (tuple(x.flatten().expand(network.spec.image[0]).tolist()) for x in scale)
        of = nodes[-1].name if nodes else INPUT
        name = _unused("scale", network.spec)
        nodes.append(Node(name=name, op="scale", of=(of,), by=by, plus=plus))
    if nodes:
        image = (shape[0], shape[1], shape[2])
        network = inherited(_behind(nodes, network.spec, image), network.state_dict())
    if order is not None:
        _reorder(network, list(order))
    return network


def _traced_once(teacher: TorchTeacher, image: tuple[int, int, int]) -> GraphNet:
    """Return a copy of the traced module: tracing takes seconds, and is asked for at each stage."""
    if teacher not in _traced:
        try:
            network = as_graph(teacher.module, image, teacher.classes)
            narrow = not width_groups(network.spec)
            _traced[teacher] = "no layer of it has a width that can shrink" if narrow else network
        except Untraced as why:
            _traced[teacher] = str(why)
    found = _traced[teacher]
    if isinstance(found, str):
        raise Untraced(found)
    return copy.deepcopy(found)


def _unused(label: str, spec: GraphSpec) -> str:
    """Return a name that no node has: a student that was sliced so may teach the next one."""
    taken = {node.name for node in spec.nodes}
    return next(name for i in count() if (name := f"{i}_{label}") not in taken)


def _behind(first: list[Node], spec: GraphSpec, image: tuple[int, int, int]) -> GraphSpec:
    """Return the spec whose nodes read the last of `first` instead of the input."""
    rest = [
        dataclasses.replace(
            node, of=tuple(first[-1].name if name == INPUT else name for name in node.of)
        )
        for node in spec.nodes
    ]
    return dataclasses.replace(spec, image=image, nodes=(*first, *rest))


def _reorder(network: GraphNet, order: list[int]) -> None:
    """Let the last layer say its classes in another order, in place."""
    nodes, head = network.spec.nodes, network.head
    at = max(i for i, node in enumerate(nodes) if node.op in ("conv", "depthwise", "linear"))
    if any(node.op not in _AFTER_HEAD for node in nodes[at + 1 :]) or nodes[at].op == "depthwise":
        raise Untraced("its classes stand in another order, and no last layer says them")
    with torch.no_grad():
        for tensor in head.parameters():
            tensor.copy_(tensor[order].clone())
