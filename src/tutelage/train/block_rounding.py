"""Teaching a language model that feels how its GGUF file will round its weights.

The weights that learn stay whole; what computes is their rounded copy, and gradients pass through
(the straight-through estimator: Bengio 2013, 1308.3432). Only layers of four or five bits are
rounded: q8_0, f16 and what such a file keeps in them move a decision by next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tutelage.devices.gguf_sizes import FINE, StoredType, stored_type
from tutelage.export.block_rounding import rounded
from tutelage.recipe_language import Quantization
from tutelage.train.qat import unrounded


class _RoundBlocks(nn.Module):
    def __init__(self, stored: StoredType) -> None:
        super().__init__()
        self.stored = stored

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (rounded(weight, self.stored) - weight).detach()


def forms_felt(network: nn.Module) -> list[str]:
    """Return the names of the types that `network` is rounded to just now, if it is."""
    return sorted({m.stored.name for m in network.modules() if isinstance(m, _RoundBlocks)})


@contextmanager
def block_rounded(network: nn.Module, quantization: Quantization) -> Iterator[None]:
    """Let the linear layers of `network` compute with weights rounded as in a file of that type.

    Nothing is done for types that round to eight bits or more.
    """
    layers: list[nn.Linear] = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            shape = (layer.out_features, layer.in_features)
            stored = stored_type(f"{name.removeprefix('network.')}.weight", shape, quantization)
            if stored.name not in FINE:
                layers.append(layer)
                rounding = _RoundBlocks(stored)
                parametrize.register_parametrization(layer, "weight", rounding, unsafe=True)
    try:
        yield
    finally:
        for layer in layers:
            unrounded(layer)
