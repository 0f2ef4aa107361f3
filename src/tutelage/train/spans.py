"""A teacher with a tokenizer of its own: it is asked about the same text, span by span, live."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.files import hash_json
from tutelage.losses.language_spans import Voice, spans_loss
from tutelage.students.decoders.network import Decoder
from tutelage.tasks.causal_lm.reading import Document
from tutelage.tasks.causal_lm.spans import aligned, bytes_of_tokens, readable
from tutelage.tasks.causal_lm.tokens import Writer
from tutelage.train.checkpoint import digest

# Of one side: row and place of each token of the spans, and how many each span has.
Places = tuple[list[int], list[int], list[int]]


class SpanTeacher:
    """Teaches by `uld` over spans of text what `network` says, whose tokens are `tokenizer`'s.

    `own` is the student's tokenizer. Text between special tokens is written by both, and their
    tokens are aligned; special tokens, ends among them, are learned from the text alone. `weight`
    is that of the loss, which is the sum over spans that are learned whole, a learned token.
    `left_out` counts texts that a tokenizer changes, so that nothing of them was aligned.
    """

    def __init__(self, network: Decoder, tokenizer: Any, own: Any, *, weight: float = 1.0) -> None:
        self.network, self.weight, self.left_out = network.eval(), weight, 0
        self.writer = Writer(tokenizer)
        self.theirs, self.mine = bytes_of_tokens(tokenizer), bytes_of_tokens(own)
        self._most = int(network.spec.config.get("max_position_embeddings", 1 << 30))
        words = [t.backend_tokenizer.to_str() for t in (tokenizer, own)]
        how = [network.spec.config, self.writer.end]
        self.key = hash_json(["uld", weight, how, digest(network.state_dict(), *words)])

    def value(
        self, student: Any, states: Float[Tensor, "b t d"], ids: Int[Tensor, "b u"],
        learned: Bool[Tensor, "b t"],
    ) -> Tensor:  # fmt: skip
        """Return the loss, not weighted; `states` are before each token of `ids` but the first."""
        rows, here, there = self._aligned(ids.cpu().numpy(), learned.cpu().numpy())
        if not here[2]:  # of rows without any text there would be nothing to ask
            return states[:0].sum()
        device = states.device
        asked = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for number, row in enumerate(rows):
            asked[number, : len(row)] = torch.tensor(row)
        if asked.shape[1] > self._most:
            raise TeacherError(
                f"the teacher reads {self._most:,} tokens and a sequence is {asked.shape[1]:,} of "
                "its own; lower data.length"
            )
        self.network.to(device)
        with torch.no_grad():
            theirs = self.network.states(asked[:, :-1].to(device))
        with torch.autocast(device.type, enabled=False):
            head, cap = student.head.float(), getattr(student, "cap", None)
            mine = _voice(states.float(), ids, here, head, cap)
            said = _voice(theirs, asked.to(device), there, self.network.head, self.network.cap)
            return spans_loss(mine, said) / learned.sum().clamp(min=1)

    def _aligned(
        self, ids: Int[np.ndarray, "b u"], learned: Bool[np.ndarray, "b t"]
    ) -> tuple[list[list[int]], Places, Places]:
        """Return the teacher's tokens of each row, and where the spans lie on both sides."""
        rows: list[list[int]] = []
        here: Places = ([], [], [])
        there: Places = ([], [], [])
        for number, row in enumerate(ids.tolist()):
            said: list[int] = []
            for start, pieces in self._texts(row):
                written, spans = self._write(pieces, start)
                for a, b, c, d in spans + [0, 0, len(said), len(said)]:
                    if a > 0 and c > 0 and learned[number, a - 1 : b - 1].all():
                        _note(here, number, a, b)
                        _note(there, number, c, d)
                said += [*written, self.writer.end]
            rows.append(said)
        return rows, here, there

    def _texts(self, row: list[int]) -> list[tuple[int, list[bytes]]]:
        """Return runs of tokens that write text: where each begins, and what each token writes."""
        runs: list[tuple[int, list[bytes]]] = []
        before = False
        for place, number in enumerate(row):
            piece = self.mine[number] if number < len(self.mine) else None
            if piece is not None:
                if not before:
                    runs.append((place, []))
                runs[-1][1].append(piece)
            before = piece is not None
        return runs

    def _write(
        self, pieces: list[bytes], start: int
    ) -> tuple[list[int], Int[np.ndarray, "spans 4"]]:
        """Return a text in the teacher's tokens, and its spans, the student's from `start` on."""
        found = readable(pieces)
        if found is None:
            return [], np.zeros((0, 4), np.int64)
        first, last, text = found
        written = self.writer.prompt(Document(text=text))
        said = [self.theirs[number] for number in written]
        lead = next((i for i, piece in enumerate(said) if piece is not None), len(said))
        spans = aligned(pieces[first:last], [piece or b"" for piece in said[lead:]])
        self.left_out += not len(spans)
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
