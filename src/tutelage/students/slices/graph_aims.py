"""What the layers of a sliced graph are to say, and which a norm reads; see `fitting`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from tutelage.students.families.graph import ACTIVATIONS, WEIGHTED, Node
from tutelage.students.families.graph_net import Block, GraphNet, blocks_of
from tutelage.students.slices.fitting import Aim, Aims


def aims_of_graph(whole: GraphNet, small: GraphNet, kept: dict[str, Int[Tensor, " k"]]) -> Aims:
    """Return what layers are to say, of which the slice `small` kept these outputs.

    Each says what it said. But of a block that ends in a sum the last layer that writes to it aims
    at the whole's sum, behind the blocks that went; so does the last layer of one without a sum,
    where blocks went.
    """
    there, here = _paths(whole), _paths(small)
    aims = {path: Aim(outputs=rows, of=there[_name(path)]) for path, rows in kept.items()}
    blocks = blocks_of(whole.spec)
    stayed = [i for i, block in enumerate(blocks) if block.nodes[-1].name in here]
    for block, end in zip(stayed, (*stayed[1:], len(blocks)), strict=True):
        own, last = _end(blocks[block]), _end(blocks[end - 1])
        written = _written(blocks[block], own[0], here)
        if last[0].op == "add" and own[1] == last[1] and written is not None:
            layer, rest = written
            aims[layer] = Aim(outputs=kept[layer], of=there[last[0].name], **rest)
    return aims


def normed(network: GraphNet) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the convolutions that a batch norm alone reads, with these norms."""
    paths, nodes = _paths(network), {node.name: node for node in network.spec.nodes}
    readers = Counter(name for node in network.spec.nodes for name in node.of)
    for norm in nodes.values():
        layer = nodes.get(norm.of[0])
        if norm.op == "norm" and layer and layer.op == "conv" and readers[layer.name] == 1:
            yield network.get_submodule(paths[layer.name]), network.get_submodule(paths[norm.name])


def _name(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _paths(network: GraphNet) -> dict[str, str]:
    """Return the paths of nodes by their names."""
    paths = (path for path, _ in network.named_modules() if path.count(".") == 3)
    return {_name(path): path for path in paths}


def _end(block: Block) -> tuple[Node, tuple[str, ...]]:
    """Return a block's last node that is no activation, and the activations behind it."""
    nodes, behind = list(block.nodes), []
    while nodes[-1].op in ACTIVATIONS and len(nodes) > 1:
        behind.append(nodes.pop().op)
    return nodes[-1], tuple(behind)


def _written(block: Block, end: Node, here: dict[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return the slice's layer that speaks last of what `end` is made of, and the rest of that."""
    nodes = {node.name: node for node in block.nodes}
    order = [block.source, *nodes]
    *others, last = sorted(end.of, key=order.index) if end.op == "add" else [end.name]
    norm = nodes[last] if last in nodes and nodes[last].op == "norm" else None
    layer = nodes.get(last if norm is None else norm.of[0])
    if layer is None or layer.op not in WEIGHTED:
        return None
    path = here[layer.name]
    found: dict[str, Any] = {} if norm is None else {"norm": here[norm.name]}
    for other in others:  # one at most
        inside = other != block.source
        found |= {"rest": here[other] if inside else path.rsplit(".", 1)[0], "said": inside}
    return path, found
