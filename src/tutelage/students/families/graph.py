"""A convolutional network as data: a list of known operators, whatever code it came from.

Covers feed-forward networks of images: convolutions, linear layers, batch norms, the usual
activations and poolings, sums, products and concatenations. It does not cover attention, other
norms, or layers that are called twice.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.students.families.knobs import check_whole

INPUT = "input"
ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu",
    "gelu_tanh", "tanh",
)  # fmt: skip
WEIGHTED = ("conv", "depthwise", "linear")
_SAME = (*ACTIVATIONS, "norm")  # what they say is of the shape that they read
_JOINS = ("add", "mul", "cat")
_WINDOWS = ("conv", "depthwise", "max_pool", "avg_pool")
_BARE = ("mean", "flatten", "unflatten")
OPERATORS = (*_SAME, *_JOINS, *_WINDOWS, *_BARE, "linear", "pad", "scale")

_LARGEST = {"image": 16_384, "classes": 1_000_000}
MOST_NODES, _MOST_OUT, _MOST_WINDOW = 4_096, 65_536, 1_024
_MOST_CHANNELS = 1 << 20
_MOST_NUMBERS, _MOST_WEIGHTS = 1 << 28, 1 << 30  # of one output, and of all layers
_NAME = re.compile(r"\d{1,6}(_\w{1,200})?", re.ASCII)  # no module has an attribute named so
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator: `op` of the outputs named in `of`, itself known as `name`.

    `out` are the channels of a convolution or linear layer, `kernel` to `dilation` a window's rows
    and columns, `groups` a convolution's. `sides` of a pad are left, right, top, bottom. `eps` is a
    norm's, `slope` a leaky ReLU's, `ceil` rounds a pooling's shape up, `padded` averages padding
    too. A scale says `by` x + `plus`, a number a channel.
    """

    name: str
    op: str
    of: tuple[str, ...]
    out: int = 0
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    sides: tuple[int, ...] = (0, 0, 0, 0)
    bias: bool = False
    ceil: bool = False
    padded: bool = True
    eps: float = 1e-5
    slope: float = 0.01
    by: tuple[float, ...] = ()
    plus: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise ValueError(f"{self.op!r} is no operator; known are {', '.join(OPERATORS)}")
        if not all(isinstance(name, str) for name in (self.name, *self.of)):
            raise ValueError("nodes are named by strings")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a node is named {self.name[:80]!r}; write a number, or 7_conv")
        wanted = 2 if self.op in ("add", "mul") else len(self.of) if self.op == "cat" else 1
        if len(self.of) != wanted or not self.of:
            raise ValueError(f"'{self.name}' reads {len(self.of)} outputs; {self.op} reads others")
        self._check_numbers()

    def _check_numbers(self) -> None:
        least = 1 if self.op in ("conv", "linear") else 0
        self._whole("out", (self.out,), 1, least, _MOST_OUT if least else 0)
        self._whole("groups", (self.groups,), 1, 1, _MOST_OUT if self.op == "conv" else 1)
        for knob, low in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            self._whole(knob, getattr(self, knob), 2, low, _MOST_WINDOW)
        self._whole("sides", self.sides, 4, 0, _MOST_WINDOW)
        for knob in ("bias", "ceil", "padded"):
            if not isinstance(getattr(self, knob), bool):
                raise ValueError(f"'{self.name}': {knob} is true or false")
        for knob in ("eps", "slope"):
            value = getattr(self, knob)
            if not isinstance(value, float) or not 0 <= value <= 1:
                raise ValueError(f"'{self.name}': {knob} is {value!r}; it goes from 0 to 1")

        for knob in ("by", "plus"):
            values = getattr(self, knob)
            if not isinstance(values, tuple) or not all(map(_finite, values)):
                raise ValueError(f"'{self.name}': {knob} is a list of numbers")

    def _whole(self, knob: str, values: Any, count: int, low: int, high: int) -> None:
        whole = isinstance(values, tuple) and all(type(n) is int for n in values)
        if not whole or len(values) != count or not all(low <= n <= high for n in values):
            raise ValueError(
                f"'{self.name}': {knob} is {values!r}; it holds {count} whole numbers from {low} "
                f"to {high}"
            )

    @classmethod
    def from_json(cls, data: Any) -> Node:
        """Rebuild from `to_json`; raises `ValueError` for what no node is."""
        if isinstance(data, Node):
            return data
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or not {"name", "op", "of"} <= set(data) <= known:
            raise ValueError(f"{str(data)[:80]} is no node; it has a name, an op and an of")
        knobs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        if not isinstance(knobs["of"], tuple):
            raise ValueError(f"'{knobs['name']}': of is a list of names")
        return cls(**knobs)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: what differs from the defaults."""
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in dataclasses.asdict(self).items() if v != usual[k]}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A network as its nodes, in the order in which they run; the last one says the logits.

    `image` is (channels, height, width). Nodes read `input` or earlier nodes, and each is read.
    Raises `ValueError` for what is no such network, or a larger one than any that ships.
    """

    image: tuple[int, int, int]
    classes: int
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST, ("image",))
        if len(self.image) != 3:
            raise ValueError("image is [channels, height, width]")
        if not isinstance(self.nodes, tuple) or not 1 <= len(self.nodes) <= MOST_NODES:
            raise ValueError(f"nodes is a list of 1 to {MOST_NODES} nodes")
        object.__setattr__(self, "nodes", tuple(Node.from_json(node) for node in self.nodes))
        names = [node.name for node in self.nodes]
        if len(set(names)) < len(names):
            raise ValueError("two nodes have one name")
        read = {name for node in self.nodes for name in node.of}
        if unread := set(names[:-1]) - read:
            raise ValueError(f"'{min(unread)}' is never read")
        if self.shapes()[names[-1]] != (self.classes,):
            raise ValueError(f"the last node, '{names[-1]}', does not say {self.classes} numbers")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        nodes = [node.to_json() for node in self.nodes]
        return {"image": self.image, "classes": self.classes, "nodes": nodes}

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every output, and of the input, without the batch."""
        found: dict[str, Shape] = {INPUT: tuple(self.image)}
        weights = 0
        for node in self.nodes:
            if missing := [name for name in node.of if name not in found]:
                raise ValueError(f"'{node.name}' reads '{missing[0]}', which no earlier node is")
            read = [found[name] for name in node.of]
            shape = _shape(node, read)
            weights += _weights(node, read[0])
            large = shape[0] > _MOST_CHANNELS or math.prod(shape) > _MOST_NUMBERS
            if min(shape) < 1 or large or weights > _MOST_WEIGHTS:
                raise ValueError(f"'{node.name}' would be of shape {shape}, or too large")
            found[node.name] = shape
        return found


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _weights(node: Node, read: Shape) -> int:
    if node.op == "linear":
        return node.out * read[0]
    channels = node.out if node.op == "conv" else 1 if node.op == "depthwise" else 0
    return channels * read[0] // node.groups * math.prod(node.kernel)


def _shape(node: Node, read: list[Shape]) -> Shape:
    """Return the shape of what a node says; raises `ValueError` where it cannot read its input."""
    shape, op = read[0], node.op
    if op in _JOINS:
        return _joined(node, read)
    if op in _SAME:
        return shape
    if op == "scale":
        if {len(node.by), len(node.plus)} != {shape[0]}:
            raise ValueError(f"'{node.name}': by and plus need {shape[0]} numbers each")
        return shape
    if (len(shape) == 1) is not (op in ("linear", "unflatten")):
        raise ValueError(f"'{node.name}': {op} cannot read the shape {shape}")
    if op in _WINDOWS:
        return _windowed(node, shape)
    left, right, top, bottom = node.sides
    made: dict[str, Shape] = {
        "linear": (node.out,),
        "flatten": (math.prod(shape),),
        "mean": (shape[0], 1, 1),
        "unflatten": (shape[0], 1, 1),
        "pad": (shape[0], *(n + more for n, more in zip(shape[1:], (top + bottom, left + right),
                                                        strict=False))),
    }  # fmt: skip
    return made[op]


def _windowed(node: Node, shape: Shape) -> Shape:
    op, groups = node.op, node.groups
    if op == "conv" and (shape[0] % groups or node.out % groups or node.out == groups > 1):
        raise ValueError(f"'{node.name}': {groups} groups cannot make {node.out} of {shape[0]}")
    if "pool" in op and any(2 * p > k for p, k in zip(node.padding, node.kernel, strict=True)):
        raise ValueError(f"'{node.name}': padding is at most half of the kernel")
    if op == "avg_pool" and node.dilation != (1, 1):
        raise ValueError(f"'{node.name}': averages have no dilation")
    sides = (_windows(node, i, shape[1 + i]) for i in (0, 1))
    return (node.out if op == "conv" else shape[0], *sides)


def _joined(node: Node, read: list[Shape]) -> Shape:
    """Sums and products are of equal shapes, or of (c, 1, 1) and (c, h, w)."""
    if node.op == "cat" and len({shape[1:] for shape in read}) == 1:
        return sum(shape[0] for shape in read), *read[0][1:]
    wide = max(read, key=math.prod)
    if node.op == "cat" or any(s != wide and s != (wide[0], 1, 1) for s in read):
        raise ValueError(f"'{node.name}': {node.op} cannot join the shapes {read}")
    return wide


def _windows(node: Node, axis: int, size: int) -> int:
    """Return how many windows fit along one side, as torch counts them."""
    stride, padding = node.stride[axis], node.padding[axis]
    room = size + 2 * padding - node.dilation[axis] * (node.kernel[axis] - 1) - 1
    if not node.ceil or "pool" not in node.op:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    # The last window of a pooling must start inside the image or its padding on the left.
    return count - ((count - 1) * stride >= size + padding)
