"""The data of language models: documents are read once, split by their text, and packed.

Of a document no more is held than its tokens and two hashes. Splits, order and fingerprints are a
pure function of the seed and of the texts: files and rows may be reordered and touched.
"""

from __future__ import annotations

import heapq
import unicodedata
from array import array
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from tutelage.errors import DataError, RecipeError
from tutelage.tasks.causal_lm.files import find_files
from tutelage.tasks.causal_lm.packing import FILLED, Tokens, Written, context, pack
from tutelage.tasks.causal_lm.reading import Document, Findings, documents
from tutelage.tasks.causal_lm.reading import read_documents as read_documents
from tutelage.tasks.causal_lm.tokens import Writer
from tutelage.tasks.draws import hash_keys

_TEST_SHARE, _MOST_HELD_OUT = 0.2, 2_000  # documents set aside for test or validation, at most
_PROMPTS, _BEGINNING = 16, 200  # held-out prompts that are kept; characters of a text's beginning
_RANKED = 256  # documents ranked at once
_LEAST_LENGTH = 8
_SALT = {"test": 1, "validation": 2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageData:
    """Three splits; `prompts` are of the test documents: chats up to an answer, texts' beginnings.

    `notes` are findings that are no reason to refuse the data.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    prompts: tuple[Document, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Held:
    """What reading one part leaves: tokens, hashes of each document, and the prompts to keep.

    `keys` hash the normalised text, `exact` the tokens, `asked` the prompt. Documents of equal
    `groups` stay together in a split. `order` names the documents that are left, sorted by their
    keys, without copies.
    """

    name: str
    written: Written
    keys: UInt64[np.ndarray, "n 2"]
    exact: UInt64[np.ndarray, " n"]
    asked: UInt64[np.ndarray, " n"]
    groups: UInt64[np.ndarray, " n"]
    prompts: tuple[Document, ...]
    order: Int[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0, np.int64))


def load_language(
    train: str | Path | None,
    test: str | Path | None = None,
    *,
    generated: Path | None = None,
    tokenizer: Any,
    length: int,
    answers_only: bool = True,
    validation: float = 0.1,
    seed: int = 0,
    context_length: int | None = None,
) -> LanguageData:
    """Read, split and pack texts and chats into sequences of `length` tokens.

    Paths as `read_documents` takes them; `tokenizer` is a fast one of transformers. Parts that a
    folder names are kept, and a `test` path wins over its test part; without either, a fifth of the
    documents (at most 2,000) is the test, and of the rest the share `validation` (at most 2,000) is
    to choose by. Equal texts count once, and those of held-out parts leave the training part.
    `generated` are chats that a teacher wrote: they join the training part, but for those whose
    prompt is held out, or where `train` is None are split by their prompts.
    `context_length` is the most that the model can read; the tokenizer's own word when None. Raises
    `DataError` for data that cannot be learned from, `RecipeError` for a bad option.
    """
    _check(tokenizer, length, validation, context_length)
    files = {} if train is None else find_files(train)
    if test is not None:
        found = find_files(test)
        files["test"] = found.get("test") or found["train"]
    writer, notes = Writer(tokenizer, answers_only=answers_only), []
    held = {part: _read(own, writer, seed, notes) for part, own in files.items()}
    written = _read((generated,), writer, seed, notes, by_prompt=True) if generated else None
    if written is not None:
        held.setdefault("train", written)
    for part in {id(part): part for part in (*held.values(), written) if part}.values():
        part.order = _without_copies(part, notes)
    prompts = held.get("test", held["train"]).prompts
    if written is not None:
        _drop_asked(written, held, notes)
    _split(held, validation, seed, notes)
    if written is not None:
        _drop_asked(written, held, notes)
        if held["train"] is not written:
            _drop_shared(written, held["train"], notes)
            held["train"] = _joined(held["train"], written)
    if writer.unclear:
        notes.append(
            f"in {writer.unclear} of {writer.chats} chats it is unclear which tokens are the "
            "assistant's, since the chat template rewrites earlier turns: all of theirs are learned"
        )
    _note_windows(held["train"], length, notes)
    packed = {
        name: pack(part.written, part.order, length, writer.end) for name, part in held.items()
    }
    _check_packed(packed, held, notes)
    test_groups = len(np.unique(held["test"].groups[held["test"].order]))
    prompts = prompts[: min(packed["test"].documents, test_groups)]
    return LanguageData(**packed, prompts=prompts, notes=tuple(notes))


def _check(tokenizer: Any, length: int, validation: float, context_length: int | None) -> None:
    if not 0 < validation < 1:
        raise RecipeError(f"validation is {validation}: it must lie between 0 and 1")
    if length < _LEAST_LENGTH:
        raise RecipeError(f"data.length is {length}: give sequences {_LEAST_LENGTH} tokens or more")
    most = context_length or int(tokenizer.model_max_length)
    if length > most:
        raise RecipeError(
            f"data.length is {length:,}, above the {most:,} tokens that the model can read: set "
            f"data.length to {most} or less"
        )


# --- reading -----------------------------------------------------------------------------------


def _read(
    files: tuple[Path, ...], writer: Writer, seed: int, notes: list[str], *, by_prompt: bool = False
) -> _Held:
    name = str(files[0]) + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")
    findings, kept = Findings(), _Prompts(seed)
    ids, learned, offsets = array("i"), bytearray(), array("q", [0])
    keys, exact, asked = bytearray(), bytearray(), bytearray()

    for document, own, targets in writer.write(documents(files, findings)):
        key, prompt = _key(document), _prompt_key(document)
        ids.frombytes(own.tobytes())
        learned += targets.tobytes()
        offsets.append(len(ids))
        keys += key
        asked += prompt
        exact += blake2b(own.tobytes() + targets.tobytes(), digest_size=8).digest()
        kept.offer(prompt if by_prompt else key[:8], document)
    notes += findings.notes(name)
    written = Written(
        ids=np.frombuffer(ids, np.int32), learned=np.frombuffer(learned, np.bool_),
        offsets=np.frombuffer(offsets, np.int64),
    )  # fmt: skip
    hashes = np.frombuffer(keys, np.uint64).reshape(-1, 2)
    prompts = np.frombuffer(asked, np.uint64)
    return _Held(
        name=name, written=written, keys=hashes, exact=np.frombuffer(exact, np.uint64),
        asked=prompts, groups=prompts if by_prompt else hashes[:, 0], prompts=kept.lowest(),
    )  # fmt: skip


def _key(document: Document) -> bytes:
    """Hash a document's text: letter case, white space and forms of Unicode do not matter."""
    parts = [m.role + "\0" + _normal(m.content) for m in document.messages]
    return blake2b("\0".join(parts or [_normal(document.text)]).encode(), digest_size=16).digest()


def _prompt_key(document: Document) -> bytes:
    """Hash what a chat asks first, whatever the system says; of a text the whole."""
    first = next((m.content for m in document.messages if m.role == "user"), document.text)
    return blake2b(_normal(first).encode(), digest_size=8).digest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class _Prompts:
    """Keeps prompts of the few documents that come first into the test split."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kept: dict[int, Document] = {}
        self.waiting: list[tuple[bytes, Document]] = []

    def offer(self, key: bytes, document: Document) -> None:
        """Consider a document with the key of its group; they are ranked some at a time."""
        self.waiting.append((key, document))
        if len(self.waiting) >= _RANKED:
            self._rank()

    def _rank(self) -> None:
        keys = np.frombuffer(b"".join(key for key, _ in self.waiting), np.uint64)
        ranks = hash_keys(keys, self.seed, _SALT["test"]).tolist()
        low = heapq.nsmallest(_PROMPTS, {*self.kept, *ranks})
        found = dict.fromkeys(low) | {r: self.kept[r] for r in low if r in self.kept}
        for rank, (_, document) in zip(ranks, self.waiting, strict=True):
            if rank in found:  # of copies the same one, whatever the order of the rows
                prompt, held = _prompt(document), found[rank]
                found[rank] = prompt if held is None else min(prompt, held, key=repr)
        self.kept, self.waiting = {r: d for r, d in found.items() if d is not None}, []

    def lowest(self) -> tuple[Document, ...]:
        """Return the prompts, those of the lowest ranks first."""
        self._rank()
        return tuple(prompt for _, prompt in sorted(self.kept.items(), key=lambda item: item[0]))


def _prompt(document: Document) -> Document:
    """Return a chat up to its last answer, or the beginning of a text, up to a space."""
    if document.messages:
        last = max(i for i, m in enumerate(document.messages) if m.role == "assistant")
        return Document(messages=document.messages[:last])
    text = " ".join(document.text[: 4 * _BEGINNING].split())
    size = min(_BEGINNING, len(text) // 2)
    return Document(text=text[:size].rpartition(" ")[0] or text[:size] or text)


def _without_copies(part: _Held, notes: list[str]) -> Int[np.ndarray, " m"]:
    """Return one document of each text, sorted by their keys; of copies always the same one."""
    order = np.lexsort((part.exact, part.keys[:, 1], part.keys[:, 0]))
    keys = part.keys[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    copies = len(order) - int(first.sum())
    if copies:
        notes.append(f"{copies} of {len(order)} documents of {part.name} are copies and left out")
    return order[first]


# --- splitting ---------------------------------------------------------------------------------


def _split(held: dict[str, _Held], share: float, seed: int, notes: list[str]) -> None:
    """Take out of the training part what is missing, and what a held-out part holds as well."""
    train = held["train"]
    for name in ("test", "validation"):
        others = [held[k] for k in ("test", "validation") if k in held and k != name]
        if name in held:
            for other in [train, *(others if name == "test" else ())]:
                _drop_shared(other, held[name], notes)
    least = 1 + sum(name not in held for name in ("test", "validation"))
    count = len(np.unique(train.groups[train.order]))
    if count < least:
        what = "documents" if train.groups is not train.asked else "prompts with answers"
        raise DataError(
            f"{train.name} has {count} different {what} where {least} are needed: add some"
        )
    for name, wanted in (("test", _TEST_SHARE), ("validation", share)):
        if name in held:
            continue
        groups, member = np.unique(train.groups[train.order], return_inverse=True)
        ranks = hash_keys(groups, seed, _SALT[name])
        count = min(max(1, round(wanted * len(ranks))), _MOST_HELD_OUT, len(ranks) - 1)
        held_out = np.zeros(len(ranks), np.bool_)
        held_out[np.argsort(ranks, kind="stable")[:count]] = True
        chosen = held_out[member]
        held[name] = replace(train, order=train.order[chosen])
        train.order = train.order[~chosen]


def _drop_shared(part: _Held, other: _Held, notes: list[str]) -> None:
    a, b = part.keys[part.order], other.keys[other.order]
    shared = np.isin(a[:, 0], b[:, 0]) & np.isin(a[:, 1], b[:, 1])
    if shared.any():
        notes.append(
            f"{int(shared.sum())} of {len(shared)} documents of {part.name} are also in "
            f"{other.name} and left out of the former"
        )
        part.order = part.order[~shared]


def _drop_asked(written: _Held, held: dict[str, _Held], notes: list[str]) -> None:
    """Leave out the chats that a teacher wrote to prompts that are held out."""
    parts = [held[name] for name in ("test", "validation") if name in held]
    if not parts:
        return
    asked = np.concatenate([part.asked[part.order] for part in parts])
    shared = np.isin(written.asked[written.order], asked)
    if shared.any():
        notes.append(
            f"{int(shared.sum())} of {len(shared)} generated chats answer prompts that are held "
            "out, and are left out"
        )
        written.order = written.order[~shared]


def _joined(one: _Held, other: _Held) -> _Held:
    """Return the documents of both as one part."""
    a, b = one.written, other.written
    return replace(
        one, name=f"{one.name} and {other.name}",
        written=Written(
            ids=np.concatenate([a.ids, b.ids]), learned=np.concatenate([a.learned, b.learned]),
            offsets=np.concatenate([a.offsets, a.offsets[-1] + b.offsets[1:]]),
        ),
        keys=np.concatenate([one.keys, other.keys]), exact=np.concatenate([one.exact, other.exact]),
        asked=np.concatenate([one.asked, other.asked]),
        groups=np.concatenate([one.groups, other.groups]),
        order=np.concatenate([one.order, len(one.keys) + other.order]),
    )  # fmt: skip


# --- after packing -----------------------------------------------------------------------------


def _note_windows(part: _Held, length: int, notes: list[str]) -> None:
    sizes = np.diff(part.written.offsets)[part.order]
    long = int((sizes > length).sum())
    if long:
        notes.append(
            f"{long} of {len(sizes)} training documents are longer than {length} tokens and cut "
            f"into windows; each after the first begins with the {context(length)} tokens before it"
        )


def _check_packed(packed: dict[str, Tokens], held: dict[str, _Held], notes: list[str]) -> None:
    for name, tokens in packed.items():
        if not tokens.learned.any():
            raise DataError(f"no token of the {name} part ({held[name].name}) can be learned")
    train = packed["train"]
    filled = int((train.owner == FILLED).sum())
    if train.ids.size - filled < train.length:
        raise DataError(
            f"the training part of {held['train'].name} has {train.ids.size - filled} tokens, "
            f"fewer than one sequence of {train.length}: add documents or lower data.length"
        )
    learned = int(train.learned.sum())
    notes.append(
        f"{train.documents:,} training documents lie in {len(train):,} sequences of "
        f"{train.length} tokens, {learned / train.ids.size:.0%} of which are learned"
    )
