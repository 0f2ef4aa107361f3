"""A tokenizer's JSON without the tokens that texts do not use, ids in their old order."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from tutelage.errors import MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def without_tokens(
    text: bytes, used: Bool[np.ndarray, " v"]
) -> tuple[bytes, Int[np.ndarray, " kept"]] | None:
    """Return a `tokenizer.json` without the tokens that `used` calls false, and the old ids.

    Added tokens stay, as do the unknown one, bytes, single characters of ASCII or of kept tokens
    (all of them for BPE), and all that BPE merges on its way to a kept token: texts of kept tokens
    become the same tokens as before, and all others smaller pieces, or the unknown token where one
    holds a character that was never met. None for a kind of tokenizer that cannot be pruned.
    """
    data = json.loads(text)
    model = data["model"]
    pieces = _pieces(model)
    if pieces is None:
        return None
    wanted = {piece for piece, i in pieces.items() if used[i]}
    met = set("".join(wanted)) | set(map(chr, range(128)))
    met = None if "merges" in model or unknown_token(model) is None else met
    wanted |= {piece for piece in pieces if _is_small(piece, model, met)}
    wanted |= {token["content"] for token in data["added_tokens"]}
    wanted |= {piece for piece in (unknown_token(model),) if piece is not None and piece in pieces}
    if model.get("merges") is not None:
        _keep_merges(model, wanted)
    numbers = {piece: i for piece, i in pieces.items() if piece in wanted}
    numbers |= {token["content"]: token["id"] for token in data["added_tokens"]}
    kept = np.array(sorted(set(numbers.values())), np.int64)
    new = {old: i for i, old in enumerate(kept.tolist())}
    _renumber(data, {piece: i for piece, i in pieces.items() if piece in wanted}, new)
    made = dumped(data)
    try:
        reached = opened(made).get_vocab(with_added_tokens=True)
    except ValueError:
        return None
    if reached != {piece: new[old] for piece, old in numbers.items()}:
        return None
    return made, kept


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


def unknown_token(model: dict[str, Any]) -> str | None:
    """Return what stands for characters without a token, by the `model` of a `tokenizer.json`."""
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


def dumped(data: dict[str, Any]) -> bytes:
    """Return a `tokenizer.json` without white space."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def opened(text: bytes) -> Tokenizer:
    """Open a tokenizer; raises `ValueError` for one that the library refuses."""
    try:
        return library().from_buffer(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(error) from None


def library() -> type[Tokenizer]:
    """Return the tokenizers' library; raises `MissingExtra` where it is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("Reading texts", "hf") from None
    return Tokenizer
