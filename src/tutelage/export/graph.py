"""What an exported ONNX graph costs, counted exactly from the file; no device is needed.

Covers: multiply-accumulates of convolutions, matrix products (float or quantized) and recurrent
layers, stored bytes, bytes moved by each operator, the peak of the activations alive at once. Not
covered: scratch buffers of a runtime's kernels, in-place reuse beyond views and Relu or Clip, and
operators whose work depends on a loop or a formula (`If`, `Einsum`), refused by name.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import ExportError
from tutelage.export.graph_file import corrupt, load_graph
from tutelage.export.shapes import infer
from tutelage.export.unroll import way
from tutelage.records import OpCost

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_ACTIVATIONS = {"Relu", "Clip"}  # every runtime folds these into the operator before them
_PASSING = _ACTIVATIONS | _VIEWS - {"Identity", "Dropout"}  # runtimes leave those two out
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_DYNAMIC = "DynamicQuantizeLinear"
_SUMS = {"MatMulInteger", "ConvInteger"}  # their sums are made float and scaled where they are
# fmt: off
# Operator -> index of the weight among its inputs; the data is input 0.
_CONV = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
_GEMM = {"Gemm": 1, "FusedGemm": 1, "QGemm": 3}
_MATMUL = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "DynamicQuantizeMatMul": 1,
           "MatMulIntegerToFloat": 1}
_RECURRENT = {"GRU": 1, "LSTM": 1, "RNN": 1}
_WEIGHT_AT = {**_CONV, **_GEMM, **_MATMUL, **_RECURRENT}
_INTEGER = {"QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul",
            "MatMulIntegerToFloat", _QUANTIZE, _DEQUANTIZE, _DYNAMIC}
_UNCOUNTED = {"If", "Loop", "Scan", "SequenceMap", "Einsum", "Attention", "DeformConv"}
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCosts:
    """What a graph costs for one example; `peak_activation_bytes` counts inputs and outputs too.

    `parameter_bytes` counts every constant as a runtime holds it (stored, but for one that is only
    cast: runtimes cast once, at load), `file_bytes` the file with its external data.
    """

    ops: tuple[OpCost, ...]
    macs: int
    parameter_bytes: int
    peak_activation_bytes: int
    file_bytes: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GraphCosts:
        """Rebuild from what `dataclasses.asdict` makes of it."""
        ops = tuple(OpCost(**{**op, "channels": tuple(op["channels"])}) for op in data["ops"])
        return cls(**{**data, "ops": ops})


def graph_costs(source: str | Path | ModelProto) -> GraphCosts:
    """Count what an ONNX graph costs at batch 1.

    `source` is a file or a model in memory. A graph of Q/DQ pairs is counted as the 8-bit operators
    it fuses to, one that stops early (`export.exits`) as the way to its end. Raises
    `CorruptFileError` for a truncated or altered file, `ExportError` for a missing file, a dynamic
    shape other than the batch, or an operator that cannot be counted.
    """
    model, file_bytes, where = load_graph(source)
    try:
        walk = _Walk(way(model), where)
        ops, peak = walk.costs(), walk.peak_activation_bytes()
    except (KeyError, IndexError) as error:  # the file names a type or tensor that is not there
        raise corrupt(where, error) from error
    return GraphCosts(
        ops=ops,
        macs=sum(op.macs for op in ops),
        parameter_bytes=walk.parameter_bytes,
        peak_activation_bytes=peak,
        file_bytes=file_bytes,
    )


class _Walk:
    """One pass over a graph: shapes, constants, widths and which tensors share a buffer."""

    def __init__(self, model: ModelProto, where: str) -> None:
        self.where = where
        try:
            self.tensors = infer(model)
        except Exception as error:  # see load_graph
            raise corrupt(where, error) from error
        graph = model.graph
        self.constants = {t.name: _bytes(*self.tensors[t.name]) for t in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self.constants]
        self.outputs = {o.name for o in graph.output}
        self.parameter_bytes = sum(self.constants.values())
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        self.parent: dict[str, str] = {}
        self.active: list[NodeProto] = []  # nodes that depend on the input
        for node in graph.node:
            self._fold_or_keep(node)
        self.parameter_bytes += self._widened(graph)
        for node in self.active:
            self._merge(node)
        self.buffer_bytes = self._sizes()

    def costs(self) -> tuple[OpCost, ...]:
        """Price each operator that remains after fusion."""
        left = [
            node
            for node in self.active
            if node.op_type not in {_QUANTIZE, _DEQUANTIZE, _DYNAMIC}
            and node.output[0] not in self.parent
        ]
        views = Counter(maker for maker in map(self._passed_on, self.active) if maker is not None)
        return tuple(self._cost(node, views[node.output[0]]) for node in left)

    def peak_activation_bytes(self) -> int:
        """Most bytes alive at one step, in the order in which the file lists its operators."""
        last = max(0, len(self.active) - 1)
        spans = {self._root(name): [0, 0] for name in self.inputs}
        for step, node in enumerate(self.active):
            for name in (*self._activations(node), *self._written(node)):
                spans.setdefault(self._root(name), [step, step])[1] = step
        for name in self.outputs - self.constants.keys():
            spans[self._root(name)][1] = last
        change = [0] * (last + 2)
        for root, (born, died) in spans.items():
            change[born] += self.buffer_bytes[root]
            change[died + 1] -= self.buffer_bytes[root]
        return max(accumulate(change))

    def _fold_or_keep(self, node: NodeProto) -> None:
        if node.op_type in _UNCOUNTED:
            raise ExportError(
                f"{node.op_type} '{_name(node)}' in '{self.where}' has no exact operation count: "
                "use convolutions or matrix products instead"
            )
        self.producer.update(dict.fromkeys(node.output, node))
        used = [name for name in node.input if name]
        if node.op_type == "Constant":
            stored = self.constants[node.output[0]] = _bytes(*self._tensor(node.output[0]))
            self.parameter_bytes += stored
        elif node.op_type in {"Shape", "Size"}:
            self.constants[node.output[0]] = 0
        elif used and all(name in self.constants for name in used):
            stored = sum(self.constants[name] for name in used)
            if node.op_type == "Cast":
                stored = _bytes(*self._tensor(node.output[0]))
            self.constants.update(dict.fromkeys(node.output, stored))
        else:
            self.active.append(node)
            for name in self._activations(node):
                self.consumers.setdefault(name, []).append(node)

    def _widened(self, graph: GraphProto) -> int:
        """Return what casts of stored constants add; the stored ones go, unless they are read."""
        stored = {tensor.name for tensor in graph.initializer}
        stored |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
        casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in stored]
        others = (name for n in graph.node if n.op_type != "Cast" for name in n.input)
        gone = {n.input[0] for n in casts}.difference(others, self.outputs)
        held = sum(self.constants[n.output[0]] for n in casts)
        return held - sum(self.constants[name] for name in gone)

    def _merge(self, node: NodeProto) -> None:
        """Let tensors that fusion keeps in one buffer share it."""
        activations = self._activations(node)
        if not activations:
            return
        source, target, kind = activations[0], node.output[0], node.op_type
        share = kind in _VIEWS
        if kind in _ACTIVATIONS:
            share = self._alone(source) and self._root(source) not in self.inputs
        elif kind == _QUANTIZE:
            maker = self._maker(source)
            share = self._alone(source) and (maker is None or self._bits(maker) == 8)
        elif kind == _DEQUANTIZE:
            # A float reader needs the float tensor itself.
            share = all(self._bits(reader) == 8 for reader in self._readers(target))
        elif kind in {"Cast", "Mul"}:
            share = self._alone(source) and self._is_sum(source)
        if share:
            self.parent[target] = self._root(source)

    def _alone(self, name: str) -> bool:
        """Say whether a buffer has one reader left, so that it may be written over."""
        names, readers = [self._root(name)], 0
        for shared in names:
            for node in self.consumers.get(shared, []):
                if node.output[0] in self.parent:
                    names.append(node.output[0])
                else:
                    readers += 1
        return readers == 1 and self.outputs.isdisjoint(names)

    def _root(self, name: str) -> str:
        while name in self.parent:
            name = self.parent[name]
        return name

    def _is_sum(self, name: str) -> bool:
        node = self.producer.get(name)
        if node is not None and node.op_type == "Cast":
            node = self.producer.get(node.input[0])
        return node is not None and node.op_type in _SUMS

    def _maker(self, name: str) -> NodeProto | None:
        """Return the node whose arithmetic made `name`, or None for a graph input."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _VIEWS | _ACTIVATIONS:
            node = self.producer.get(self._activations(node)[0])
        return node

    def _readers(self, name: str) -> list[NodeProto]:
        return [
            reader
            for node in self.consumers.get(name, [])
            for reader in (self._readers(node.output[0]) if node.op_type in _VIEWS else [node])
        ]

    def _passed_on(self, node: NodeProto) -> str | None:
        """Return the first output of whoever made what a node only passes on; None for others.

        A Relu or Clip behind a product is part of that.
        """
        if node.op_type not in _PASSING or node.output[0] not in self.parent:
            return None
        maker = self._maker(self._activations(node)[0])
        if maker is None or (node.op_type in _ACTIVATIONS and maker.op_type in _WEIGHT_AT):
            return None
        return maker.output[0]

    def _activations(self, node: NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self.constants]

    def _written(self, node: NodeProto) -> list[str]:
        return [name for name in node.output if name in self.consumers or name in self.outputs]

    def _bits(self, node: NodeProto) -> int:
        kind = node.op_type
        if kind in _INTEGER or kind.startswith("QLinear"):
            return 8
        read = self._activations(node)
        if kind in _WEIGHT_AT:
            read = [*read, node.input[_WEIGHT_AT[kind]]]
        elif self._class(node) != "pool" and not self._ends_in_eight(node.output[0]):
            return 32  # a pool sums its integers as they stand; all else is as wide as what it says
        return 8 if read and all(self._is_eight(name) for name in read) else 32

    def _ends_in_eight(self, name: str) -> bool:
        """Say whether a tensor holds one-byte integers, or is read as those only."""
        readers, through = self.consumers.get(name, []), _VIEWS | _ACTIVATIONS
        return (
            self._is_eight(name)
            or bool(readers)
            and all(
                node.op_type == _QUANTIZE
                or (node.op_type in through and self._ends_in_eight(node.output[0]))
                for node in readers
            )
        )

    def _is_eight(self, name: str) -> bool:
        """Say whether a tensor holds, or comes straight from, one-byte integers."""
        from onnx import TensorProto as T

        one_byte, seen = {T.INT8, T.UINT8, T.INT4, T.UINT4}, name
        while seen in self.tensors and self.tensors[seen][1] not in one_byte:
            node = self.producer.get(seen)
            if node is None or node.op_type not in _VIEWS | _ACTIVATIONS | {_DEQUANTIZE}:
                return False
            seen = node.input[0]
        return seen in self.tensors

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        names = [*self.inputs, *(name for n in self.active for name in self._written(n))]
        for name in names:
            size, root = _bytes(*self._tensor(name)), self._root(name)
            sizes[root] = min(size, sizes.get(root, size))
        return sizes

    def _tensor(self, name: str) -> tuple[tuple[int, ...], int]:
        if name in self.tensors:
            return self.tensors[name]
        maker = self.producer.get(name)
        what = f"{maker.op_type} '{_name(maker)}'" if maker else f"input '{name}'"
        raise ExportError(
            f"the shape of {what} in '{self.where}' is not known ('{name}'): "
            "export with static shapes (only the batch may be dynamic)"
        )

    def _cost(self, node: NodeProto, views: int) -> OpCost:
        written = self._written(node)
        reads = {self._root(name) for name in self._activations(node)}
        writes = {self._root(name) for name in written}
        return OpCost(
            name=_name(node),
            op=self._class(node),
            bits=self._bits(node),
            macs=self._macs(node),
            weight_bytes=self._stored_bytes(node),
            read_bytes=sum(self.buffer_bytes[root] for root in reads),
            write_bytes=sum(self.buffer_bytes[root] for root in writes),
            output_elements=sum(math.prod(self._tensor(name)[0]) for name in written),
            kind=node.op_type,
            views=views,
            **self._form(node),
        )

    def _stored_bytes(self, node: NodeProto) -> int:
        """Return the bytes of constants that are read: of a table only the rows looked up."""
        if node.op_type == "Gather" and node.input[0] in self.constants:
            return _bytes(*self._tensor(node.output[0]))
        return sum(self.constants.get(name, 0) for name in set(node.input) - {""})

    def _form(self, node: NodeProto) -> dict[str, Any]:
        """Return how the weights of a product are stored, its steps, and its channels."""
        kind = node.op_type
        if kind not in _WEIGHT_AT:
            return {}
        stored = node.input[_WEIGHT_AT[kind]]
        data = self._tensor(node.input[0])[0]
        out, group = self._tensor(node.output[0])[0], _attribute(node, "group", 1)
        channels = (data[1] // group, out[1]) if kind in _CONV else (data[-1], out[-1])
        bits = (8 if self._is_eight(stored) else 32) if stored in self.constants else 0
        return {"weight_bits": bits, "steps": data[0] if kind in _RECURRENT else 1,
                "channels": channels}  # fmt: skip

    def _macs(self, node: NodeProto) -> int:
        kind = node.op_type
        if kind not in _WEIGHT_AT:
            return 0
        data, weight = (self._tensor(node.input[i])[0] for i in (0, _WEIGHT_AT[kind]))
        if kind in _RECURRENT:  # at every step the input and the state meet all their weights
            state, _ = self._tensor(node.input[2])
            return math.prod(data[:2]) * (math.prod(weight) + math.prod(state))
        out = math.prod(self._tensor(node.output[0])[0])
        if kind == "ConvTranspose":  # each input element meets [out/group, *kernel] weights
            return math.prod(data) * math.prod(weight[1:])
        if kind in _CONV:  # each output element sums over [in/group, *kernel]
            return out * math.prod(weight[1:])
        if kind in _GEMM:
            return out * (data[0] if _attribute(node, "transA", 0) else data[1])
        return out * data[-1]

    def _class(self, node: NodeProto) -> str:
        kind = node.op_type
        if kind in _CONV:
            group, channels = _attribute(node, "group", 1), self._tensor(node.input[0])[0][1]
            return "depthwise" if group == channels and group > 1 else "conv"
        if kind in _WEIGHT_AT:
            return "linear"
        if "Pool" in kind or kind == "ReduceMean":
            return "pool"
        return "add" if kind in {"Add", "Sum", "QLinearAdd"} else "other"


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    from onnx import TensorProto, helper

    count = math.prod(shape)
    if kind in {TensorProto.INT4, TensorProto.UINT4}:
        return (count + 1) // 2
    return count * helper.tensor_dtype_to_np_dtype(kind).itemsize
