"""A foreign convolutional network as a list of known operators, by tracing it once.

Covers what `students.families.graph` does, however the network's own code is written: torch.export
follows it on one example. It does not cover operators outside that list, layers that are called
twice, or code that decides by its input.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.passes import reason
from tutelage.students.families.graph import INPUT, GraphSpec, Node
from tutelage.students.families.graph_net import GraphNet, inherited

_CLOSE = 1e-5  # of the largest logit, or of 1


class Untraced(Exception):
    """Why a network is no list of known operators, in a few words."""


def as_graph(module: nn.Module, image: tuple[int, int, int], classes: int) -> GraphNet:
    """Return the same network as a `GraphNet` with the module's weights, in eval mode.

    `image` is (channels, height, width) as it reads them. Both are asked about the same noise.
    Raises `Untraced` where that is impossible, or their logits differ by over 1e-5.
    """
    draw = torch.Generator().manual_seed(0)
    example = torch.rand(3, *image, generator=draw)
    try:
        own = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
        if isinstance(own, GraphNet) and own.spec.image == image:
            return own
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logits = own(example)
            program = torch.export.export(own, (example[:2],))
    except Exception as cause:  # foreign code, followed by torch: anything may come
        raise Untraced(f"torch.export cannot follow it ({reason(cause)})") from cause
    if not isinstance(logits, Tensor):
        raise Untraced(f"it returns a {type(logits).__name__}, not the logits alone")
    try:
        walk = _Walk(program)
        spec = GraphSpec(image=image, classes=classes, nodes=walk.needed())
    except Untraced:
        raise
    except Exception as cause:  # what torch wrote down is not what is looked for
        raise Untraced(reason(cause)) from cause
    network = inherited(spec, walk.tensors)
    with torch.no_grad():
        error = (network(example) - logits.reshape(3, -1)).abs().max()
    if not error <= _CLOSE * max(1.0, float(logits.abs().max())):
        raise Untraced(f"as a list of operators it says other logits, by {float(error):.2g}")
    return network


class _Walk:
    """The nodes of a traced network, in order, and each one's tensors by their names."""

    def __init__(self, program: Any) -> None:
        held = {**program.state_dict, **program.constants}
        signature = program.graph_signature
        paths = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.known: dict[Any, str] = {}  # traced values by the node that says them
        self.paths, self.last = paths, INPUT
        self.held: dict[Any, Tensor] = {}
        self.used: set[str] = set()
        for step in program.graph.nodes:
            if step.op == "placeholder" and step.name in paths:
                self.held[step] = held[paths[step.name]]
            elif step.op == "placeholder":
                self.known[step] = INPUT
            elif step.op == "call_function":
                self._call(step)
            elif step.op == "output":
                self._finish(step.args[0])

    def _call(self, step: Any) -> None:
        if not isinstance(step.target, torch._ops.OpOverload):
            raise Untraced(f"it computes {step.target}, which is no operator of such a list")
        name = step.target.name().removeprefix("aten::").split(".")[0]
        handler = _HANDLERS.get(name.removesuffix("_"))
        if handler is None:
            raise Untraced(f"it computes {name}, which is no operator of such a list")
        given = {a.name: a.default_value for a in step.target._schema.arguments}
        for argument, value in zip(step.target._schema.arguments, step.args, strict=False):
            given[argument.name] = value
        given.update(step.kwargs)
        said = handler(self, step, given)
        self.known[step] = said
        if name.endswith("_"):  # computed in place: what it read is now this
            self.known[step.args[0]] = said

    def add(self, op: str, of: tuple[str, ...], label: str = "", **knobs: Any) -> str:
        """Add a node and return its name."""
        label = re.sub(r"\W", "_", label or op, flags=re.ASCII)[-80:]
        self.nodes.append(Node(name=f"{len(self.nodes) + 1}_{label}", op=op, of=of, **knobs))
        return self.nodes[-1].name

    def read(self, value: Any) -> str:
        """Return the node that says a traced value."""
        if value not in self.known:
            raise Untraced("it computes with a constant, which no operator of such a list does")
        return self.known[value]

    def layer(self, op: str, step: Any, given: dict[str, Any], names: dict[str, str], **knobs: Any
              ) -> str:  # fmt: skip
        """Add a node that holds weights: `names` are theirs, by the argument they are given as."""
        tensors, label = {}, ""
        for argument, name in names.items():
            if given[argument] is None:
                continue
            if given[argument] not in self.held:
                raise Untraced(f"the {name} of a layer is computed, not stored")
            tensors[name] = self.held[given[argument]]
            path = self.paths[given[argument].name]
            label = label or path.rpartition(".")[0]
            if path in self.used:
                raise Untraced(f"'{label}' is called twice")
            self.used.add(path)
        said = self.add(op, (self.read(given["input"]),), label, **knobs)
        self.tensors |= {f"{said}.{name}": tensor for name, tensor in tensors.items()}
        return said

    def _finish(self, outputs: Any) -> None:
        if len(outputs) != 1:
            raise Untraced(f"it returns {len(outputs)} tensors")
        last = self.read(outputs[0])
        if _shape(outputs[0])[2:] == (1, 1):
            last = self.add("flatten", (last,))
        self.last = last

    def needed(self) -> tuple[Node, ...]:
        """Return the nodes that the output follows from; it is the last of them."""
        read, kept = {self.last}, []
        for node in reversed(self.nodes):
            if node.name in read:
                read.update(node.of)
                kept.append(node)
        return tuple(reversed(kept))


def _shape(step: Any) -> tuple[int, ...]:
    return tuple(step.meta["val"].shape)


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    value = list(value) or list(default)
    return (value[0], value[-1])


def _conv(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    read, groups, out = _shape(given["input"])[1], given["groups"], _shape(step)[1]
    depthwise = groups > 1 and groups == read == out
    padding, kernel = given["padding"], _shape(given["weight"])[2:]
    if isinstance(padding, str):
        raise Untraced(f"it has a convolution whose padding is '{padding}'")
    conv: dict[str, Any] = {"op": "conv", "out": out, "groups": groups}
    kind = {"op": "depthwise"} if depthwise else conv
    return walk.layer(
        **kind, step=step, given=given, names={"weight": "weight", "bias": "bias"},
        kernel=kernel, stride=_pair(given["stride"]), padding=_pair(padding),
        dilation=_pair(given["dilation"]), bias=given["bias"] is not None,
    )  # fmt: skip


def _linear(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    names, out = {"weight": "weight", "bias": "bias"}, _shape(step)[-1]
    return walk.layer("linear", step, given, names, out=out, bias=given["bias"] is not None)


def _norm(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    names = {a: a for a in ("weight", "bias", "running_mean", "running_var")}
    return walk.layer("norm", step, given, names, eps=float(given["eps"]))


def _activation(op: str) -> Callable[..., str]:
    def add(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
        return walk.add(op, (walk.read(step.args[0]),))

    return add


def _hardtanh(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    low, high = (given.get(a, given.get(b)) for a, b in (("min_val", "min"), ("max_val", "max")))
    if low != 0 or high != 6:
        raise Untraced(f"it clamps to {low} and {high}")
    return walk.add("relu6", (walk.read(step.args[0]),))


def _gelu(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    op = "gelu_tanh" if given["approximate"] == "tanh" else "gelu"
    return walk.add(op, (walk.read(given["self"]),))


def _leaky(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    return walk.add("leaky_relu", (walk.read(given["self"]),), slope=given["negative_slope"])


def _join(op: str) -> Callable[..., str]:
    def add(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
        if given.get("alpha", 1) != 1:
            raise Untraced("it weighs the parts of a sum")
        return walk.add(op, (walk.read(given["self"]), walk.read(given["other"])))

    return add


def _cat(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    if given["dim"] not in (1, 1 - len(_shape(step))):
        raise Untraced(f"it joins tensors along axis {given['dim']}")
    return walk.add("cat", tuple(walk.read(part) for part in given["tensors"]))


def _pool(op: str) -> Callable[..., str]:
    def add(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
        if given.get("divisor_override"):
            raise Untraced("it has a pooling with a divisor of its own")
        more: dict[str, Any] = {"padded": given["count_include_pad"]} if op == "avg_pool" else {}
        more |= {"dilation": _pair(given["dilation"])} if op == "max_pool" else {}
        return walk.add(
            op, (walk.read(given["self"]),), kernel=_pair(given["kernel_size"]),
            stride=_pair(given["stride"], given["kernel_size"]), padding=_pair(given["padding"]),
            ceil=given["ceil_mode"], **more,
        )  # fmt: skip

    return add


def _adaptive(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    source, (height, width), (rows, columns) = (
        walk.read(given["self"]), _shape(given["self"])[2:], given["output_size"]
    )  # fmt: skip
    if (rows, columns) == (height, width):
        return source
    if (rows, columns) == (1, 1):
        return walk.add("mean", (source,))
    if height % rows or width % columns:
        raise Untraced(f"it pools {height} x {width} to {rows} x {columns}, which does not divide")
    window = (height // rows, width // columns)
    return walk.add("avg_pool", (source,), kernel=window, stride=window)


def _mean(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    read = _shape(given["self"])
    axes = sorted(axis % len(read) for axis in given["dim"] or ())
    if len(read) != 4 or axes != [2, 3]:
        raise Untraced(f"it takes the mean over axes {given['dim']}")
    said = walk.add("mean", (walk.read(given["self"]),))
    return said if given["keepdim"] else walk.add("flatten", (said,))


def _reshape(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    """Views, as what they do to the shape: nothing, one vector an example, or 1 x 1 pixels."""
    source, read, said = walk.read(step.args[0]), _shape(step.args[0]), _shape(step)
    if read == said:
        return source
    if len(said) == 2 and said[0] == read[0]:
        return walk.add("flatten", (source,))
    if said == (*read, 1, 1):
        return walk.add("unflatten", (source,))
    raise Untraced(f"it reshapes {read[1:]} to {said[1:]}")


def _same(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    return walk.read(step.args[0])


def _dropout(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    if given["train"]:
        raise Untraced("it drops out when asked")
    return walk.read(step.args[0])


def _pad(walk: _Walk, step: Any, given: dict[str, Any]) -> str:
    sides = tuple(given["pad"])
    if given.get("mode", "constant") != "constant" or given["value"] or len(sides) != 4:
        raise Untraced("it pads by other than zeros around an image")
    return walk.add("pad", (walk.read(given["self"]),), sides=sides)


_HANDLERS: dict[str, Callable[[_Walk, Any, dict[str, Any]], str]] = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _norm,
    **{op: _activation(op) for op in
       ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh")},
    "hardtanh": _hardtanh,
    "clamp": _hardtanh,
    "gelu": _gelu,
    "leaky_relu": _leaky,
    "add": _join("add"),
    "mul": _join("mul"),
    "cat": _cat,
    "max_pool2d": _pool("max_pool"),
    "avg_pool2d": _pool("avg_pool"),
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("contiguous", "clone", "detach", "alias"), _same),
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "pad": _pad,
    "constant_pad_nd": _pad,
}  # fmt: skip
