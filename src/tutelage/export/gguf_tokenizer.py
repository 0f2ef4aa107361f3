"""A tokenizer's folder as the fields of a GGUF file.

Covers byte-level BPE (GPT-2's, Llama 3's, Qwen's) and BPE with byte fallback (Llama 2's, Mistral's,
Gemma's). Does not cover unigram or word pieces. Source: get_vocab_base of llama.cpp's conversion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import ExportError, MissingExtra
from tutelage.export.pre_tokenizers import PRE_TOKENIZERS, recognised
from tutelage.files import read_json

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
# Name in GGUF, key of tokenizer_config.json, key of config.json.
SPECIALS = (
    ("bos", "bos_token", "bos_token_id"),
    ("eos", "eos_token", "eos_token_id"),
    ("unknown", "unk_token", "unk_token_id"),
    ("padding", "pad_token", "pad_token_id"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFields:
    """What a GGUF file says of a tokenizer; tokens are in the order of their ids.

    `model` is gpt2 (byte-level, with `merges`) or llama (byte fallback, with `scores`).
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    specials: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    space_prefix: bool
    chat_template: str | None

    def metadata(self) -> dict[str, Any]:
        """Return the keys of the file."""
        keys: dict[str, Any] = {"model": self.model, "pre": self.pre, "tokens": self.tokens}
        keys |= {"scores": self.scores, "token_type": self.types, "merges": self.merges}
        keys |= {f"{name}_token_id": number for name, number in self.specials.items()}
        keys |= {"add_bos_token": self.adds_bos, "add_eos_token": self.adds_eos}
        keys["add_space_prefix"] = self.space_prefix
        found = {f"tokenizer.ggml.{k}": v for k, v in keys.items() if v not in ([], None)}
        if self.chat_template:
            found["tokenizer.chat_template"] = self.chat_template
        return found


def read_tokenizer(folder: Path, config: dict[str, Any]) -> TokenFields:
    """Read tokenizer.json, tokenizer_config.json and the chat template of a folder.

    There are as many tokens as `config` says rows (`vocab_size`); rows without a token are unused.
    Raises `ExportError` for a tokenizer that llama.cpp would run otherwise, or with more tokens.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(
            f"the tokenizer's folder '{folder}' has no tokenizer.json: save a fast tokenizer there"
        )
    data = read_json(path)
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or "vocab" not in model:
        raise ExportError(
            f"'{path}' is of type '{(model or {}).get('type')}', and only BPE is written as GGUF: "
            "choose a teacher with such a tokenizer"
        )
    fallback = bool(model.get("byte_fallback"))
    said = _said(folder)
    vocabulary = _vocabulary(data, config, path)
    adds_bos, adds_eos = _adds(path, said)
    if fallback and not all(f"<0x{i:02X}>" in vocabulary for i in range(256)):
        raise ExportError(
            f"'{path}' says unknown letters in bytes and has no token for some of them, so "
            "llama.cpp cannot load it: keep all 256 when the vocabulary is cut"
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    tokens = _tokens(vocabulary, int(config["vocab_size"]))
    types = _types(tokens, data, vocabulary, fallback, model.get("unk_token"))
    return TokenFields(
        model="llama" if fallback else "gpt2",
        pre="default" if fallback else _pre(data, path),
        tokens=[_plain(t, k, fallback) for t, k in zip(tokens, types, strict=True)],
        types=types,
        merges=[] if fallback else merges,
        scores=_scores(tokens, merges) if fallback else [],
        specials=_specials(said, config, vocabulary),
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        space_prefix=fallback and _prefixed(data),
        chat_template=_chat_template(folder, said),
    )


def _said(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    said = read_json(path) if path.is_file() else {}
    return said if isinstance(said, dict) else {}


def _vocabulary(data: dict[str, Any], config: dict[str, Any], path: Path) -> dict[str, int]:
    found = {str(token): int(number) for token, number in data["model"]["vocab"].items()}
    found |= {str(t["content"]): int(t["id"]) for t in data.get("added_tokens") or []}
    most, rows = max(found.values(), default=-1), int(config["vocab_size"])
    if most >= rows:
        raise ExportError(
            f"'{path}' numbers tokens up to {most} and the network has {rows} rows of them: give "
            "the tokenizer that belongs to the network"
        )
    return found


def _tokens(vocabulary: dict[str, int], rows: int) -> list[str]:
    tokens = [f"[PAD{i}]" for i in range(rows)]
    for token, number in vocabulary.items():
        tokens[number] = token
    return tokens


def _types(
    tokens: list[str], data: dict[str, Any], known: dict[str, int], fallback: bool, unknown: Any
) -> list[int]:
    added = {int(t["id"]): bool(t.get("special")) for t in data.get("added_tokens") or []}
    bytes_ = {f"<0x{i:02X}>" for i in range(256)} if fallback else set()
    found = []
    for number, token in enumerate(tokens):
        if known.get(token) != number:
            found.append(UNUSED)
        elif fallback and token == unknown:
            found.append(UNKNOWN)
        elif number in added:
            found.append(CONTROL if added[number] or _looks_special(token) else USER)
        else:
            found.append(BYTE if token in bytes_ else NORMAL)
    return found


def _looks_special(token: str) -> bool:
    """Say whether a token ends turns, although its file does not mark it; as llama.cpp does."""
    return token in ("<pad>", "<mask>") or (token.startswith("<|") and token.endswith("|>"))


def _plain(token: str, kind: int, fallback: bool) -> str:
    return token.replace(SPACE, " ") if fallback and kind == USER else token


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return the order of merging as llama.cpp reads it: the earlier, the higher."""
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault(pair.replace(" ", "", 1), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _pre(data: dict[str, Any], path: Path) -> str:
    model, normalizer = data["model"], data.get("normalizer")
    composed = isinstance(normalizer, dict) and normalizer.get("type") == "NFC"
    whole = bool(model.get("ignore_merges"))
    found = recognised(data.get("pre_tokenizer"), composed=composed, whole_words=whole)
    if found is None or (normalizer is not None and not composed):
        known = ", ".join(dict.fromkeys(p.name for p in PRE_TOKENIZERS))
        raise ExportError(
            f"'{path}' cuts or changes texts in a way that has no name in llama.cpp, which would "
            f"read them otherwise. Choose a teacher that does as one of: {known}"
        )
    return found.name


def _prefixed(data: dict[str, Any]) -> bool:
    """Say whether a space is put before a text."""
    text = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    return (
        '"Prepend"' in text
        or '"prepend_scheme": "first"' in text
        or ('"prepend_scheme": "always"' in text)
    )


def _adds(path: Path, said: dict[str, Any]) -> tuple[bool, bool]:
    """Say whether a text is put between a first and a last token."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("writing a tokenizer", "hf") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises its own kind of Exception for a wrong file
        raise ExportError(f"'{path}' is no whole tokenizer ({error}): save it again") from error
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a").ids
    extra = len(full) - len(bare)
    before = next((i for i in range(extra + 1) if full[i : i + len(bare)] == bare), 0)
    adds = (before > 0, extra - before > 0)
    keys = ("add_bos_token", "add_eos_token")
    own = [said.get(key) if isinstance(said.get(key), bool) else None for key in keys]
    return tuple(a if o is None else bool(o) for a, o in zip(adds, own, strict=True))  # pyright: ignore


def _specials(
    said: dict[str, Any], config: dict[str, Any], vocabulary: dict[str, int]
) -> dict[str, int]:
    found = {}
    for name, key, number_key in SPECIALS:
        token = said.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        number = config.get(number_key)
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(token, str) and token in vocabulary:
            found[name] = vocabulary[token]
        elif token is None and isinstance(number, int) and number in vocabulary.values():
            found[name] = number
    return found


def _chat_template(folder: Path, said: dict[str, Any]) -> str | None:
    path, template = folder / "chat_template.jinja", said.get("chat_template")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
