"""A tokenizer's vocabulary: reading it, pruning it to what texts use, and writing it anew."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from tutelage.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PADS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
_MASKS = ("[MASK]", "<mask>", "<|mask|>")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
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
        tokenizer = _opened(self.json)
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
        return _dumped(data)

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
    _library()
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
        text = _dumped(data)
        tokenizer = _opened(text)
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
        blank=_first(numbers, (named.get("mask_token"), *_MASKS, _unknown(data["model"]))),
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
    return _opened(text)


def prune(whole: Vocabulary, used: Bool[np.ndarray, " v"]) -> Vocabulary | None:
    """Return the vocabulary without the tokens that `used` calls false, ids in their old order.

    Added tokens stay, as do the unknown one, bytes, single characters of ASCII or of kept tokens
    (all of them for BPE), and all that BPE merges on its way to a kept token: texts of kept tokens
    become the same tokens as before, and all others smaller pieces, or the unknown token where one
    holds a character that was never met. None for a kind of tokenizer that cannot be pruned.
    """
    data = json.loads(whole.json)
    model = data["model"]
    pieces = _pieces(model)
    if pieces is None:
        return None
    wanted = {piece for piece, i in pieces.items() if used[i]}
    met = set("".join(wanted)) | set(map(chr, range(128)))
    met = None if "merges" in model or _unknown(model) is None else met
    wanted |= {piece for piece in pieces if _is_small(piece, model, met)}
    wanted |= {token["content"] for token in data["added_tokens"]}
    wanted |= {piece for piece in (_unknown(model),) if piece is not None and piece in pieces}
    if model.get("merges") is not None:
        _keep_merges(model, wanted)
    numbers = {piece: i for piece, i in pieces.items() if piece in wanted}
    numbers |= {token["content"]: token["id"] for token in data["added_tokens"]}
    kept = np.array(sorted(set(numbers.values())), np.int64)
    new = {old: i for i, old in enumerate(kept.tolist())}
    _renumber(data, {piece: i for piece, i in pieces.items() if piece in wanted}, new)
    text = _dumped(data)
    try:
        reached = _opened(text).get_vocab(with_added_tokens=True)
    except ValueError:
        return None
    if reached != {piece: new[old] for piece, old in numbers.items()}:
        return None
    return Vocabulary(
        json=text,
        kept=kept,
        pad=new[whole.pad],
        blank=None if whole.blank is None else new[whole.blank],
        specials=tuple(new[i] for i in whole.specials),
        tail=whole.tail,
        added=whole.added,
    )


def _pieces(model: dict[str, Any]) -> dict[str, int] | None:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return vocabulary if model.get("type", "BPE") in ("BPE", "WordPiece", "WordLevel") else None
    if isinstance(vocabulary, list) and model.get("type", "Unigram") == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(vocabulary)}
    return None


def _is_small(piece: str, model: dict[str, Any], met: set[str] | None) -> bool:
    """Say whether a piece is a byte or a single character, one of `met` if that is given."""
    bare = piece.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "")
    if _BYTE.fullmatch(piece) is not None:
        return True
    return (len(bare) == 1 or len(piece) == 1) and (met is None or bare in met or piece in met)


def _unknown(model: dict[str, Any]) -> str | None:
    if isinstance(model.get("vocab"), list):
        number = model.get("unk_id")
        return None if number is None else model["vocab"][number][0]
    return model.get("unk_token")


def _keep_merges(model: dict[str, Any], wanted: set[str]) -> None:
    """Add to `wanted` what merges into it, over every path, and drop the other merges."""
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    made: dict[str, list[tuple[str, ...]]] = {}
    for pair in pairs:
        made.setdefault(pair[0] + pair[1].removeprefix(prefix), []).append(pair)
    todo = list(wanted)
    while todo:
        for part in (part for pair in made.get(todo.pop(), ()) for part in pair):
            if part not in wanted:
                wanted.add(part)
                todo.append(part)
    model["merges"] = [
        merge
        for merge, (left, right) in zip(model["merges"], pairs, strict=True)
        if left + right.removeprefix(prefix) in wanted
    ]


def _renumber(data: dict[str, Any], pieces: dict[str, int], new: dict[int, int]) -> None:
    model = data["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [model["vocab"][i] for i in sorted(pieces.values())]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        ordered = sorted(pieces.items(), key=lambda item: item[1])
        model["vocab"] = {piece: new[i] for piece, i in ordered}
    for token in data["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_around(data.get("post_processor") or {}, new)


def _renumber_around(processor: dict[str, Any], new: dict[int, int]) -> None:
    for inner in processor.get("processors") or ():
        _renumber_around(inner, new)
    if processor.get("type") == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new[i] for i in token["ids"]]
    for end in ("sep", "cls"):
        if isinstance(processor.get(end), list):
            processor[end] = [processor[end][0], new[processor[end][1]]]


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


def _dumped(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _opened(text: bytes) -> Tokenizer:
    """Open a tokenizer; raises `ValueError` for one that the library refuses."""
    try:
        return _library().from_buffer(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(error) from None


def _library() -> type[Tokenizer]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("Reading texts", "hf") from None
    return Tokenizer
