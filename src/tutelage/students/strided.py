"""Strided pointwise convolutions, computed so that a broken kernel of oneDNN is never called.

The backward pass of 1x1 convolutions with a stride and few input channels writes past its workspace
in channels-last memory (reported to uxlfoundation/oneDNN): the process dies, with AVX-512 where it
has two threads, with AVX2 alone where it has one.
Taking every s-th pixel before a convolution of stride 1 is the same mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def sliced_strides(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the strided pointwise convolutions of `modules` that lie on the CPU slice their input.

    They are as they were afterwards.
    """
    inner = [part for module in modules for part in module.modules()]
    hit = [part for part in dict.fromkeys(inner) if isinstance(part, nn.Conv2d) and _is_hit(part)]
    strides = [conv.stride for conv in hit]
    handles = [conv.register_forward_pre_hook(_slicing(conv.stride)) for conv in hit]
    try:
        for conv in hit:
            conv.stride = (1, 1)
        yield
    finally:
        for conv, stride, handle in zip(hit, strides, handles, strict=True):
            conv.stride = stride
            handle.remove()


def _is_hit(conv: nn.Conv2d) -> bool:
    plain = conv.padding in ((0, 0), "valid")
    pointwise = conv.kernel_size == (1, 1) and max(conv.stride) > 1
    return plain and pointwise and conv.weight.device.type == "cpu"


def _slicing(stride: tuple[int, ...]) -> Any:
    def hook(conv: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0][..., :: stride[0], :: stride[1]], *given[1:])

    return hook
