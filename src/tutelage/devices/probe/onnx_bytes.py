"""ONNX files by hand: protobuf's wire format, and the operators that the probe times.

Python 3.9 and numpy alone; no onnx, and nothing of tutelage. Covers static shapes at batch 1,
opset 17.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

FLOAT, UINT8, INT8, INT32, INT64 = 1, 2, 3, 6, 7  # onnx.TensorProto
_TYPES = {FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4", INT64: "<i8"}


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: Any) -> bytes:
    """Encode one field: an integer, a float, text, bytes, or a list of these."""
    if isinstance(value, (list, tuple)):
        return b"".join(_field(number, item) for item in value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        return _field(1, name) + _field(8, value) + _field(20, 7)
    if isinstance(value, float):
        return _field(1, name) + _field(2, value) + _field(20, 1)
    return _field(1, name) + _field(3, value) + _field(20, 2)


def _value(name: str, kind: int, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _field(1, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


class Net:
    """A small network under construction, operator by operator.

    `form` is float32, int8 (as tutelage ships convolutions) or mixed (int8 weights, float
    arithmetic: how it ships matrix products). `at` names the tensor that was made last, of `shape`.
    """

    def __init__(self, form: str, shape: Sequence[int], vocabulary: int = 0) -> None:
        self.form, self.input, self.vocabulary = form, tuple(shape), vocabulary
        self.nodes: list[bytes] = []
        self.stored: dict[bytes, str] = {}
        self.at, self.real = "x", True
        self.shape: tuple[int, ...] = tuple(shape)

    def model(self) -> bytes:
        """Return the ONNX file's bytes."""
        self.to_float()
        graph = (
            _field(1, self.nodes)
            + _field(2, "probe")
            + _field(5, [body + _field(8, name) for body, name in self.stored.items()])
        )
        graph += _field(11, _value("x", INT64 if self.vocabulary else FLOAT, self.input))
        graph += _field(12, _value(self.at, FLOAT, self.shape))
        return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator over `inputs`; its output, named here, is where the network goes on."""
        self.at = f"t{len(self.nodes)}"
        made = _field(1, list(inputs)) + _field(2, self.at) + _field(3, self.at) + _field(4, kind)
        made += _field(5, [_attribute(key, value) for key, value in attributes.items()])
        self.nodes.append(made)
        return self.at

    def constant(self, kind: int, shape: Sequence[int], value: float | None = None) -> str:
        """Store a tensor: `value` throughout, or scattered numbers, the same on every machine."""
        import numpy as np

        count = math.prod(shape)
        if value is not None:
            return self.store(kind, shape, np.full(count, value))
        order = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761)
        share = (order % np.uint64(2**32)).astype(np.float64) / 2**32 - 0.5
        return self.store(kind, shape, share * {INT8: 250.0, INT32: 200.0}.get(kind, 0.2))

    def store(self, kind: int, shape: Sequence[int], numbers: Any) -> str:
        """Store these numbers, equal ones once; return their name."""
        import numpy as np

        data = np.asarray(numbers).astype(_TYPES[kind]).tobytes()
        body = _field(1, list(shape)) + _field(2, kind) + _field(9, data)
        return self.stored.setdefault(body, f"c{len(self.stored)}")

    def scale(self) -> tuple[str, str]:
        """Return scale and zero point of an int8 activation."""
        return self.constant(FLOAT, (), 0.02), self.constant(UINT8, (), 128)

    def to_int8(self) -> None:
        """Quantize the tensor where it is float."""
        if self.real:
            self.node("QuantizeLinear", self.at, *self.scale())
            self.real = False

    def to_float(self) -> None:
        """Dequantize the tensor where it is int8."""
        if not self.real:
            self.node("DequantizeLinear", self.at, *self.scale())
            self.real = True

    def conv(
        self, cout: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), *,
        depthwise: bool = False, relu: bool = True,
    ) -> None:  # fmt: skip
        """Add a convolution with bias, padded to keep the size but for its stride."""
        cin = self.shape[1]
        group = cin if depthwise else 1
        shape = (cout, cin // group, *kernel)
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        form = {"kernel_shape": list(kernel), "pads": pads, "strides": list(stride), "group": group}
        if self.form == "float32":
            weight = self.constant(FLOAT, shape), self.constant(FLOAT, (cout,))
            self.node("Conv", self.at, *weight, **form)
            if relu:
                self.node("Relu", self.at)
        else:
            self.to_int8()
            inputs = [self.at, *self.scale(), self.constant(INT8, shape)]
            inputs += [self.constant(FLOAT, (cout,), 0.002), self.constant(INT8, (cout,), 0)]
            self.node("QLinearConv", *inputs, *self.scale(), self.constant(INT32, (cout,)), **form)
        sides = (-(-side // step) for side, step in zip(self.shape[2:], stride))
        self.shape = (1, cout, *sides)

    def linear(self, cout: int) -> None:
        """Add a matrix product over the last axis with bias; all int8 knows no bias."""
        shape = (self.shape[-1], cout)
        if self.form == "int8":
            self.to_int8()
            weight = [self.constant(INT8, shape), self.constant(FLOAT, (), 0.002)]
            weight.append(self.constant(INT8, (), 0))
            self.node("QLinearMatMul", self.at, *self.scale(), *weight, *self.scale())
        else:
            self.to_float()
            data = self.at
            weight_at = self.constant(INT8 if self.form == "mixed" else FLOAT, shape)
            if self.form == "mixed":
                scales = self.constant(FLOAT, (cout,), 0.002)
                weight_at = self.node("DequantizeLinear", weight_at, scales, axis=1)
            bias = self.constant(FLOAT, (cout,))
            if len(self.shape) == 2:
                self.node("Gemm", data, weight_at, bias)
            else:
                self.node("Add", self.node("MatMul", data, weight_at), bias)
        self.shape = (*self.shape[:-1], cout)

    def gru(self, hidden: int) -> None:
        """Turn [1, channels, 1, steps] into the states of a GRU, [steps, 1, hidden]."""
        _, cin, _, steps = self.shape
        self.to_float()
        self.node("Squeeze", self.at, self.constant(INT64, (1,), 2))
        self.node("Transpose", self.at, perm=[2, 0, 1])
        parts = [(1, 3 * hidden, cin), (1, 3 * hidden, hidden), (1, 6 * hidden)]
        weight = [self.constant(FLOAT, shape) for shape in parts]
        self.node("GRU", self.at, *weight, hidden_size=hidden, linear_before_reset=1)
        self.node("Squeeze", self.at, self.constant(INT64, (1,), 1))
        self.shape = (steps, 1, hidden)

    def pool(self, kind: str) -> None:
        """Add a MaxPool or AveragePool that halves the size, or a global one and Flatten."""
        channels, height, width = self.shape[1:]
        if kind != "MaxPool":
            self.to_float()
        if kind == "GlobalAveragePool":
            self.node("Flatten", self.node(kind, self.at))
            self.shape = (1, channels)
        else:
            window = [min(2, height), min(2, width)]
            self.node(kind, self.at, kernel_shape=window, strides=window)
            self.shape = (1, channels, height // window[0], width // window[1])

    def mean(self, axis: int) -> None:
        """Add a ReduceMean over one axis, which goes."""
        self.to_float()
        self.node("ReduceMean", self.at, axes=[axis], keepdims=0)
        self.shape = (*self.shape[:axis], *self.shape[axis + 1 :])

    def add(self, other: str) -> None:
        """Add the tensor `other`, of the same shape and width."""
        if self.real:
            self.node("Add", self.at, other)
            return
        pair = [self.node("DequantizeLinear", t, *self.scale()) for t in (self.at, other)]
        self.node("QuantizeLinear", self.node("Add", *pair), *self.scale())

    def norm(self) -> None:
        """Add a LayerNormalization over the last axis."""
        size = self.shape[-1:]
        self.node("LayerNormalization", self.at, self.constant(FLOAT, size, 1.0),
                  self.constant(FLOAT, size))  # fmt: skip

    def gelu(self) -> None:
        """Add x (1 + erf(x / sqrt 2)) / 2, as torch writes it."""
        start, one = self.at, self.constant(FLOAT, (), 1.0)
        self.node("Erf", self.node("Div", start, self.constant(FLOAT, (), 1.4142135)))
        self.node("Mul", start, self.node("Add", self.at, one))
        self.node("Mul", self.at, self.constant(FLOAT, (), 0.5))

    def transpose(self, *order: int) -> None:
        """Change the order of the axes."""
        self.node("Transpose", self.at, perm=list(order))
        self.shape = tuple(self.shape[i] for i in order)

    def embed(self, width: int) -> None:
        """Look up each token of the input in a table."""
        self.node("Gather", self.constant(FLOAT, (self.vocabulary, width)), self.at)
        self.shape = (1, self.shape[1], width)

    def masked_mean(self) -> None:
        """Average [1, tokens, width] over the tokens of the input that are not 0."""
        data, axis = self.at, self.constant(INT64, (1,), 1)
        keep = self.node("Not", self.node("Equal", "x", self.constant(INT64, (), 0)))
        keep = self.node(
            "Unsqueeze", self.node("Cast", keep, to=FLOAT), self.constant(INT64, (1,), 2)
        )
        count = self.node("ReduceSum", keep, axis, keepdims=0)
        count = self.node("Clip", count, self.constant(FLOAT, (), 1.0))
        total = self.node("ReduceSum", self.node("Mul", data, keep), axis, keepdims=0)
        self.node("Div", total, count)
        self.shape = (1, self.shape[2])

    def to_map(self) -> None:
        """Turn [1, tokens, width] into [1, width, 1, tokens]."""
        self.transpose(0, 2, 1)
        self.node("Unsqueeze", self.at, self.constant(INT64, (1,), 2))
        self.shape = (1, self.shape[1], 1, self.shape[2])

    def to_rows(self) -> None:
        """Turn [1, width, 1, tokens] back into [1, tokens, width]."""
        self.to_float()
        self.node("Squeeze", self.at, self.constant(INT64, (1,), 2))
        self.shape = (1, self.shape[1], self.shape[3])
        self.transpose(0, 2, 1)

    def attend(self, heads: int) -> None:
        """Add self-attention over [1, tokens, width], and the sum with what came in."""
        start, (_, tokens, width) = self.at, self.shape
        self.linear(3 * width)
        split = self.store(INT64, (5,), [1, tokens, 3, heads, width // heads])
        parts = self.node("Transpose", self.node("Reshape", self.at, split), perm=[2, 0, 3, 1, 4])
        query, key, value = (
            self.node("Gather", parts, self.constant(INT64, (), i), axis=0) for i in range(3)
        )
        self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        self.node("Mul", self.at, self.constant(FLOAT, (), 0.3))
        self.node("MatMul", self.node("Softmax", self.at, axis=-1), value)
        self.node("Transpose", self.at, perm=[0, 2, 1, 3])
        self.node("Reshape", self.at, self.store(INT64, (3,), [1, tokens, width]))
        self.shape = (1, tokens, width)
        self.linear(width)
        self.add(start)
