"""The cache of what a language model says about every token that is learned from.

Three kinds, and what a loss makes of them:

- `dense`: the log-probability of every token. Exact, at 2 bytes times the vocabulary.
- `topk`: the `kept` likeliest and the exact mass of all the others as one more outcome. KL over
  these outcomes is never above the true one and misses only how the tail is spread: no bias of the
  listed probabilities (as cutting and scaling up has, 2503.16870), no variance.
- `sampled`: `kept` ids drawn from the teacher, each counting 1/kept. The estimate of KL and of its
  gradient is unbiased, tail included, and varies with the draws.

`default_kind` takes dense where all of it is small, else topk. A cache is read in every epoch, so
the same draws would come back and be learned by heart, while cross entropy on the text, which goes
with it by default, already teaches the tail without bias. Take `sampled` by name for one pass over
much text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tutelage.errors import RecipeError, TeacherError
from tutelage.files import hash_json, read_tensors
from tutelage.losses.language_terms import capped
from tutelage.losses.sparse import NOTHING, SparseDecision, dense_of, drawn_of, top_of
from tutelage.passes import ALIKE, native_bf16, share_moved
from tutelage.progress import Progress
from tutelage.teach.shards import Shards
from tutelage.units import format_quantity

Kind = Literal["dense", "topk", "sampled"]
DENSE_BYTES = 1_000_000_000  # of a whole cache; beyond, not every token's probability is kept

_SHARD_BYTES, _SHARD_SEQUENCES = 64_000_000, 256
_ASK_TOKENS = 4096
_CHUNK_BYTES = 1 << 25
_LOOK_SEQUENCES = 4  # that say whether bfloat16 is as good
_SHORT_IDS = 1 << 16


class TokenRows(Protocol):
    """Token sequences of one length; `learned` is true where a token is a target."""

    @property
    def ids(self) -> Int[np.ndarray, "n t"]:
        """The tokens."""
        ...

    @property
    def learned(self) -> Bool[np.ndarray, "n t"]:
        """Where a token is a target."""
        ...

    @property
    def fingerprint(self) -> str:
        """The hash of both."""
        ...

    def __len__(self) -> int:
        """Return how many sequences there are."""
        ...


class Asked(Protocol):
    """What can be asked: logits over `vocabulary` tokens, for each learned position in order.

    They come in parts, so that those of a whole sequence need not exist at once.
    """

    vocabulary: int

    def __call__(
        self, ids: Int[Tensor, "b t"], learned: Bool[Tensor, "b t"]
    ) -> Iterable[Float[Tensor, "some vocabulary"]]:
        """Yield logits of the tokens at learned positions, from those before each."""
        ...


class Speaker:
    """A language model to ask: `states(ids)` after its last norm, `head`, and `cap` if it has one.

    `vocabulary`: the teacher's id of each token of the student's vocabulary, where that is smaller;
    the teacher then speaks of these tokens alone. `bf16`: it is run under bfloat16 autocast, and
    what it says is float32 either way.
    """

    def __init__(
        self, network: nn.Module, vocabulary: Int[Tensor, " kept"] | None = None, *,
        bf16: bool = False,
    ) -> None:  # fmt: skip
        self.network, self._tokens, self.bf16 = network, vocabulary, bf16
        self._head: Tensor = network.head if vocabulary is None else network.head[vocabulary]  # type: ignore[index,assignment]
        self.vocabulary = len(self._head)

    def __call__(
        self, ids: Int[Tensor, "b t"], learned: Bool[Tensor, "b t"]
    ) -> Iterator[Float[Tensor, "some vocabulary"]]:
        """Yield logits at learned positions; what is asked last in a row has nothing to say."""
        head, cap = self._head, getattr(self.network, "cap", None)
        given = ids[:, :-1] if self._tokens is None else self._tokens[ids[:, :-1]]
        self.network.eval()
        states_of: Callable[[Tensor], Tensor] = self.network.states  # type: ignore[assignment]
        with self._autocast():
            states = states_of(given.to(head.device))[learned[:, 1:].to(head.device)]
        for part in states.split(max(1, _CHUNK_BYTES // (4 * self.vocabulary))):
            with self._autocast():  # never over a yield: it would be on where the parts are read
                logits = part.to(head.dtype) @ head.T
            yield capped(logits.float(), cap)

    def _autocast(self) -> torch.autocast:
        kind = self._head.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bf16)

    def take_bf16(self, tokens: TokenRows) -> float | None:
        """Speak under bfloat16 from now on, where the machine has it and decisions stay alike.

        Return how far the log-probabilities of the first learned sequences moved, as a share of
        their spread; None where bfloat16 is not taken.
        """
        look = torch.from_numpy(np.flatnonzero(learned_counts(tokens))[:_LOOK_SEQUENCES])
        plain = self._head.dtype == torch.float32
        if not len(look) or not plain or not native_bf16(self._head.device):
            return None
        given = sequences(tokens, look)
        with torch.inference_mode():
            plain, half = (self._said(given, bf16) for bf16 in (False, True))
        moved = share_moved(half, plain)
        self.bf16 = moved <= ALIKE  # not where NaN
        return moved if self.bf16 else None

    def _said(self, given: tuple[Tensor, Tensor], bf16: bool) -> Tensor:
        self.bf16 = bf16
        return torch.cat(list(self(*given))).log_softmax(-1)


def default_kind(vocabulary: int, tokens: int) -> Kind:
    """Return dense where `tokens` learned ones take at most `DENSE_BYTES` so, else topk."""
    return "dense" if token_bytes("dense", vocabulary, 1) * tokens <= DENSE_BYTES else "topk"


def token_bytes(kind: Kind, vocabulary: int, kept: int) -> int:
    """Return the bytes that one learned token takes; raises `RecipeError` on a wrong kind."""
    if kind not in get_args(Kind):
        words = ", ".join(f"'{word}'" for word in get_args(Kind))
        raise RecipeError(f"signals of kind {kind!r} are not known; give one of {words}")
    if kind == "dense":
        return 2 * vocabulary
    if kept < 1:
        raise RecipeError(f"{kept} outcomes a token cannot be kept; keep 1 or more")
    one = 2 + (2 if vocabulary <= _SHORT_IDS else 4)
    return min(kept, vocabulary) * one + 2 if kind == "topk" else kept * one


def sequences(
    tokens: TokenRows, index: Int[Tensor, " b"] | slice
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Return ids and which are learned; the first of a sequence has nothing before it: never."""
    rows = index if isinstance(index, slice) else index.numpy()
    ids, learned = (np.array(np.asarray(x)[rows]) for x in (tokens.ids, tokens.learned))
    learned[:, 0] = False
    return torch.from_numpy(ids).long(), torch.from_numpy(learned)


def learned_counts(tokens: TokenRows) -> np.ndarray:
    """Return how many tokens of each sequence are learned from."""
    return np.asarray(tokens.learned)[:, 1:].sum(axis=1)


class TokenSignals:
    """What a teacher says at the learned positions of `tokens`, in shards under `folder`.

    `key` names the teacher: its weights, and the vocabulary that it was asked about. `seed` is that
    of the draws, which are a pure function of it, the sequence and the position.
    """

    def __init__(
        self, folder: Path, key: str, tokens: TokenRows, *, vocabulary: int,
        kind: Kind | None = None, kept: int = 64, seed: int = 0,
    ) -> None:  # fmt: skip
        counts = learned_counts(tokens)
        self.tokens, self.vocabulary, self.seed = tokens, vocabulary, seed
        self.starts: list[int] = [0, *counts.cumsum().tolist()]
        self.kind: Kind = kind or default_kind(vocabulary, self.starts[-1])
        self.bytes_per_token = token_bytes(self.kind, vocabulary, kept)
        self.kept = min(kept, vocabulary) if self.kind == "topk" else kept
        said = {"teacher": key, "tokens": tokens.fingerprint, "kind": self.kind, "format": 1}
        said |= {"vocabulary": vocabulary} if self.kind == "dense" else {"kept": self.kept}
        said |= {"seed": seed} if self.kind == "sampled" else {}
        self.key = hash_json(said)
        self.folder = folder / self.key[:16]
        a_sequence = max(1, self.total_bytes // max(1, len(tokens)))
        self.block = min(_SHARD_SEQUENCES, max(1, _SHARD_BYTES // a_sequence))
        self._open: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def fill(
        cls, folder: Path, key: str, ask: Asked, tokens: TokenRows, *, kind: Kind | None = None,
        kept: int = 64, progress: Progress, seed: int = 0, label: str = "train",
    ) -> TokenSignals:  # fmt: skip
        """Ask about all that is not on the disk yet, and return the signals, ready to be read.

        Raises `DiskError` before the first question when the disk is too small, `CorruptFileError`
        when a stored shard was altered, `TeacherError` when the teacher says NaN.
        """
        held = cls(
            folder, key, tokens, vocabulary=ask.vocabulary, kind=kind, kept=kept, seed=seed
        )  # fmt: skip
        shards, count = Shards(held.folder, held.key), len(tokens)
        starts = range(0, count, held.block)
        done = shards.open(map(_name, starts))
        missing = [first for first in starts if _name(first) not in done]
        shards.refuse_small_disk(
            sum(held._span(first) for first in missing) * held.bytes_per_token,
            "keep fewer outcomes of each token, learn from fewer texts,",
        )
        behind = sum(min(held.block, count - f) for f in starts if f not in missing)
        progress.start(f"Asking the teacher ({label})", count, behind)
        for first in missing:
            shards.add(_name(first), held._shard(first, ask, progress))
        progress.finish()
        return held

    @property
    def total_bytes(self) -> int:
        """Bytes that all learned tokens take on the disk."""
        return self.bytes_per_token * self.starts[-1]

    def describe(self) -> str:
        """Say in one line what is stored."""
        what = {"dense": "every token", "topk": f"the likeliest {self.kept} and the rest as one",
                "sampled": f"{self.kept} drawn"}[self.kind]  # fmt: skip
        return (
            f"token signals ({what}): {self.starts[-1]:,} tokens x {self.bytes_per_token} B = "
            f"{format_quantity(self.total_bytes, 'B')} in {self.folder}"
        )

    def read(self, index: Int[Tensor, " b"]) -> SparseDecision:
        """Return what was said at the learned positions of sequences `index`, one after another."""
        parts = [self._sequence(i) for i in index.tolist()]
        log_probs = torch.cat([part["log_probs"] for part in parts])
        if self.kind == "topk":
            tail = torch.cat([part["tail"] for part in parts])
        else:
            tail = log_probs.new_full((len(log_probs),), -torch.inf)
        # int32 here, since little is defined on uint16.
        ids = None if self.kind == "dense" else torch.cat([part["ids"].int() for part in parts])
        return SparseDecision(
            ids=ids, log_probs=log_probs, tail=tail, drawn=self.kind == "sampled"
        )  # fmt: skip

    def _sequence(self, number: int) -> dict[str, Tensor]:
        first = number - number % self.block
        if first not in self._open:
            self._open[first], _ = read_tensors(self.folder / _name(first))
        start, stop = (self.starts[i] - self.starts[first] for i in (number, number + 1))
        return {name: tensor[start:stop] for name, tensor in self._open[first].items()}

    def _span(self, first: int) -> int:
        """Return the learned tokens of the shard that starts at sequence `first`."""
        last = min(first + self.block, len(self.tokens))
        return self.starts[last] - self.starts[first]

    @torch.inference_mode()
    def _shard(self, first: int, ask: Asked, progress: Progress) -> dict[str, Tensor]:
        last = min(first + self.block, len(self.tokens))
        parts: list[dict[str, Tensor]] = []
        step = max(1, _ASK_TOKENS // np.asarray(self.tokens.ids).shape[1])
        for start in range(first, last, step):
            stop = min(start + step, last)
            ids, learned = sequences(self.tokens, slice(start, stop))
            uniforms, seen = self._uniforms(start, learned), 0
            for logits in ask(ids, learned):
                parts.append(self._stored(logits, uniforms[seen : seen + len(logits)], start, stop))
                seen += len(logits)
            if seen != int(learned.sum()):
                raise TeacherError(
                    f"the teacher answered {seen} tokens of {int(learned.sum())} in sequences "
                    f"{start} to {stop - 1}; it must answer each learned position once"
                )
            progress.advance(stop - start)
        if not parts:  # a shard in which nothing is learned
            nothing = torch.zeros(0, self.vocabulary)
            parts.append(self._stored(nothing, torch.zeros(0, self.kept), first, last))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _stored(
        self, logits: Tensor, uniforms: Tensor, start: int, stop: int
    ) -> dict[str, Tensor]:  # fmt: skip
        if self.kind == "dense":
            said = dense_of(logits)
        elif self.kind == "topk":
            said = top_of(logits, self.kept)
        else:
            said = drawn_of(logits, uniforms.to(logits.device))
        if bool(said.log_probs.isnan().any()):
            raise TeacherError(
                f"the teacher's logits are not finite in sequences {start} to {stop - 1}; check "
                "its weights and the precision it is asked in"
            )
        found = {"log_probs": _half(said.log_probs)}
        if said.ids is not None:
            short = self.vocabulary <= _SHORT_IDS
            found["ids"] = said.ids.to(torch.uint16 if short else torch.int32).cpu()
        if self.kind == "topk":
            found["tail"] = _half(said.tail)
        return found

    def _uniforms(self, start: int, learned: Bool[Tensor, "b t"]) -> Float[Tensor, "n kept"]:
        """Return a row of draws for each learned position, by seed, sequence and position alone."""
        if self.kind != "sampled":
            return torch.zeros(int(learned.sum()), 0)
        rows = []
        for number, chosen in enumerate(learned.numpy(), start):
            random = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            rows.append(random.random((len(chosen), self.kept))[chosen])
        return torch.from_numpy(np.concatenate(rows))


def _half(log_probs: Tensor) -> Tensor:
    return log_probs.clamp(min=NOTHING).half().cpu()


def _name(first: int) -> str:
    return f"tokens-{first}.safetensors"
