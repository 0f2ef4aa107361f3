"""How much faster a language model is taught from the cache than with its teacher in the loop.

python benchmarks/language_loop.py --teacher smollm2.gguf --speeches sotu/package/data \
    [--layers 10] [--vocabulary pruned] [--steps 5]

The student is SmolLM2-135M with every third layer, one step learns from 512 tokens of State of the
Union speeches, and what is kept of the teacher is the likeliest 64 tokens, stored or asked in each
step. Both take the same steps (the losses are compared). Times are CPU seconds of one thread, the
median of the steps, since the machine may do other work besides. What a step consists of is timed
apart: the teacher's answer, the student forwards and back, and the rest (optimizer, averaging).
Lines go to benchmarks/results/language_loop.json. Aim: 3 times.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, command, machine
from loop import Clock
from torch import Tensor

from tutelage.files import hash_json, read_json, write_json
from tutelage.losses.sparse import SparseDecision, top_of
from tutelage.progress import Silent
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.students.decoders.slicing import with_layers, with_tokens
from tutelage.teach.gguf_file import open_gguf
from tutelage.teach.token_signals import Speaker, TokenSignals, sequences
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

RESULTS = HERE / "results" / "language_loop.json"
LOSSES = {"forward_kl": 1.0, "token_cross_entropy": 1.0}
KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Sequences of which every token is learned but the first."""

    ids: np.ndarray
    learned: np.ndarray

    @property
    def fingerprint(self) -> str:
        """The hash of both."""
        return hash_json(self.ids.tolist())

    def __len__(self) -> int:
        return len(self.ids)


class Live:
    """Signals that are asked of the teacher in each step."""

    def __init__(self, speaker: Speaker, held: TokenSignals) -> None:
        self.speaker, self.tokens, self.key = speaker, held.tokens, held.key
        self.vocabulary, self.spent = held.vocabulary, 0.0

    @torch.inference_mode()
    def read(self, index: Tensor) -> SparseDecision:
        """Ask about the learned positions of sequences `index`."""
        begin = time.process_time()
        parts = [top_of(x, KEPT) for x in self.speaker(*sequences(self.tokens, index))]
        ids = torch.cat([p.ids.int() for p in parts if p.ids is not None]).clone()
        found = SparseDecision(
            ids=ids, log_probs=torch.cat([p.log_probs for p in parts]).clone(),
            tail=torch.cat([p.tail for p in parts]).clone(), drawn=False,
        )  # fmt: skip
        self.spent += time.process_time() - begin
        return found


class Timed(LanguageLesson):
    """A lesson that notes the CPU seconds of its losses."""

    spent = 0.0

    def loss(self, batch: Any) -> Any:
        """Time the student forwards and back."""
        begin = time.process_time()
        found = super().loss(batch)
        self.spent += time.process_time() - begin
        return found


def rows(tokenizer: Any, speeches: Path, length: int, count: int) -> Rows:
    """Return the starts of so many speeches."""
    texts = [f.read_text(encoding="utf-8") for f in sorted(speeches.glob("*.txt"))]
    ids = [tokenizer(t[: 12 * length])["input_ids"][:length] for t in texts]
    kept = np.array([x for x in ids if len(x) == length][:count], np.int32)
    assert len(kept) == count, f"{len(kept)} speeches of {length} tokens"
    return Rows(ids=kept, learned=np.ones(kept.shape, bool))


def pruned(decoder: Decoder, tokens: Rows) -> tuple[Decoder, Rows]:
    """Return the decoder and the rows in the vocabulary of the rows and the ends."""
    ends = [v for k, v in decoder.spec.config.items() if k.endswith("_token_id") and v is not None]
    kept = np.union1d(np.unique(tokens.ids), np.array(ends))
    ids = np.searchsorted(kept, tokens.ids).astype(np.int32)
    return with_tokens(decoder, torch.from_numpy(kept)), Rows(ids=ids, learned=tokens.learned)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of both, their parts, and the ratio."""
    network, tokenizer = open_gguf(options.teacher)
    count = options.batch * options.steps
    teacher, tokens = decoder_of(network), rows(tokenizer, options.speeches, options.length, count)
    if options.vocabulary == "pruned":
        teacher, tokens = pruned(teacher, tokens)
    layers = teacher.spec.layers
    student = with_layers(teacher, [i * layers // options.layers for i in range(options.layers)])
    held_out = Rows(ids=tokens.ids[:1, :16], learned=tokens.learned[:1, :16])
    speaker = Speaker(teacher)

    def taught(signals: Any) -> tuple[list[float], float, list[float]]:
        clock = Clock()
        lesson = Timed(
            copy.deepcopy(student), tokens, held_out, losses=LOSSES, signals=signals,
            batch=options.batch, seed=0,
        )  # fmt: skip
        schedule = Schedule(epochs=1, batch=options.batch, rate=1e-4, checkpoint_s=1e9)
        history = Trainer(lesson, schedule, progress=clock).train()
        return clock.seconds()[1], lesson.spent / options.steps, history.loss

    with tempfile.TemporaryDirectory() as folder:
        held = TokenSignals.fill(
            Path(folder), "teacher", speaker, tokens, kind="topk", kept=KEPT, progress=Silent()
        )
        live = Live(speaker, held)
        cached_s, loss_s, cached_loss = taught(held)
        live_s, _, live_loss = taught(live)
    assert np.allclose(cached_loss, live_loss, rtol=1e-3), (cached_loss, live_loss)
    a, b = (statistics.median(x) for x in (cached_s, live_s))
    return {
        "layers": [options.layers, layers], "vocabulary": teacher.spec.vocabulary,
        "tokens_a_step": options.batch * options.length, "cached_s": a, "live_s": b,
        "ratio": b / a, "teacher_s": live.spent / options.steps, "student_s": loss_s,
        "rest_s": a - loss_s, "loss": [cached_loss, live_loss], "steps": options.steps,
        "machine": machine(), "command": command(),
    }  # fmt: skip


def main() -> None:
    """Measure one student and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--speeches", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocabulary", choices=("pruned", "whole"), default="pruned")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(options)
    known = read_json(RESULTS) if RESULTS.exists() else []
    same: Callable[[Any], Any] = lambda r: (r["layers"], r["vocabulary"], r["tokens_a_step"])  # noqa: E731
    write_json(RESULTS, [r for r in known if same(r) != same(row)] + [row])
    print(json.dumps({k: v for k, v in row.items() if k not in ("machine", "command")}))


if __name__ == "__main__":
    main()
