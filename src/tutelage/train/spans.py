"""A teacher with a tokenizer of its own: it is asked about the same text, span by span, live."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.errors import DataError, TeacherError
from tutelage.files import hash_json
from tutelage.losses.language_spans import Voice, spans_loss
from tutelage.students.decoders.network import Decoder
from tutelage.tasks.causal_lm.reading import Document
from tutelage.tasks.causal_lm.spans import aligned, bytes_of_tokens, readable
from tutelage.tasks.causal_lm.tokens import Writer
from tutelage.teach.token_signals import TokenRows, sequences
from tutelage.train.checkpoint import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """How many bytes of text are learned, and how many of them lie in spans that both write.

    `left_out` counts texts that a tokenizer changes, so that nothing of them was aligned; `unread`
    are special tokens between texts that the teacher does not know, so that a text ends there.
    """

    learned_bytes: int
    span_bytes: int
    left_out: int
    unread: tuple[str, ...] = ()

    def describe(self) -> str:
        """Say it in one line."""
        share = self.span_bytes / max(1, self.learned_bytes)
        more = f"; {self.left_out:,} texts could not be aligned" if self.left_out else ""
        if self.unread:
            more += f"; it does not know {', '.join(self.unread)}, so for it a text ends there"
        return (
            f"the teacher speaks of {share:.1%} of the {self.learned_bytes:,} bytes that are "
            f"learned, in spans that both write{more}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What both say of each span of some sequences: the log-probability of its text, in nats.

    `sizes` are its bytes; it begins with the token `place` of the sequence `row`, the student's.
    """

    student: Float[Tensor, " spans"]
    teacher: Float[Tensor, " spans"]
    sizes: Int[np.ndarray, " spans"]
    row: Int[np.ndarray, " spans"]
    place: Int[np.ndarray, " spans"]


# Of one side: row and place of each token of the spans, and how many each span has.
Places = tuple[list[int], list[int], list[int]]


class SpanTeacher:
    """Teaches by `uld` over spans of text what `network` says, whose tokens are `tokenizer`'s.

    `own` is the student's tokenizer. Text between special tokens is written by both, and their
    tokens are aligned; special tokens, ends among them, are learned from the text alone. The
    teacher reads those that it knows by the same name, as of a chat template that both were tuned
    on; where it does not, a text ends there. `weight` is that of the loss, which is the sum over
    spans that are learned whole, a learned token. `left_out` counts texts that a tokenizer changes,
    so that nothing of them was aligned.
    """

    def __init__(self, network: Decoder, tokenizer: Any, own: Any, *, weight: float = 1.0) -> None:
        self.network, self.weight, self.left_out = network.eval(), weight, 0
        self.writer = Writer(tokenizer)
        self.theirs, self.mine = bytes_of_tokens(tokenizer), bytes_of_tokens(own)
        self._most = int(network.spec.config.get("max_position_embeddings", 1 << 30))
        known = tokenizer.get_vocab()
        names = {number: token for token, number in own.get_vocab().items()}
        special = {n: token for n, token in names.items() if self.mine[n] is None}
        self.same = {
            n: known[token]
            for n, token in special.items()
            if token in known and self.theirs[known[token]] is None
        }
        around = {own.eos_token_id, *Writer(own).start}  # parts documents, or begins one
        self.names = {n: token for n, token in special.items() if n not in around}
        a = [self.mine[i] or b"" for i in own("a", add_special_tokens=False)["input_ids"]]
        self._spaced = b"".join(a) == b" a"
        self._written = list(self.theirs)  # a text may spell a special token, which then writes it
        for token, number in known.items():
            if self.theirs[number] is None:
                self._written[number] = token.encode()
        self._words = [t.backend_tokenizer.to_str() for t in (tokenizer, own)]

    @cached_property
    def key(self) -> str:
        """Name weights, tokenizers and the loss."""
        how = [self.network.spec.config, self.writer.end]
        named = digest(self.network.state_dict(), *self._words)
        return hash_json(["uld", self.weight, how, named])

    def value(
        self, student: Any, states: Float[Tensor, "b t d"], ids: Int[Tensor, "b u"],
        learned: Bool[Tensor, "b t"],
    ) -> Tensor:  # fmt: skip
        """Return the loss, not weighted; `states` are before each token of `ids` but the first."""
        found = self._aligned(ids.cpu().numpy(), learned.cpu().numpy())
        if not found[1][2]:  # of rows without any text there would be nothing to ask
            return states[:0].sum()
        mine, said = self._voices(student, states, ids, found[:3])
        with torch.autocast(states.device.type, enabled=False):
            return spans_loss(mine, said) / learned.sum().clamp(min=1)

    @torch.inference_mode()
    def told(self, student: Any, ids: Int[Tensor, "b u"], learned: Bool[Tensor, "b t"]) -> Told:
        """Return what both say of the spans that are learned whole; as for `value`."""
        rows, here, there, sizes = self._aligned(ids.numpy(), learned.numpy())
        mine, said = self._voices(student, student.states(ids[:, :-1]), ids, (rows, here, there))
        row, at = (np.array(x, np.int64) for x in here[:2])
        first = mine.lengths.cumsum(0).numpy() - mine.lengths.numpy()
        return Told(
            student=mine.told(), teacher=said.told(), sizes=np.array(sizes, np.int64),
            row=row[first], place=at[first],
        )  # fmt: skip

    def survey(self, tokens: TokenRows) -> Shared:
        """Return how much of `tokens` both write; nothing is asked.

        Raises `TeacherError` where a sequence is longer than the teacher reads, `DataError` where
        the two write nothing alike.
        """
        before, learned_bytes, span_bytes = self.left_out, 0, 0
        for number in range(len(tokens)):
            ids, learned = (x.numpy() for x in sequences(tokens, slice(number, number + 1)))
            rows, _, _, sizes = self._aligned(ids, learned[:, 1:])
            self._check_length(len(rows[0]))
            learned_bytes += sum(len(self.mine[i] or b"") for i in ids[learned].tolist())
            span_bytes += sum(sizes)
        left_out, self.left_out = self.left_out - before, before
        if not span_bytes:
            raise DataError(
                "the tokenizers of teacher and student write nothing alike that is learned, so "
                "there is nothing to compare: take a student whose tokenizer keeps a text's letters"
            )
        return Shared(
            learned_bytes=learned_bytes, span_bytes=span_bytes, left_out=left_out,
            unread=self._unread(tokens),
        )  # fmt: skip

    def _unread(self, tokens: TokenRows) -> tuple[str, ...]:
        met = np.unique(np.asarray(tokens.ids)).tolist()
        return tuple(self.names[i] for i in met if i in self.names and i not in self.same)

    def _check_length(self, length: int) -> None:
        if length > self._most:
            raise TeacherError(
                f"the teacher reads {self._most:,} tokens and a sequence is {length:,} of its own; "
                "lower data.length"
            )

    def _voices(
        self, student: Any, states: Float[Tensor, "b t d"], ids: Int[Tensor, "b u"],
        found: tuple[list[list[int]], Places, Places],
    ) -> tuple[Voice, Voice]:  # fmt: skip
        """Return what student and teacher say of the spans that were aligned."""
        rows, here, there = found
        device = states.device
        asked = torch.zeros(len(rows), max(2, *map(len, rows)), dtype=torch.long)
        for number, row in enumerate(rows):
            asked[number, : len(row)] = torch.tensor(row)
        self._check_length(asked.shape[1])
        self.network.to(device)
        with torch.no_grad():
            theirs = self.network.states(asked[:, :-1].to(device))
        head, cap = student.head.float(), getattr(student, "cap", None)
        mine = _voice(states.float(), ids, here, head, cap)
        said = _voice(theirs, asked.to(device), there, self.network.head, self.network.cap)
        return mine, said

    def _aligned(
        self, ids: Int[np.ndarray, "b u"], learned: Bool[np.ndarray, "b t"]
    ) -> tuple[list[list[int]], Places, Places, list[int]]:
        """Return the teacher's tokens of each row, where spans lie on both sides, their bytes."""
        rows: list[list[int]] = []
        here: Places = ([], [], [])
        there: Places = ([], [], [])
        sizes: list[int] = []
        for number, row in enumerate(ids.tolist()):
            said: list[int] = []
            for start, pieces in self._parts(row):
                if not pieces:
                    special = self.same.get(row[start], self.writer.end)
                    said += [special] if said[-1:] != [special] else []
                    continue
                fresh = not said or said[-1] == self.writer.end
                written, spans = self._write(pieces, start, fresh=fresh)
                for a, b, c, d in spans + [0, 0, len(said), len(said)]:
                    if a > 0 and c > 0 and learned[number, a - 1 : b - 1].all():
                        _note(here, number, a, b)
                        _note(there, number, c, d)
                        sizes.append(sum(map(len, pieces[a - start : b - start])))
                said += written
            rows.append(said or [self.writer.end])
        return rows, here, there, sizes

    def _parts(self, row: list[int]) -> list[tuple[int, list[bytes]]]:
        """Return runs of tokens that write text: where each begins, and what each token writes.

        A special token is a part of its own, which writes nothing. A space that the tokenizer puts
        before a text is left out.
        """
        parts: list[tuple[int, list[bytes]]] = []
        for place, number in enumerate(row):
            piece = self.mine[number] if number < len(self.mine) else None
            if piece is None:
                parts.append((place, []))
            elif parts and parts[-1][1]:
                parts[-1][1].append(piece)
            else:
                parts.append((place, [piece.removeprefix(b" ") if self._spaced else piece]))
        return parts

    def _write(
        self, pieces: list[bytes], start: int, *, fresh: bool
    ) -> tuple[list[int], Int[np.ndarray, "spans 4"]]:
        """Return a text in the teacher's tokens, and its spans, the student's from `start` on.

        What the teacher's tokenizer puts before a text stands there where the text is `fresh`.
        """
        found = readable(pieces)
        if found is None:
            return [], np.zeros((0, 4), np.int64)
        first, last, text = found
        written = self.writer.prompt(Document(text=text))
        said, lead = [self._written[number] for number in written], len(self.writer.start)
        if not fresh:
            written, said, lead = written[lead:], said[lead:], 0
        spans = aligned(pieces[first:last], [piece or b"" for piece in said[lead:]])
        self.left_out += bool(text) and not len(spans)
        return written, spans + [start + first, start + first, lead, lead]


def _note(places: Places, row: int, start: int, stop: int) -> None:
    places[0].extend([row] * (stop - start))
    places[1].extend(range(start, stop))
    places[2].append(stop - start)


def _voice(
    states: Float[Tensor, "b t d"], ids: Int[Tensor, "b u"], places: Places, head: Tensor,
    cap: float | None,
) -> Voice:  # fmt: skip
    row, at, lengths = (torch.tensor(x, dtype=torch.long, device=states.device) for x in places)
    return Voice(
        states=states[row, at - 1], head=head, targets=ids[row, at], lengths=lengths, cap=cap
    )  # fmt: skip
