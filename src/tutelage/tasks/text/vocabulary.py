"""A tokenizer's vocabulary: reading it, pruning it to what texts use, and writing it anew."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from tutelage.errors import DataError
from tutelage.tasks.text.token_pruning import dumped, library, opened, unknown_token, without_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PADS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
_MASKS = ("[MASK]", "<mask>", "<|mask|>")
_AT_ONCE = 1024  # texts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """A tokenizer as its JSON, without truncation and padding, and what its ids mean.

    `kept[i]` is the id that token `i` had in the original. `pad` fills texts up, `blank` (the mask
    or else the unknown token) stands for an erased token, `specials` are never erased. `tail`
    counts the special tokens behind a text and `added` those around it.
    """

    json: bytes
    kept: Int[np.ndarray, " v"]
    pad: int
    blank: int | None
    specials: tuple[int, ...]
    tail: int
    added: int

    def __len__(self) -> int:
        return len(self.kept)

    def tokenizer(self, length: int | None = None) -> Tokenizer:
        """Open the tokenizer; with `length`, it cuts texts to so many tokens, special ones too."""
        tokenizer = opened(self.json)
        if length is not None:
            tokenizer.enable_truncation(length)
        return tokenizer

    def file(self, length: int) -> bytes:
        """Return the `tokenizer.json` that cuts and pads every text to `length` tokens."""
        data = json.loads(self.json)
        data["truncation"] = {
            "direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        data["padding"] = {
            "strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": self.pad, "pad_type_id": 0,
            "pad_token": _decoder(self.json).id_to_token(self.pad),
        }  # fmt: skip
        return dumped(data)

    def decode(self, ids: Int[np.ndarray, " t"], most: int) -> str:
        """Return the text of some ids without special tokens, at most `most` characters."""
        text = _decoder(self.json).decode(ids.tolist(), skip_special_tokens=True)
        return text if len(text) <= most else text[: most - 1] + "\u2026"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texts:
    """Texts as token ids, one after the other in `ids`, text `i` from `offsets[i]` on.

    A text has at most `length` tokens, special ones included. `labels` is None, and `classes`
    empty, without labels; where some have none, theirs is -1. `source` is for messages. `changed`
    is known of validation texts in a pruned vocabulary.
    """

    ids: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " n+1"]
    labels: Int[np.ndarray, " n"] | None
    classes: tuple[str, ...]
    source: str
    vocabulary: Vocabulary
    length: int
    changed: Changed | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int]:
        """Tokens of one text as the network sees it, pads included."""
        return (self.length,)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, labels, classes and tokenizer: content only (read anew each time)."""
        names = "".join(f"{len(name)}:{name}" for name in self.classes)
        digest = hashlib.sha256(f"{self.length}|{len(self)}|{names}|".encode())
        labels = () if self.labels is None else (self.labels,)
        for part in (self.ids, self.offsets, *labels, self.vocabulary.kept):
            digest.update(np.ascontiguousarray(part, dtype="<i8").data)
        digest.update(self.vocabulary.json)
        return digest.hexdigest()

    def tokens(self, index: int) -> Int[np.ndarray, " t"]:
        """Return the ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, index: Int[np.ndarray, " m"]) -> Texts:
        """Return the texts named by `index`, in that order."""
        ids, offsets = take_ids(self.ids, self.offsets, index)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, ids=ids, offsets=offsets, labels=labels, changed=None)

    def padded(self, index: Int[np.ndarray, " b"]) -> Int[np.ndarray, "b t"]:
        """Return the ids of some texts, filled up with pads."""
        starts, ends = self.offsets[index], self.offsets[index + 1]
        at = starts[:, None] + np.arange(self.length)
        inside = at < ends[:, None]
        out = np.full(at.shape, self.vocabulary.pad, np.int64)
        out[inside] = self.ids[at[inside]]
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changed:
    """Which of some texts a pruned vocabulary reads otherwise, and as what they stood before."""

    index: Int[np.ndarray, " m"]
    whole: Texts


def pack(
    texts: Iterable[Int[np.ndarray, " t"]], vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " n+1"]]:
    """Return the ids of all texts one after the other, small, and where each begins and ends."""
    kind = np.uint16 if len(vocabulary) <= 1 << 16 else np.int32
    held, ends = bytearray(), array("q", [0])
    for ids in texts:
        held += ids.astype(kind).tobytes()
        ends.append(len(held) // kind().itemsize)
    return np.frombuffer(held, kind), np.array(ends)


def take_ids(
    ids: Int[np.ndarray, " tokens"], offsets: Int[np.ndarray, " n+1"], index: Int[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " m+1"]]:
    """Return ids and offsets of the texts named by `index`, in that order."""
    sizes = np.diff(offsets)[index]
    new = np.concatenate([[0], np.cumsum(sizes)])
    return ids[np.repeat(offsets[:-1][index] - new[:-1], sizes) + np.arange(new[-1])], new


def in_blocks(items: Iterable[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """Yield rows in lists that hold neither many nor, all together, long texts."""
    block: list[tuple[str, Any]] = []
    held = 0
    for row in items:
        block.append(row)
        held += len(row[0])
        if len(block) == _AT_ONCE or held > 1 << 22:
            yield block
            block, held = [], 0
    if block:
        yield block


def open_vocabulary(path: str | Path) -> Vocabulary:
    """Read a `tokenizer.json`, or the one in a folder; truncation and padding are switched off.

    Raises `DataError` for a file that is missing or damaged, or has no padding token, and
    `MissingExtra` without the library tokenizers.
    """
    library()
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise DataError(
            f"{file} does not exist: give the folder of a model with its tokenizer.json "
            "(data.tokenizer: FOLDER)"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        data["truncation"] = data["padding"] = None
        data.setdefault("added_tokens", [])
        if data["model"].get("dropout"):
            data["model"]["dropout"] = None  # merges left out by chance, meant for training
        text = dumped(data)
        tokenizer = opened(text)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{file} is no readable tokenizer ({reason}): save it again") from None
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    named = _named(file.parent)
    pad = _first(numbers, (named.get("pad_token"), *_PADS))
    if pad is None:
        raise DataError(
            f"{file} has no padding token, which texts of one length need: add one, [PAD], to it"
        )
    tail, added = _around(tokenizer)
    return Vocabulary(
        json=text,
        kept=np.arange(max(numbers.values()) + 1, dtype=np.int64),
        pad=pad,
        blank=_first(numbers, (named.get("mask_token"), *_MASKS, unknown_token(data["model"]))),
        specials=tuple(sorted(t["id"] for t in data["added_tokens"] if t.get("special"))),
        tail=tail,
        added=added,
    )


def cut(ids: Int[np.ndarray, " t"], most: int, tail: int) -> Int[np.ndarray, " u"]:
    """Return at most `most` ids, the `tail` special ones at the end among them."""
    if len(ids) <= most:
        return ids
    return np.concatenate([ids[: most - tail], ids[len(ids) - tail :]])


def shorten(
    ids: Int[np.ndarray, " tokens"], offsets: Int[np.ndarray, " n+1"], most: int, tail: int
) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " n+1"]]:
    """`cut` of all texts at once."""
    sizes = np.diff(offsets)
    new = np.minimum(sizes, most)
    ends = np.concatenate([[0], np.cumsum(new)])
    at = np.arange(ends[-1]) - np.repeat(ends[:-1], new)
    behind = at >= np.repeat(new - tail, new)
    return ids[np.repeat(offsets[:-1], new) + at + behind * np.repeat(sizes - new, new)], ends


@lru_cache(maxsize=2)
def _decoder(text: bytes) -> Tokenizer:
    return opened(text)


def prune(whole: Vocabulary, used: Bool[np.ndarray, " v"]) -> Vocabulary | None:
    """Return the vocabulary without the tokens that `used` calls false (see `without_tokens`).

    None for a kind of tokenizer that cannot be pruned.
    """
    found = without_tokens(whole.json, used)
    if found is None:
        return None
    text, kept = found
    new = {old: i for i, old in enumerate(kept.tolist())}
    return Vocabulary(
        json=text,
        kept=kept,
        pad=new[whole.pad],
        blank=None if whole.blank is None else new[whole.blank],
        specials=tuple(new[i] for i in whole.specials),
        tail=whole.tail,
        added=whole.added,
    )


def _named(folder: Path) -> dict[str, str]:
    """Return the special tokens that the files beside a tokenizer name, `pad_token` for one."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # these files only help: names that most tokenizers use are tried next
        for key, value in data.items() if isinstance(data, dict) else ():
            token = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(token, str):
                found[key] = token
    return found


def _first(numbers: dict[str, int], names: Sequence[str | None]) -> int | None:
    return next((numbers[name] for name in names if name is not None and name in numbers), None)


def _around(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return how many special tokens stand behind a text, and how many around it."""
    mask = tokenizer.encode("a").special_tokens_mask
    inside = [i for i, special in enumerate(mask) if not special]
    return (len(mask) - 1 - inside[-1] if inside else 0), tokenizer.num_special_tokens_to_add(False)
