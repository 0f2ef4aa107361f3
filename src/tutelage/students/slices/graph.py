"""Networks of known operators with fewer channels and blocks; again lists of operators.

Channels that a sum or product joins, and what a depthwise convolution reads and says, have one
width. Channels of the input, the logits, and those that a sum joins in unlike parts stay whole. Of
a convolution of several groups all groups stay, each with fewer channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import StudentError
from tutelage.students.families.graph import INPUT, GraphSpec, Node
from tutelage.students.families.graph_net import Block, GraphNet, blocks_of, inherited, stages_of
from tutelage.students.slices.channels import Slicing, choosing, cut, even_share, least_missed
from tutelage.students.slices.fitting import fit
from tutelage.students.slices.graph_aims import aims_of_graph, normed
from tutelage.students.slices.rescale import rescale

_MOST_DEPTHS, _MOST_STEPS = 5, 64  # what is tried of a large network, each exported and weighed
_WIDE = ("conv", "linear")  # the operators that have a width of their own


class _Ties:
    """Which channels go together, and which are given."""

    def __init__(self, spec: GraphSpec) -> None:
        self.sizes = {INPUT: spec.image[0], **{n.name: n.out for n in spec.nodes if n.op in _WIDE}}
        self.parent = {name: name for name in self.sizes}
        self.fixed = {INPUT}
        self.units = dict.fromkeys(self.sizes, 1)  # the least that a width may change by

    def root(self, name: str) -> str:
        """Return the one that stands for all that go together with a layer."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def tie(self, one: tuple[str, ...], other: tuple[str, ...]) -> None:
        """Let two outputs' channels go together; where their parts differ they are given."""
        if [self.sizes[n] for n in one] != [self.sizes[n] for n in other]:
            self.fixed.update(one, other)
            return
        for a, b in zip(one, other, strict=True):
            self.parent[self.root(b)] = self.root(a)

    def group(self, node: Node, read: tuple[str, ...]) -> None:
        """Let what a layer of several groups reads and says change by whole groups' worth."""
        if node.op != "conv" or node.groups == 1:
            return
        if len(read) > 1:
            self.fixed.update(read)
        for name in (node.name, *read):
            self.units[name] = math.lcm(self.units[name], node.groups)


def _ties(spec: GraphSpec) -> _Ties:
    ties = _Ties(spec)
    parts: dict[str, tuple[str, ...]] = {INPUT: (INPUT,)}  # whose channels an output is made of
    for node in spec.nodes:
        read = [parts[name] for name in node.of]
        if node.op in _WIDE:
            parts[node.name] = (node.name,)
            ties.group(node, read[0])
        elif node.op == "cat":
            parts[node.name] = tuple(name for each in read for name in each)
        else:
            parts[node.name] = read[0]
            for other in read[1:]:
                ties.tie(read[0], other)
        if node.op == "scale" or node is spec.nodes[-1]:
            ties.fixed.update(parts[node.name])
    return ties


def width_groups(spec: GraphSpec) -> dict[str, str]:
    """Return for each layer with a width of its own the first one that shares it.

    Layers whose widths are given (see the module) are not in it.
    """
    ties = _ties(spec)
    given = {ties.root(name) for name in ties.fixed}
    first: dict[str, str] = {}
    return {
        name: first.setdefault(ties.root(name), name)
        for name in ties.parent
        if ties.root(name) not in given
    }


def narrower(spec: GraphSpec, share: float) -> GraphSpec:
    """Return the spec with about a share of the channels, the same of every layer.

    Counts are even, or multiples of a convolution's groups.
    """
    free, ties = width_groups(spec), _ties(spec)
    units: dict[str, int] = {}
    for name, first in free.items():
        units[first] = math.lcm(units.get(first, 1), ties.units[name])

    def narrow(node: Node) -> Node:
        if node.name not in free:
            return node
        unit = units[free[node.name]]
        if unit == 1:
            return dataclasses.replace(node, out=even_share(node.out, share))
        each = max(2, round(share * node.out / unit))  # one a group would be depthwise
        return dataclasses.replace(node, out=min(node.out, unit * each))

    return dataclasses.replace(spec, nodes=tuple(map(narrow, spec.nodes)))


def without(spec: GraphSpec, block: Block) -> GraphSpec:
    """Return the spec without a spare block: what read it reads what it read."""
    gone, last = {node.name for node in block.nodes}, block.nodes[-1].name
    nodes = tuple(
        dataclasses.replace(node, of=tuple(block.source if n == last else n for n in node.of))
        for node in spec.nodes
        if node.name not in gone
    )
    return dataclasses.replace(spec, nodes=nodes)


def shallower(spec: GraphSpec) -> tuple[GraphSpec, ...]:
    """Return the spec, then with fewer spare blocks in each stage that has some, down to none.

    One fewer at a time, or a fifth where a stage has more than five; a stage's last ones go.
    """
    stages = [[block for block in stage if block.spare] for stage in stages_of(spec)]
    rounds = min(_MOST_DEPTHS, max(map(len, stages)))

    def after(number: int) -> GraphSpec:
        gone = [
            block
            for blocks in stages
            for block in blocks[len(blocks) - math.ceil(len(blocks) * number / rounds) :]
        ]
        return _without_all(spec, gone)

    return spec, *(after(number) for number in range(1, rounds + 1))


def is_part(spec: GraphSpec, whole: GraphSpec) -> bool:
    """Say whether a network of `spec` can be sliced from one of `whole`."""
    if not isinstance(spec, GraphSpec) or not isinstance(whole, GraphSpec):
        return False
    try:
        fewer = _without_blocks(whole, spec)
    except ValueError:
        return False
    free = width_groups(fewer)
    ends = (spec.image, spec.classes) == (whole.image, whole.classes)
    return (
        ends
        and len(fewer.nodes) == len(spec.nodes)
        and all(
            dataclasses.replace(node, out=there.out) == there
            and (node.out == there.out or (node.name in free and node.out < there.out))
            for node, there in zip(spec.nodes, fewer.nodes, strict=True)
        )
    )


def _without_blocks(whole: GraphSpec, spec: GraphSpec) -> GraphSpec:
    names = {node.name for node in spec.nodes}
    return _without_all(whole, [b for b in blocks_of(whole) if b.spare and b.name not in names])


def _without_all(spec: GraphSpec, blocks: Sequence[Block]) -> GraphSpec:
    for block in reversed(blocks):  # so that what is read instead is still there
        spec = without(spec, block)
    return spec


def slice_graph(
    network: GraphNet, spec: GraphSpec, inputs: Float[Tensor, "b c h w"], *, fitted: bool = False
) -> GraphNet:
    """Return a network of `spec` that starts with this one's weights, in eval mode.

    `spec` is part of the network's own (see `is_part`). Blocks go first, then channels (see
    `channels.importance`); what stays is copied as it is, statistics of the norms included. Raises
    `StudentError` where that is impossible. `fitted`: layers are then fitted to the network's, and
    filters before a norm scaled to the size that a lesson is made for.
    """
    some = choosing(inputs)
    fewer = _fewer_blocks(network, spec, some)
    wanted = GraphNet(spec)
    small, kept = cut(fewer, some, lambda name, _: len(wanted.get_parameter(f"{name}.weight")))
    try:
        wanted.load_state_dict(small.state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise StudentError(
            f"the teacher cannot be sliced: its channels go together otherwise than was found "
            f"({first}). Choose student.space: compact"
        ) from None
    wanted.eval()
    if fitted:
        fit(wanted, network, aims_of_graph(network, wanted, kept), inputs)
        rescale(normed(wanted))
    return wanted


def _fewer_blocks(network: GraphNet, spec: GraphSpec, inputs: Tensor) -> GraphNet:
    """Return a copy with the blocks of `spec`, of all the channels.

    Of neighbours that are built alike one goes at a time: the one without which the decision
    changes least (mean KL; squared, for a single output).
    """
    names, small = {node.name for node in spec.nodes}, network.eval()
    with torch.no_grad():
        own = small(inputs)
    for alike in _alike(network.spec):
        left = list(alike)
        for _ in range(sum(block.name not in names for block in alike)):
            rests = [(_dropped(small, block), block) for block in left]
            with torch.no_grad():
                small, gone = least_missed(rests, lambda rest: rest[0](inputs), own)
            left.remove(gone)
    found = GraphNet(_without_blocks(network.spec, spec))
    pairs = zip(found.state_dict(), small.state_dict().values(), strict=True)
    found.load_state_dict(dict(pairs))
    return found.eval()


def _alike(spec: GraphSpec) -> list[tuple[Block, ...]]:
    """Return runs of spare blocks that differ in nothing but names."""
    shapes = spec.shapes()

    def form(block: Block) -> tuple[object, ...]:
        names = {block.source: 0, **{n.name: i + 1 for i, n in enumerate(block.nodes)}}
        nodes = [
            (dataclasses.replace(n, name="0", of=("0",) * len(n.of)), [names[of] for of in n.of],
             shapes[n.name])
            for n in block.nodes
        ]  # fmt: skip
        return (*nodes,)

    runs = groupby(blocks_of(spec), lambda block: (block.spare, form(block) if block.spare else ()))
    return [tuple(run) for (spare, _), run in runs if spare]


def _dropped(network: GraphNet, block: Block) -> GraphNet:
    blocks = {b.name: b for b in blocks_of(network.spec)}
    return inherited(without(network.spec, blocks[block.name]), network.state_dict())


SLICING = Slicing(
    cut=slice_graph,
    is_part=is_part,
    narrower=narrower,
    shallower=shallower,
    steps=lambda spec: min(_MOST_STEPS, max(2, *(node.out for node in spec.nodes)) // 2),
)
