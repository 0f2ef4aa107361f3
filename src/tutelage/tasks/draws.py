"""Random numbers as a pure function of (seed, view, index, stream), whatever the batch or order."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt64

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Draws:
    """Random numbers for one batch: the same for an (index, stream) whatever stands beside it."""

    def __init__(self, seed: int, view: int, index: Int[np.ndarray, " b"]) -> None:
        key = _splitmix_int(_splitmix_int(seed & _MASK) ^ (view & _MASK))
        self.base = _splitmix(index.astype(np.uint64) ^ np.uint64(key))

    def bits(self, stream: int) -> UInt64[np.ndarray, " b"]:
        """Return 64 random bits each."""
        return _splitmix(self.base + np.uint64((stream + 1) * _GOLDEN & _MASK))

    def uniform(self, stream: int) -> Float[np.ndarray, " b"]:
        """Return numbers in [0, 1) with 53 random bits."""
        return (self.bits(stream) >> np.uint64(11)) * 2.0**-53

    def below(self, stream: int, limit: int | Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return whole numbers in [0, limit)."""
        return (self.bits(stream) % np.asarray(limit, np.uint64)).astype(np.int64)


def _splitmix(x: UInt64[np.ndarray, " b"]) -> UInt64[np.ndarray, " b"]:
    """One step of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable PRNGs")."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _splitmix_int(x: int) -> int:
    return int(_splitmix(np.array([x], np.uint64))[0])


def hash_keys(keys: UInt64[np.ndarray, " n"], seed: int, salt: int) -> UInt64[np.ndarray, " n"]:
    """Return pseudo-random 64-bit ranks: a pure function of each key, the seed and the salt."""
    return _splitmix(keys ^ np.uint64(_splitmix_int(_splitmix_int(seed & _MASK) ^ salt)))
