"""The network of a graph spec: its nodes as modules, in blocks, in stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.graph import INPUT, WEIGHTED, GraphSpec, Node, Shape

_ACTIVATION: dict[str, Callable[[Node], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "relu6": lambda _: nn.ReLU6(),
    "leaky_relu": lambda node: nn.LeakyReLU(node.slope),
    "hardswish": lambda _: nn.Hardswish(),
    "hardsigmoid": lambda _: nn.Hardsigmoid(),
    "sigmoid": lambda _: nn.Sigmoid(),
    "silu": lambda _: nn.SiLU(),
    "gelu": lambda _: nn.GELU(),
    "gelu_tanh": lambda _: nn.GELU("tanh"),
    "tanh": lambda _: nn.Tanh(),
    "mean": lambda _: nn.AdaptiveAvgPool2d(1),
    "flatten": lambda _: nn.Flatten(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Nodes that read one output of what was before, and say one: a layer or a residual block.

    `shape` is what it says. `spare`: a residual block without which all shapes are as they were.
    """

    nodes: tuple[Node, ...]
    source: str
    shape: Shape
    spare: bool

    @property
    def name(self) -> str:
        """Its first node's."""
        return self.nodes[0].name


def blocks_of(spec: GraphSpec) -> tuple[Block, ...]:
    """Return the network cut wherever a single output is all that later nodes read.

    What holds no weights and keeps the resolution stays with what it follows.
    """
    shapes = spec.shapes()
    found: list[list[tuple[Node, ...]]] = []
    for unit in _units(spec.nodes):
        first, last = unit[0], unit[-1]
        same = _resolution(shapes[last.name]) == _resolution(shapes[first.of[0]])
        opens = len(unit) > 1 or first.op in WEIGHTED or not same
        if opens or not found:
            found.append([])
        found[-1].append(unit)
    blocks: list[Block] = []
    source = INPUT
    for units in found:
        nodes = tuple(node for unit in units for node in unit)
        shape, ends = shapes[nodes[-1].name], units[0][-1]
        spare = ends.op == "add" and source in ends.of and shape == shapes[source]
        spare = spare and source != INPUT
        blocks.append(Block(nodes=nodes, source=source, shape=shape, spare=spare))
        source = nodes[-1].name
    return tuple(blocks)


def _units(nodes: tuple[Node, ...]) -> list[tuple[Node, ...]]:
    """Cut after every node that alone is read later."""
    last = {name: i for i, node in enumerate(nodes) for name in node.of}
    found, start, until = [], 0, last.get(INPUT, -1)
    for i, node in enumerate(nodes):
        if until <= i:  # what was made before this node is not read after it
            found.append(nodes[start : i + 1])
            start = i + 1
        until = max(until, last.get(node.name, -1))
    return found


def stages_of(spec: GraphSpec) -> tuple[tuple[Block, ...], ...]:
    """Return the blocks in runs of one resolution."""
    stages: list[list[Block]] = []
    for block in blocks_of(spec):
        if not stages or _resolution(stages[-1][-1].shape) != _resolution(block.shape):
            stages.append([])
        stages[-1].append(block)
    return tuple(map(tuple, stages))


def _resolution(shape: Shape) -> Shape:
    return shape[1:] or (1, 1)


class GraphNet(nn.Module):
    """The nodes of a spec as `stages.<i>.<block>.<node>`; the stages are its taps."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        shapes = spec.shapes()
        self.stages = nn.Sequential()
        for stage in stages_of(spec):
            chain = nn.Sequential()
            for block in stage:
                chain.add_module(block.name, _Block(block, shapes))
            self.stages.append(chain)

    @property
    def head(self) -> nn.Module:
        """The last layer with weights."""
        return [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        return self.stages(images)


class _Block(nn.Module):
    def __init__(self, block: Block, shapes: dict[str, Shape]) -> None:
        super().__init__()
        self.source = block.source
        self.reads = tuple((node.name, node.of) for node in block.nodes)
        for node in block.nodes:
            self.add_module(node.name, _module(node, shapes[node.of[0]]))

    def forward(self, x: Tensor) -> Tensor:
        said = {self.source: x}
        for name, of in self.reads:
            x = said[name] = self._modules[name](*(said[n] for n in of))  # pyright: ignore
        return x


class _Scale(nn.Module):
    by: Tensor
    plus: Tensor

    def __init__(self, node: Node, read: Shape) -> None:
        super().__init__()
        shape = (-1, *(1 for _ in read[1:]))
        self.register_buffer("by", torch.tensor(node.by).view(shape), persistent=False)
        self.register_buffer("plus", torch.tensor(node.plus).view(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by + self.plus


def _module(node: Node, read: Shape) -> nn.Module:
    channels, op = read[0], node.op
    if op in _ACTIVATION:
        return _ACTIVATION[op](node)
    if op == "linear":
        return nn.Linear(channels, node.out, bias=node.bias)
    if op == "norm":
        return (nn.BatchNorm1d if len(read) == 1 else nn.BatchNorm2d)(channels, eps=node.eps)
    if op in ("conv", "depthwise"):
        out, groups = (node.out, node.groups) if op == "conv" else (channels, channels)
        return nn.Conv2d(
            channels, out, _two(node.kernel), _two(node.stride), _two(node.padding),
            _two(node.dilation), groups, node.bias,
        )  # fmt: skip
    return _Scale(node, read) if op == "scale" else _Of(node)


def inherited(spec: GraphSpec, tensors: Mapping[str, Tensor]) -> GraphNet:
    """Return the network of a spec in eval mode, with those of the tensors that its layers hold.

    Tensors go by their node and name, whatever stage and block the node is in.
    """
    network = GraphNet(spec)
    own = network.state_dict()
    known = {_short(path): tensor for path, tensor in tensors.items()}
    network.load_state_dict({path: known.get(_short(path), own[path]) for path in own})
    return network.eval()


def _short(path: str) -> str:
    return ".".join(path.rsplit(".", 2)[-2:])


def _two(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]


class _Of(nn.Module):
    """An operator that torch has as a function alone, or with knobs."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def extra_repr(self) -> str:
        return self.node.op

    def forward(self, *x: Tensor) -> Tensor:
        node = self.node
        if node.op == "add":
            return x[0] + x[1]
        if node.op == "mul":
            return x[0] * x[1]
        if node.op == "cat":
            return torch.cat(x, 1)
        if node.op == "unflatten":
            return x[0][:, :, None, None]
        if node.op == "pad":
            return F.pad(x[0], list(node.sides))
        window = (x[0], node.kernel, node.stride, node.padding)
        if node.op == "max_pool":
            return F.max_pool2d(*window, node.dilation, node.ceil)
        return F.avg_pool2d(*window, node.ceil, node.padded)
