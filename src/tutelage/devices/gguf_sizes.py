"""How many bytes a decoder's tensors take in a GGUF file: what is stored in which type.

Matrices are quantized in blocks of 32 numbers of a row, as llama.cpp does; vectors (norms, biases)
stay float32. Source: ggml's block_q4_0, block_q4_1, block_q5_0, block_q5_1 and block_q8_0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.recipe_language import Quantization

ALIGNMENT = 32  # bytes to which every tensor is padded
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredType:
    """A type of ggml: `block` numbers take `block_bytes`; `number` stands for it in a file."""

    name: str
    number: int
    block: int
    block_bytes: int

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of that shape, without padding."""
        return math.prod(shape) // self.block * self.block_bytes


F32 = StoredType(name="f32", number=0, block=1, block_bytes=4)
F16 = StoredType(name="f16", number=1, block=1, block_bytes=2)
Q4_0 = StoredType(name="q4_0", number=2, block=32, block_bytes=18)
Q4_1 = StoredType(name="q4_1", number=3, block=32, block_bytes=20)
Q5_0 = StoredType(name="q5_0", number=6, block=32, block_bytes=22)
Q5_1 = StoredType(name="q5_1", number=7, block=32, block_bytes=24)
Q8_0 = StoredType(name="q8_0", number=8, block=32, block_bytes=34)
_TYPES: dict[Quantization, StoredType] = {
    "f16": F16, "q8_0": Q8_0, "q5_1": Q5_1, "q5_0": Q5_0, "q4_1": Q4_1, "q4_0": Q4_0,
}  # fmt: skip
QUANTIZATIONS = tuple(_TYPES)
FINE: tuple[Quantization, ...] = ("f16", "q8_0")  # what they round costs next to nothing


def stored_type(name: str, shape: tuple[int, ...], quantization: Quantization) -> StoredType:
    """Return how the tensor of that name (Hugging Face's) and shape is stored.

    Where layers have four or five bits the embedding and the head are q8_0; rows that 32 does not
    divide are f16.
    """
    if len(shape) < 2:
        return F32
    wanted = _TYPES[quantization]
    if quantization not in FINE and name in (HEAD, EMBEDDING):
        wanted = Q8_0
    return F16 if shape[-1] % wanted.block else wanted


def gguf_bytes(
    shapes: Mapping[str, tuple[int, ...]], quantization: Quantization, *, tied: bool = False
) -> int:
    """Return the exact bytes of a file's tensors, each padded to 32; names are Hugging Face's.

    With `tied` a head that is listed is left out, since the embedding stands for it.
    """
    return sum(
        padded(stored_type(name, shape, quantization).bytes_of(shape))
        for name, shape in shapes.items()
        if not (tied and name == HEAD)
    )


def bytes_a_token(
    shapes: Mapping[str, tuple[int, ...]], quantization: Quantization, *, tied: bool = False
) -> int:
    """Return the bytes of weights read to say one token: all but an embedding with its own head.

    Of such an embedding one row is read, which is left out.
    """
    whole = {n: s for n, s in shapes.items() if not (tied and n == HEAD)}
    if HEAD in whole:
        whole.pop(EMBEDDING, None)
    return sum(stored_type(n, s, quantization).bytes_of(s) for n, s in whole.items())


def padded(count: int) -> int:
    """Round bytes up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT
