"""Static int8 for ONNX: calibrate on examples, then write QLinearConv directly.

The graph is written in operator form rather than with a Q/DQ pair round every operator: weights and
biases then need no operators of their own, which makes the file leaner at the same speed. Standard
ONNX operators only. Activations are uint8 by default: onnxruntime's x86 kernels are quick for
uint8 inputs alone (int8 ones ran up to five times slower than float32); int8 is there for Arm.

Covers Conv, the ReLU behind it, residual Add, Concat and MaxPool; MatMul with stored weights, whose
input is rounded as it comes (onnxruntime runs that as one operator, and no range is fixed); tables
that tokens or positions are looked up in, of which only the rows read become float; and the stored
weights of Gemm, which computes in float, so that logits are never rounded. All else runs in float,
and recurrent layers keep float weights: an error would come back at every step.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from tutelage.errors import RecipeError
from tutelage.export.artifact import OnnxModel, load_onnx
from tutelage.export.calibrate import METHODS, Method, Ranges, calibrate
from tutelage.export.layers import is_grouped, layers_of
from tutelage.export.rounding import weight_levels
from tutelage.export.shrink import shrunk
from tutelage.files import write_atomically
from tutelage.registry import near_matches

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How int8 is written.

    `activations`: `uint8` (x86) or `int8` (Arm). `per_channel` gives each output channel its scale.
    `float_stem` leaves layers that read fewer than four channels in float: quicker, more memory.
    """

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    float_stem: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One candidate: calibration method, layers left in float, and the loss that was checked."""

    method: Method
    kept_float: tuple[str, ...]
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOutcome:
    """The file that was kept, how it came about, and everything that was tried, in order."""

    path: Path
    method: Method
    kept_float: tuple[str, ...]
    loss: float
    tried: tuple[Attempt, ...]


def layer_names(path: Path | str) -> tuple[str, ...]:
    """Name the layers of a float file that int8 applies to, in graph order."""
    return tuple(name for name, _ in layers_of(load_onnx(path).graph))


def quantize_int8(
    float_path: Path | str,
    int8_path: Path | str,
    calibration: Float[np.ndarray, "n c h w"],
    *,
    method: Method = "minmax",
    keep_float: tuple[str, ...] = (),
    precision: Precision | None = None,
) -> Path:
    """Write the int8 form of `float_path`, calibrated on `calibration` (normalised inputs).

    Raises `RecipeError` for an unknown method or layer name, `DataError` for calibration data that
    does not fit or holds NaN, `ExportError` when the network's activations are not finite.
    """
    model = load_onnx(float_path)
    ranges = calibrate(model, calibration, method)
    return _write(model, ranges, keep_float, precision or Precision(), Path(int8_path))


def quantize_within(
    float_path: Path | str,
    int8_path: Path | str,
    calibration: Float[np.ndarray, "n c h w"],
    check: Callable[[Path], float],
    max_loss: float,
    *,
    precision: Precision | None = None,
    most_float: int = 4,
    most_bytes: float = math.inf,
) -> QuantizeOutcome:
    """Search for an int8 file whose `check` is at most `max_loss`, mildest repair first.

    Tries each calibration method, then the best of them with the most sensitive layers left in
    float, one more at a time up to `most_float`. Stops at the first that passes; else the best one
    tried is written, and its `loss` says that it failed. Leaving layers in float is no repair where
    it makes the file larger than `most_bytes`: its loss counts as infinite. `int8_path` is written
    once, at the end.
    """
    model, form, target = load_onnx(float_path), precision or Precision(), Path(int8_path)
    known: dict[Method, Ranges] = {}
    tried: list[Attempt] = []
    files: list[bytes] = []
    with tempfile.TemporaryDirectory(prefix="tutelage-int8-") as folder:
        file = Path(folder) / target.name
        for method, kept in _plans(model, calibration[:128], form, tried, known, most_float):
            if method not in known:
                known[method] = calibrate(model, calibration, method)
            _write(model, known[method], kept, form, file)
            loss = float(np.nan_to_num(check(file), nan=np.inf, posinf=np.inf))
            if kept and file.stat().st_size > most_bytes:
                loss = math.inf
            tried.append(Attempt(method=method, kept_float=kept, loss=loss))
            files.append(file.read_bytes())
            if loss <= max_loss:
                break
    best = min(range(len(tried)), key=lambda i: tried[i].loss)
    write_atomically(target, files[best])
    return QuantizeOutcome(path=target, method=tried[best].method, loss=tried[best].loss,
                           kept_float=tried[best].kept_float, tried=tuple(tried))  # fmt: skip


def _plans(
    model: ModelProto, inputs: np.ndarray, form: Precision, tried: list[Attempt],
    known: dict[Method, Ranges], most_float: int,
) -> Iterator[tuple[Method, tuple[str, ...]]]:  # fmt: skip
    # A generator: it reads the losses in `tried` as they come in.
    for method in METHODS:
        yield method, ()
    method = min(tried, key=lambda attempt: attempt.loss).method
    order = _sensitive(model, inputs, known[method], form)
    for count in range(1, min(most_float, len(order)) + 1):
        yield method, order[:count]


def _sensitive(model: ModelProto, inputs: np.ndarray, ranges: Ranges, form: Precision) -> Names:
    """Order layers by the squared error in the logits when that layer alone is in int8."""
    names = [name for name, _ in layers_of(model.graph)]
    want = OnnxModel(model.SerializeToString()).run(inputs)
    errors: dict[str, float] = {}
    for name in names:
        others = tuple(n for n in names if n != name)
        alone = _Writer(model, ranges, others, form).write()
        got = OnnxModel(alone.SerializeToString()).run(inputs)
        errors[name] = float(np.square(got - want).mean())
    return tuple(sorted(names, key=lambda name: -errors[name]))


def _write(model: ModelProto, ranges: Ranges, keep: Names, form: Precision, path: Path) -> Path:
    known = [name for name, _ in layers_of(model.graph)]
    for name in keep:
        if name not in known:
            raise RecipeError(f"no layer '{name}' to keep in float. {near_matches(name, known)}")
    lean = shrunk(_Writer(model, ranges, keep, form).write())
    path = Path(path)
    write_atomically(path, lean.SerializeToString())
    return path


class _Writer:
    """Rewrites a float graph node by node; a tensor exists in float, in int8, or in both.

    Asking for the form that is missing writes the QuantizeLinear or DequantizeLinear between.
    """

    def __init__(self, model: ModelProto, ranges: Ranges, keep: Names, form: Precision) -> None:
        from onnx import ModelProto, helper, numpy_helper

        self.make, self.to_tensor = helper.make_node, numpy_helper.from_array
        self.model = ModelProto.FromString(model.SerializeToString())
        graph, self.ranges, self.form = self.model.graph, ranges, form
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        chosen = [(name, node) for name, node in layers_of(graph) if name not in keep]
        self.layers = {node.output[0] for _, node in chosen if not self._is_stem(node)}
        self.real, self.integer = {graph.input[0].name}, set[str]()
        self.fused, self.dequantized = set[str](), set[str]()
        self.nodes: list[NodeProto] = []

    def write(self) -> ModelProto:
        """Return the quantized model."""
        handlers = {"Conv": self._conv, "Add": self._join, "Concat": self._join,
                    "MaxPool": self._maxpool, "AveragePool": self._shrink, "Gemm": self._linear,
                    "MatMul": self._linear, "Gather": self._lookup}  # fmt: skip
        for node in self.model.graph.node:
            if node.output[0] in self.fused:
                continue
            handler = handlers.get(node.op_type)
            if handler is None or not handler(node):
                self._copy(node)
        for name in self.outputs:
            self._as_real(name)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        return self.model

    def _conv(self, node: NodeProto) -> bool:
        bias = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.output[0] not in self.layers or (bias is None and len(node.input) > 2):
            return False
        source, out, step = node.input[0], self._tail(node), self._step(node.input[0])
        w = self.constants[node.input[1]]  # depthwise kernels add in 32 bits
        least = 0.0 if bias is None else np.abs(bias) / (step * 2.0**30)  # so that it fits int32
        scale = self._weight(out, w, 0, least, w.shape[1] > 1 or not is_grouped(node))
        weights = [out + ".w", out + ".ws", self._constant("zero", np.int8(0))]
        inputs = [self._as_integer(source), *self._scale(source), *weights, *self._scale(out)]
        if bias is not None:
            levels = np.rint(bias / (step * scale.astype(np.float64))).astype(np.int32)
            inputs.append(self._constant(out + ".b", levels))
        self._emit_integer("QLinearConv", inputs, out, node)
        return True

    def _join(self, node: NodeProto) -> bool:
        """Write DQ, DQ, Add or Concat, Q, which onnxruntime runs as one integer operator."""
        if node.output[0] in self.layers:
            return self._table(node)
        if not self.integer.issuperset(node.input):
            return False
        out, inputs = self._tail(node), [self._dequantized(name) for name in node.input]
        self.nodes.append(self.make(node.op_type, inputs, [out + ".a"]))
        self.nodes[-1].attribute.extend(node.attribute)
        self._emit_integer("QuantizeLinear", [out + ".a", *self._scale(out)], out)
        return True

    def _maxpool(self, node: NodeProto) -> bool:
        name, out = node.input[0], node.output[0]
        if name not in self.integer or len(node.output) > 1:
            return False
        self.ranges = {**self.ranges, out: self.ranges[name]}
        self._emit_integer("MaxPool", [name + ".i"], out, node)
        return True

    def _shrink(self, node: NodeProto) -> bool:
        """Round an image before its pixels are averaged: onnxruntime then averages integers."""
        name, readers = node.input[0], self.readers.get(node.output[0], [])
        integer = all(n.op_type == "Conv" and n.output[0] in self.layers for n in readers)
        if name != self.model.graph.input[0].name or not integer:
            return False
        self._as_integer(name)
        node.input[0] = self._dequantized(name)
        self._copy(node)
        return True

    def _linear(self, node: NodeProto) -> bool:
        """Store the weight in int8. The last product computes in float: logits unrounded."""
        out, weight = node.output[0], self.constants.get(node.input[1])
        if out not in self.layers or weight is None or weight.ndim != 2:
            return False
        if node.op_type == "MatMul" and out not in self.outputs:
            return self._product(node.input[0], weight, out)
        flipped = any(a.name == "transB" and a.i for a in node.attribute)
        node.input[1] = self._stored(out, weight, 0 if flipped else 1)
        self._copy(node)
        return True

    def _product(self, source: str, weight: np.ndarray, out: str) -> bool:
        """Write step * (levels - zero) W * scale, the input's step and zero taken as it comes."""
        self._weight(out, weight, 1, summed=True)
        levels, step, zero, sums, real, scale = (f"{out}.{part}" for part in "lsznrm")
        self.nodes += [
            self.make("DynamicQuantizeLinear", [self._as_real(source)], [levels, step, zero]),
            self.make("MatMulInteger", [levels, out + ".w", zero], [sums]),
            self.make("Cast", [sums], [real], to=1),  # float32
            self.make("Mul", [step, out + ".ws"], [scale]),
            self.make("Mul", [real, scale], [out]),
        ]
        self.real.add(out)
        return True

    def _lookup(self, node: NodeProto) -> bool:
        """Look rows up in a table of int8, and make them float.

        By Cast and Mul: DequantizeLinear over the last axis took onnxruntime three times as long.
        """
        out = node.output[0]
        if out not in self.layers:
            return False
        self._weight(out, self.constants[node.input[0]], 1)
        self.nodes += [
            self.make("Gather", [out + ".w", node.input[1]], [out + ".l"]),
            self.make("Cast", [out + ".l"], [out + ".r"], to=1),  # float32
            self.make("Mul", [out + ".r", out + ".ws"], [out]),
        ]
        self.real.add(out)
        return True

    def _table(self, node: NodeProto) -> bool:
        """Store the table that an Add adds, one of positions, in int8."""
        at = 0 if node.input[0] in self.constants else 1
        table = self.constants[node.input[at]]
        node.input[at] = self._stored(node.output[0], table, table.ndim - 1)
        self._copy(node)
        return True

    def _stored(self, out: str, weight: np.ndarray, axis: int) -> str:
        """Store a weight in int8 and return the name of its float form."""
        self._weight(out, weight, axis)
        axes: Any = {"axis": axis} if self.form.per_channel else {}
        given, real = [out + ".w", out + ".ws"], out + ".r"
        self.nodes.append(self.make("DequantizeLinear", given, [real], **axes))
        return real

    def _copy(self, node: NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name in self.integer or name in self.real:
                node.input[i] = self._as_real(name)
        self.real.update(node.output)
        self.nodes.append(node)

    def _tail(self, node: NodeProto) -> str:
        """Return the output of the ReLU or Clip behind `node`: the clipped range replaces it."""
        out = node.output[0]
        if len(self.readers.get(out, [])) != 1 or out in self.outputs:
            return out
        after = self.readers[out][0]
        low = self.constants.get(after.input[1]) if len(after.input) > 1 else None
        if after.op_type != "Relu" and (after.op_type != "Clip" or low is None or low != 0):
            return out
        self.fused.add(after.output[0])
        return after.output[0]

    def _is_stem(self, node: NodeProto) -> bool:
        narrow = node.op_type == "Conv" and self.constants[node.input[1]].shape[1] < 4
        return self.form.float_stem and narrow and not is_grouped(node)

    def _emit_integer(
        self, op_type: str, inputs: list[str], out: str, like: NodeProto | None = None
    ) -> None:
        self.nodes.append(self.make(op_type, inputs, [out + ".i"]))
        if like is not None:
            self.nodes[-1].attribute.extend(like.attribute)
        self.integer.add(out)

    def _as_integer(self, name: str) -> str:
        if name not in self.integer:
            self._emit_integer("QuantizeLinear", [name, *self._scale(name)], name)
        return name + ".i"

    def _as_real(self, name: str) -> str:
        if name in self.real:
            return name
        return self._dequantized(name, name if name in self.outputs else "")

    def _dequantized(self, name: str, target: str = "") -> str:
        target = target or name + ".d"
        if target not in self.dequantized:
            inputs = [name + ".i", *self._scale(name)]
            self.nodes.append(self.make("DequantizeLinear", inputs, [target]))
            self.dequantized.add(target)
            self.real.update({target} & self.outputs)
        return target

    def _step(self, name: str) -> float:
        low, high = self.ranges[name]
        return float(np.float32(max(high - low, 1e-8) / 255))

    def _scale(self, name: str) -> tuple[str, str]:
        """Write (once) the scale and zero point of activation `name`, and return their names."""
        step, low = self._step(name), self.ranges[name][0]
        zero = int(np.clip(np.rint(-low / step), 0, 255))
        level = np.uint8(zero) if self.form.activations == "uint8" else np.int8(zero - 128)
        return self._constant(name + ".s", np.float32(step)), self._constant(name + ".z", level)

    def _weight(
        self, out: str, w: np.ndarray, axis: int, least: Any = 0.0, summed: bool = False
    ) -> np.ndarray:
        """Write int8 weights and their scales, none below `least`; return the scales."""
        each = self.form.per_channel
        levels, scale = weight_levels(w, axis, least, summed=summed, per_channel=each)
        self._constant(out + ".w", levels)
        self._constant(out + ".ws", scale if each else scale[0])
        return scale

    def _constant(self, name: str, value: Any) -> str:
        if name not in self.constants:
            self.constants[name] = np.asarray(value)
            self.model.graph.initializer.append(self.to_tensor(self.constants[name], name))
        return name
