"""Documents cut into windows and packed into sequences of one length.

A document that fits stays whole: best fit, longest first, several to a sequence, and what is left
over is filled with end tokens that no one learns. A longer one is cut into windows. A later window
begins with the last eighth of the one before, which it reads and does not learn again: each token
is learned once, and after the first window with at least that much before it.
Attention runs across the documents of a sequence, as is usual: a token also sees those before its
own, parted by an end token. The first token of a document is never a target.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

_CONTEXT = 8  # the share of a window that is repeated from the one before: one in so many
FILLED = -1  # the owner of what fills a sequence up


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """Documents one behind the other: their ids, which are learned, and where each begins."""

    ids: Int[np.ndarray, " tokens"]
    learned: Bool[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " n+1"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """Sequences of tokens. `learned[i, t]`: position t is a target, predicted from those before.

    `ids` and `owner` are int32; `owner` numbers the document of each position, -1 where a sequence
    is filled up. `fingerprint` hashes ids and learned. `documents` counts those that were packed.
    """

    ids: Int[np.ndarray, "n length"]
    learned: Bool[np.ndarray, "n length"]
    owner: Int[np.ndarray, "n length"]
    fingerprint: str
    documents: int

    def __post_init__(self) -> None:
        if not self.ids.shape == self.learned.shape == self.owner.shape:
            raise ValueError("ids, learned and owner are of one shape: choose rows with take()")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens a sequence."""
        return self.ids.shape[1]

    def take(self, index: Int[np.ndarray, " m"]) -> Tokens:
        """Return the sequences named by `index`, in that order."""
        ids, learned, owner = self.ids[index], self.learned[index], self.owner[index]
        return replace(
            self, ids=ids, learned=learned, owner=owner, fingerprint=_fingerprint(ids, learned),
            documents=len(np.unique(owner[owner != FILLED])),
        )  # fmt: skip


def pack(written: Written, order: Int[np.ndarray, " m"], length: int, end: int) -> Tokens:
    """Pack the documents named by `order` into sequences of `length`.

    A pure function of their content and that order: it breaks ties, and numbers the owners.
    """
    pieces = windows(written, order, length)
    rows, starts = best_fit(pieces[:, 1] - pieces[:, 0], length)
    count = int(rows.max(initial=-1)) + 1
    rows = np.random.default_rng(0).permutation(count)[rows]  # the fullest would all come first
    ids = np.full((count, length), end, np.int32)
    owner = np.full((count, length), FILLED, np.int32)
    learned = np.zeros((count, length), np.bool_)
    for (begin, stop, known, document), row, start in zip(
        pieces.tolist(), rows.tolist(), starts.tolist(), strict=True
    ):
        place = slice(start, start + stop - begin)
        ids[row, place] = written.ids[begin:stop]
        learned[row, place] = written.learned[begin:stop]
        learned[row, start : start + known] = False
        owner[row, place] = document
    return Tokens(
        ids=ids, learned=learned, owner=owner, fingerprint=_fingerprint(ids, learned),
        documents=len(np.unique(pieces[:, 3])),
    )  # fmt: skip


def pack_nothing(length: int) -> Tokens:
    """Return no sequences of `length`."""
    nothing = np.zeros(0, np.int64)
    written = Written(
        ids=nothing.astype(np.int32), learned=nothing.astype(np.bool_), offsets=nothing
    )
    return pack(written, nothing, length, 0)


def whole_sequences(ids: Int[np.ndarray, "n length"]) -> Tokens:
    """Return sequences that are whole as they are: all but their first tokens are learned."""
    learned = np.ones(ids.shape, np.bool_)
    learned[:, 0] = False
    ids = ids.astype(np.int32)
    owner = np.repeat(np.arange(len(ids), dtype=np.int32)[:, None], ids.shape[1], axis=1)
    return Tokens(
        ids=ids, learned=learned, owner=owner, fingerprint=_fingerprint(ids, learned),
        documents=len(ids),
    )  # fmt: skip


def joined(first: Tokens, second: Tokens) -> Tokens:
    """Return the sequences of both, those of `first` before the others."""
    ids, learned = (
        np.concatenate([getattr(part, name) for part in (first, second)])
        for name in ("ids", "learned")
    )
    others = np.where(
        second.owner == FILLED, FILLED, second.owner + first.owner.max(initial=-1) + 1
    )
    return Tokens(
        ids=ids, learned=learned, owner=np.concatenate([first.owner, others]),
        fingerprint=_fingerprint(ids, learned), documents=first.documents + second.documents,
    )  # fmt: skip


def windows(
    written: Written, order: Int[np.ndarray, " m"], length: int
) -> Int[np.ndarray, "pieces 4"]:
    """Return begin and end of each piece, how many tokens it repeats, and its document in `order`.

    Pieces that learn nothing are left out.
    """
    begins, ends = written.offsets[:-1][order], written.offsets[1:][order]
    known = context(length)
    step = length - known
    counts = 1 + np.maximum(0, -((length - (ends - begins)) // step))
    document = np.repeat(np.arange(len(order)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = begins[document] + number * step
    stop = np.minimum(start + length, ends[document])
    repeated = np.where(number > 0, known, 0)
    sums = np.concatenate([[0], np.cumsum(written.learned, dtype=np.int64)])
    some = sums[stop] > sums[np.minimum(start + np.maximum(repeated, 1), stop)]
    return np.stack([start, stop, repeated, document], axis=1)[some]


def context(length: int) -> int:
    """Return how many tokens a later window of a long document repeats from the one before."""
    return max(1, length // _CONTEXT)


def best_fit(
    sizes: Int[np.ndarray, " pieces"], length: int
) -> tuple[Int[np.ndarray, " pieces"], Int[np.ndarray, " pieces"]]:
    """Return row and start of each piece: longest first, each where the least room is left.

    Best fit decreasing (Johnson 1973): at most 11/9 of the fewest rows, and one.
    """
    rows, starts = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the room they have left
    has_room = count = 0  # has_room: bit r is set where room[r] names a row
    for i in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[i])
        fitting = has_room >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = room[left].pop()
            if not room[left]:
                has_room &= ~(1 << left)
        else:
            row, left, count = count, length, count + 1
        rows[i], starts[i] = row, length - left
        if left > size:
            room[left - size].append(row)
            has_room |= 1 << (left - size)
    return rows, starts


def _fingerprint(ids: Int[np.ndarray, "n length"], learned: Bool[np.ndarray, "n length"]) -> str:
    digest = hashlib.sha256(str(ids.shape).encode())
    digest.update(np.ascontiguousarray(ids, "<i4").data)
    digest.update(np.ascontiguousarray(learned).data)
    return digest.hexdigest()
