"""The smallest language model and the fewest tokens that a lesson can be given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

VOCABULARY, WIDTH, LENGTH = 13, 6, 9


class Layer(nn.Module):
    """Each token sees the mean of those before it; counts how often it is computed."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inner, self.drop, self.calls = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), 0

    def forward(self, x):
        self.calls += 1
        before = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.drop(torch.tanh(self.inner(before)))


class Speech(nn.Module):
    """What the lesson and the teacher need: `states` and `head`, tied to the embedding."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(2))

    @property
    def head(self) -> nn.Parameter:
        return self.embedding.weight

    def states(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Token sequences, as packing leaves them."""

    ids: np.ndarray
    learned: np.ndarray

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.ids.tobytes() + self.learned.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)


def rows(count: int = 10, seed: int = 0, *, silent: tuple[int, ...] = ()) -> Rows:
    """Return sequences that count in steps; nothing is learned of those that are `silent`."""
    random = np.random.default_rng(seed)
    start, step = random.integers(0, VOCABULARY, (2, count, 1))
    ids = (start + step * np.arange(LENGTH)) % VOCABULARY
    learned = random.random(ids.shape) < 0.6
    learned[:, 1] = True
    learned[list(silent)] = False
    return Rows(ids=ids.astype(np.int32), learned=learned)
