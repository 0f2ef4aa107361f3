"""The graphs that the probe times: sizes spread in log space over what small students use.

Python 3.9 and numpy alone. The list is endless and the same on every machine: graph `n` is a
function of `n`, and its name carries a hash, so that readings cannot be taken for another list's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

from .onnx_bytes import FLOAT, Net


def _size(chance: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** chance.random())


def _map(chance: random.Random) -> tuple[int, int, int, int]:
    if chance.random() < 0.3:  # a series
        return 1, _size(chance, 2, 128), 1, _size(chance, 8, 256)
    side = _size(chance, 3, 40)
    return 1, _size(chance, 2, 128 if side < 20 else 32), side, side


def _kernel(net: Net, side: int) -> tuple[int, int]:
    height, width = (min(side, free - 1 + free % 2) for free in net.shape[2:])  # odd, and inside
    return height, width


def _maps(chance: random.Random, form: str, what: str) -> Net:
    """Convolutions or depthwise ones over a map, one to four in a row."""
    net = Net(form, _map(chance))
    for _ in range(chance.randint(1, 4)):
        if what == "conv":
            kernel = _kernel(net, chance.choice((1, 1, 3, 3, 5)))
            net.conv(_size(chance, 2, 128), kernel, relu=chance.random() < 0.7)
        else:
            net.conv(net.shape[1], _kernel(net, chance.choice((3, 3, 5, 7))), depthwise=True)
    return net


def _vectors(chance: random.Random, form: str, what: str) -> Net:
    """Matrix products, or functions, over one vector or a row for each token."""
    rows = 1 if chance.random() < 0.4 else _size(chance, 4, 128)
    most = 512 if rows == 1 else 160
    flat = rows == 1 and what == "linear"
    net = Net(form, (1, _size(chance, 8, most)) if flat else (1, rows, _size(chance, 8, most)))
    functions = (net.norm, net.gelu, lambda: net.node("Softmax", net.at, axis=-1))
    for _ in range(chance.randint(1, 4)):
        if what == "linear":
            net.linear(_size(chance, 8, most))
        else:
            chance.choice(functions)()
    return net


def _moves(chance: random.Random, form: str, what: str) -> Net:
    """Pools, sums, or changes of axes over a map."""
    net = Net(form, _map(chance))
    if form == "int8":
        net.to_int8()
    start = net.at
    for _ in range(chance.randint(1, 4)):
        if what == "add":
            net.add(start)
        elif what == "pool" and net.shape[3] > 3:
            net.pool("MaxPool" if form == "int8" else chance.choice(("MaxPool", "AveragePool")))
        elif what == "other":
            net.transpose(0, *chance.sample((1, 2, 3), 3))
            if form == "float32":
                net.node("Mul", net.at, net.constant(FLOAT, (), 1.5))
    if what == "pool" and len(net.nodes) < 3:
        net.pool("GlobalAveragePool")
    return net


def _convolutional(chance: random.Random, form: str, series: bool) -> Net:
    """A stem, residual stages, a pool, a decision."""
    side, channels = _size(chance, 8, 48), chance.choice((1, 3))
    shape = (1, chance.randint(1, 8), 1, _size(chance, 24, 256))
    net = Net(form, shape if series else (1, channels, side, side))
    width, growth, wide = _size(chance, 4, 32), chance.choice((1.5, 2.0)), chance.randint(1, 3)
    plain, kernel = chance.random() < 0.5, chance.choice((3, 3, 5))
    net.conv(width, _kernel(net, kernel))
    for stage in range(chance.randint(1, 3)):
        for block in range(chance.randint(1, 2)):
            start, before = net.at, net.shape
            halves = (1 if series else 2, 2) if stage and not block else (1, 1)
            cout = 2 * max(1, round(width * growth**stage / 2))
            if plain:
                net.conv(cout, _kernel(net, kernel), halves)
                net.conv(cout, _kernel(net, kernel), relu=False)
            else:
                net.conv(before[1] * wide, (1, 1))
                net.conv(before[1] * wide, _kernel(net, kernel), halves, depthwise=True)
                net.conv(cout, (1, 1), relu=False)
            if net.shape == before:
                net.add(start)
    net.pool("GlobalAveragePool")
    return _decide(net)


def _recurrent(chance: random.Random, form: str, whole: bool) -> Net:
    """A GRU over frames, alone or with frames and decision."""
    steps, hidden = _size(chance, 6, 96), _size(chance, 4, 96)
    net = Net(form, (1, chance.randint(1, 8), 1, steps))
    if whole:
        net.conv(hidden, (1, 1))
    net.gru(hidden)
    net.mean(0)
    return _decide(net) if whole else net


def _textual(chance: random.Random, form: str, attends: bool) -> Net:
    """A table of tokens, attention and feed-forward layers or convolutions, a decision."""
    heads, tokens = chance.choice((1, 2, 4)), _size(chance, 12, 128)
    net = Net(form, (1, tokens), vocabulary=500)
    net.embed(heads * _size(chance, 8, 32))
    width = net.shape[2]
    if attends:
        for _ in range(chance.randint(1, 3)):
            net.norm()
            net.attend(heads)
            start = net.at
            net.norm()
            net.linear(width * chance.choice((2, 4)))
            net.gelu()
            net.linear(width)
            net.add(start)
    elif depth := chance.randint(0, 2):
        net.to_map()
        for _ in range(depth):
            start = net.at
            net.conv(width, _kernel(net, 5), depthwise=True)
            net.conv(width, (1, 1))
            if net.real:
                net.add(start)
        net.to_rows()
    net.masked_mean()
    return _decide(net)


def _decide(net: Net) -> Net:
    net.form = "float32" if net.form == "float32" else "mixed"
    net.linear(10)
    return net


_BOTH = ("float32", "int8")
_KINDS: tuple[tuple[Callable[[random.Random, str, Any], Net], str, Any], ...] = (
    *((_maps, form, what) for what in ("conv", "depthwise") for form in _BOTH),
    *((_vectors, form, "linear") for form in ("float32", "mixed", "int8")),
    (_vectors, "float32", "function"),
    *((_moves, form, what) for what in ("pool", "add", "other") for form in _BOTH),
    *((_convolutional, form, series) for series in (False, True, False) for form in _BOTH),
    (_recurrent, "float32", False), (_recurrent, "int8", True), (_recurrent, "float32", True),
    (_textual, "float32", True), (_textual, "mixed", True), (_textual, "float32", False),
    (_textual, "int8", False),
)  # fmt: skip


def graph(number: int) -> tuple[str, bytes]:
    """Return graph `number` of the endless list: its name, with a hash, and the ONNX file."""
    make, form, what = _KINDS[number % len(_KINDS)]
    model = make(random.Random(number), form, what).model()
    return f"{number}-{hashlib.sha256(model).hexdigest()[:12]}", model
