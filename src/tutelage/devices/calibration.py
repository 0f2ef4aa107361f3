"""The calibrated cost model: what a probe learned of a device, and the time it makes of operators.

Covers: for each class of operators and width, seconds a multiply-accumulate, a byte moved, an
output element and a step, and seconds a call; arithmetic and traffic are summed, or the larger one
counts (roofline, Williams et al., 2009). Channels are counted in whole blocks where the device's
kernels were found to work in blocks. The interval holds for whole graphs. Does not cover: caches,
sizes far beyond those that were probed, or another runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from tutelage.devices.figures import Figure, Strict, figure_in
from tutelage.errors import DeviceError
from tutelage.records import OpCost

Timed = Literal[
    "conv", "depthwise", "linear", "product", "recurrent", "pool", "add", "function", "other"
]  # product: a matrix product of two activations
Width = Literal["float32", "int8", "mixed"]  # mixed: int8 weights, float arithmetic
Triple = tuple[float, float, float]  # low, typical, high

FIGURES = ("mac", "byte", "element", "step", "tap", "rest_mac", "rest_element", "view")
_VECTOR = 16  # channels that a vector unit takes at once
_FUNCTIONS = {
    "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "Erf", "Gelu", "Tanh",
    "Sigmoid", "HardSigmoid", "HardSwish", "Exp", "Log", "Pow", "Sqrt", "Softplus", "Elu", "Selu",
}  # fmt: skip
_STAND_INS: dict[Width, tuple[Width, ...]] = {
    "float32": ("float32", "mixed", "int8"), "mixed": ("mixed", "float32", "int8"),
    "int8": ("int8", "mixed", "float32"),
}  # fmt: skip
_Time = Annotated[Figure, figure_in("s", 1.0)]
_Interval = Annotated[Figure, figure_in("", 10.0)]
_Share = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]


class OpTime(Strict):
    """Seconds of one class of operators at one width; a figure that is left out is 0.

    They are of a multiply-accumulate, a byte moved, an output element, a step (1 but for recurrent
    operators), and for convolutions of a tap of the kernel at a position, and of the channels that
    fill no vector of 16: what they multiply with one channel read, and their elements. `view` is of
    an operator behind it that only passes on what it wrote. `blocks` are the channels, read and
    written, that a kernel takes at once. Where `even` is not 0, an operator is of the rest wholly,
    or, when the channels it writes are a multiple of it, not.
    """

    mac: _Time | None = None
    byte: _Time | None = None
    element: _Time | None = None
    step: _Time | None = None
    tap: _Time | None = None
    rest_mac: _Time | None = None
    rest_element: _Time | None = None
    view: _Time | None = None
    roofline: bool = False
    blocks: Annotated[tuple[int, int], Field(strict=False)] = (1, 1)
    even: Annotated[int, Field(ge=0, le=256)] = 0

    def seconds(self, op: OpCost, scale: float = 1.0) -> float:
        """Return the seconds of one operator whose bytes are `scale` times what it says."""
        counts = features(op, self.blocks, self.even)
        prices = (getattr(self, name) for name in FIGURES)
        work, traffic, *others = (_of(p) * c for p, c in zip(prices, counts, strict=True))
        both = max(work, traffic * scale) if self.roofline else work + traffic * scale
        return both + sum(others)


class Calibration(Strict):
    """What `tutelage probe` found: the times, how sure they are, and what was remarkable.

    `interval` is the range, as a ratio to the prediction, in which 95 % of graphs that the fit had
    not seen lay; noise and drift of the machine have widened it.
    """

    call: _Time | None = None
    call_int8: _Time | None = None
    times: dict[Timed, dict[Width, OpTime]] = Field(min_length=1)
    interval: _Interval
    noise_floor: _Share
    drift: _Share
    graphs: int = Field(ge=1)
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()

    def seconds(self, costs: Iterable[OpCost], bits: int | None = None) -> Triple:
        """Return low, typical and high seconds of one inference.

        Raises `DeviceError` for a class of operators that was not probed at any width.
        """
        total, quantized = _of(self.call), False
        for op in costs:
            group, width = group_of(op, bits)
            quantized = quantized or width == "int8"
            known = self.times.get(group, {})
            found = next((known[w] for w in _STAND_INS[width] if w in known), None)
            if found is None:
                raise DeviceError(
                    f"the calibration has no time for '{group}' operators such as '{op.name}': "
                    "probe the device again with 'tutelage probe'"
                )
            total += found.seconds(op, (bits or op.bits) / op.bits)
        total += _of(self.call_int8) if quantized else 0.0
        low, high = self.interval.bounds
        return total * low, total, total * high


def group_of(op: OpCost, bits: int | None = None) -> tuple[Timed, Width]:
    """Return under which class and width the calibration prices an operator."""
    group: Timed = "other"
    if op.steps > 1:
        group = "recurrent"
    elif op.op == "linear" and not op.weight_bits:
        group = "product"
    elif op.op == "other" and op.kind in _FUNCTIONS:
        group = "function"
    elif op.op in ("conv", "depthwise", "linear", "pool", "add"):
        group = op.op
    if (bits or op.bits) == 8:
        return group, "int8"
    return group, "mixed" if bits is None and op.weight_bits == 8 else "float32"


def features(op: OpCost, blocks: tuple[int, int] = (1, 1), even: int = 0) -> tuple[float, ...]:
    """Return what an operator has of each of `FIGURES`, by the form of an `OpTime`."""
    read, written = op.channels
    fill = _filled(written, blocks[1]) / written
    if read >= blocks[0]:  # fewer are read one by one
        fill *= _filled(read, blocks[0]) / read
    # A table that is looked up is not read whole.
    moved = (op.weight_bytes if op.macs else 0) + op.read_bytes + op.write_bytes
    plain = (op.macs * fill, moved, op.output_elements, op.steps)
    if op.op not in ("conv", "depthwise"):
        return (*plain, 0.0, 0.0, 0.0, op.views)
    rest = float(written % even > 0) if even else (written % _VECTOR) / written
    work = op.macs / read
    return (*plain, work / written, work * rest, op.output_elements * rest, op.views)


def _filled(channels: int, block: int) -> int:
    return math.ceil(channels / block) * block


def _of(figure: Figure | None) -> float:
    return figure.typical if figure is not None else 0.0
