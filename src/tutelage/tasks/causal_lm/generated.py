"""Chats that a teacher wrote: prompts in, a JSON Lines file of prompt and answer out.

Every answer is kept as it comes, a whole batch a write, in a hidden file beside the result; a
killed run asks for the missing ones alone. The result is written once, at the end.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, DiskError
from tutelage.files import hash_json, write_atomically
from tutelage.progress import Progress, Silent
from tutelage.tasks.causal_lm.files import find_files, raw_rows
from tutelage.tasks.text.files import sound

_N = 4  # words: an n-gram that comes back marks a text that goes round in circles
_MOST_REPEATED = 0.3  # the share of n-grams that are repeated, above which an answer is refused
_LONG = 40  # characters: an answer as long as this that came before is refused
_SHOWN = 5  # pairs that are shown of all that are kept
KEPT = ""
REASONS = {
    "empty": "are empty",
    "cut": "were cut before their end",
    "repeating": "repeat themselves",
    "copy": "were given before",
}
_ADVICE = {
    "empty": "give prompts that the teacher was tuned to answer",
    "cut": "raise data.generate.longest, or ask for short answers in the prompts",
    "repeating": "change data.generate.temperature, or take a better teacher",
    "copy": "give prompts that differ, or raise data.generate.temperature",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer; `ended` is false where it was cut; `tokens` are its ids, if they are known."""

    text: str
    ended: bool = True
    tokens: tuple[int, ...] = ()


Answer = Callable[[list[str], int], Sequence[str | Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What was made: where, of how many prompts, how many answers, and what became of them.

    `answers` were wanted in all, `asked` of them now. `refused` counts answers by reason. `doubled`
    prompts were given more than once. `shown` are a few of the pairs that are kept.
    """

    path: Path
    prompts: int
    doubled: int
    answers: int
    asked: int
    kept: int
    refused: dict[str, int]
    shown: tuple[tuple[str, str], ...]

    def notes(self) -> tuple[str, ...]:
        """Return the counts in words."""
        found = [f"{self.kept:,} of {self.answers:,} answers are kept in {self.path}"]
        if self.doubled:
            found.append(f"{self.doubled:,} prompts were given twice and asked once")
        found += [f"{n:,} answers {REASONS[why]} and are left out" for why, n in
                  self.refused.items() if n]  # fmt: skip
        return tuple(found)


def read_prompts(path: str | Path) -> list[str]:
    """Return prompts: lines of a .txt file, or the `prompt` of rows; raises `DataError`."""
    files = find_files(path)["train"]
    if all(file.suffix.lower() == ".txt" for file in files):
        pieces = (row["text"] for _, row in raw_rows(files))
        found = [line for piece in pieces for line in piece.splitlines()]
    else:
        found = [_prompt(where, row) for where, row in raw_rows(files)]
    found = [prompt.strip() for prompt in found if prompt.strip()]
    if not found:
        raise DataError(f"{path} holds no prompts: write one a line")
    return found


def _prompt(where: str, row: dict[str, Any]) -> str:
    prompt = row.get("prompt", row.get("text"))
    if not isinstance(prompt, str):
        raise DataError(f"{where} has no prompt: name its column 'prompt'")
    return sound(prompt).replace("\0", "")


def fill_templates(topics: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return each template with `{topic}` replaced by each topic; raises `DataError`."""
    for template in templates:
        if "{topic}" not in template:
            raise DataError(f"the template '{template[:40]}' has no {{topic}}: put it in")
    return [t.replace("{topic}", topic) for topic, t in product(topics, templates)]


def generate(
    prompts: Sequence[str], answer: Answer, into: Path, *, answers: int | None = None,
    key: str = "", batch: int = 16, progress: Progress | None = None,
) -> Generated:  # fmt: skip
    """Ask for answers to the prompts, and write those worth learning to `into`, as `messages`.

    `answers` are wanted in all: one a prompt when None; beyond that each prompt is asked again.
    `answer` is given some prompts and which draw of theirs it is, from 0. `key` names all that
    answers depend on (teacher, settings, seed). Batches are always made of the same prompts, so
    that a run that was interrupted ends as any other. Raises `DataError` where the file was begun
    with another `key`, where `answer` does not answer each prompt, or where nothing is left.
    """
    progress = progress or Silent()
    distinct = _distinct(prompts)
    if not distinct:
        raise DataError(f"there are no prompts to answer for {into}: give some")
    wanted = answers or len(distinct)
    blocks = list(_blocks(distinct, wanted, batch))
    journal = _Journal(
        into.with_name(f".{into.name}.asked"), hash_json([key, batch, wanted, distinct])
    )
    behind = sum(len(block) for _, block in blocks[: len(journal)])
    progress.start("Asking the teacher", wanted, done=behind)
    for draw, block in blocks[len(journal) :]:
        replies = [_as_reply(found) for found in answer(block, draw)]
        if len(replies) != len(block):
            raise DataError(f"the teacher gave {len(replies)} answers to {len(block)} prompts")
        journal.append([[r.text, r.ended] for r in replies])
        progress.advance(len(block))
    progress.finish()
    asked = (prompt for _, block in blocks for prompt in block)
    kept, refused = _sorted_out(zip(asked, journal.replies(), strict=True))
    result = Generated(
        path=into, prompts=len(distinct), answers=wanted, asked=wanted - behind, kept=len(kept),
        doubled=sum(map(bool, map(str.strip, prompts))) - len(distinct), refused=refused,
        shown=tuple(kept[:_SHOWN]),
    )  # fmt: skip
    if not kept:
        most = max(refused, key=lambda why: refused[why])
        raise DataError(
            f"no answer is worth learning: {'; '.join(result.notes()[1:])}: {_ADVICE[most]}"
        )
    write_atomically(into, "".join(map(_line, kept)))
    return result


def _blocks(prompts: Sequence[str], wanted: int, batch: int) -> Iterator[tuple[int, list[str]]]:
    """Yield prompts by batch, all of them again and again, with the number of the draw."""
    draw = 0
    while wanted > 0:
        some = prompts[:wanted]
        yield from ((draw, list(some[i : i + batch])) for i in range(0, len(some), batch))
        draw, wanted = draw + 1, wanted - len(some)


def _distinct(prompts: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    for prompt in prompts:
        found.setdefault(_normal(prompt), prompt)
    return [prompt for normal, prompt in found.items() if normal]


def repeated_share(items: Sequence[Any], n: int = _N) -> float:
    """Return the share of n-grams that came before: 1 - distinct / all; 0 where there are none."""
    count = len(items) - n + 1
    if count < 1:
        return 0.0
    return 1 - len({tuple(items[i : i + n]) for i in range(count)}) / count


def why_refused(reply: Reply) -> str:
    """Return why an answer is not worth learning, one of `REASONS`, or `KEPT`."""
    if not reply.text.strip():
        return "empty"
    if not reply.ended:
        return "cut"
    words = reply.text.split()
    # a word of a script without spaces is a whole sentence: there characters are counted, in tens
    spaced = len(words) > len(reply.text) / 20
    share = repeated_share(words) if spaced else repeated_share(reply.text, 10)
    return "repeating" if share > _MOST_REPEATED else KEPT


def _sorted_out(
    pairs: Iterator[tuple[str, Reply]],
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    kept: list[tuple[str, str]] = []
    refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    seen: set[Any] = set()
    for prompt, reply in pairs:
        why, normal = why_refused(reply), _normal(reply.text)
        pair = (_normal(prompt), normal)
        if not why and (normal in seen or pair in seen):
            why = "copy"
        if why:
            refused[why] += 1
            continue
        seen.add(normal if len(normal) >= _LONG else pair)
        kept.append((prompt, reply.text.strip()))
    return kept, dict(refused)


def _line(pair: tuple[str, str]) -> str:
    turns = zip(("user", "assistant"), pair, strict=True)
    messages = [{"role": r, "content": c} for r, c in turns]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _as_reply(found: str | Reply) -> Reply:
    reply = Reply(text=found) if isinstance(found, str) else found
    return Reply(text=sound(reply.text.replace("\0", "")), ended=reply.ended)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


class _Journal:
    """Answers by batch, one line of JSON each; the first line says what they are answers to."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, lines = path, []
        if path.exists():
            lines = self._whole_lines()
        if lines and lines[0] != {"key": key}:
            raise DataError(
                f"{path} holds answers to other prompts, of another teacher or other settings: "
                "delete it, or write into another file"
            )
        self.batches: list[list[Any]] = lines[1:]
        if not lines:
            write_atomically(path, json.dumps({"key": key}) + "\n")

    def __len__(self) -> int:
        return len(self.batches)

    def _whole_lines(self) -> list[Any]:
        """Return the lines, without one that a kill cut short: it is taken off the file too."""
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            write_atomically(self.path, whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise DataError(f"{self.path} is damaged: delete it and run again") from None

    def append(self, batch: list[Any]) -> None:
        """Write one batch behind the others, and see it on the disk."""
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(batch).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.batches.append(batch)

    def replies(self) -> Iterator[Reply]:
        """Yield all answers in the order of the prompts."""
        for batch in self.batches:
            yield from (Reply(text=text, ended=ended) for text, ended in batch)
