"""The tokenizer of a GGUF file as a transformers one: the way back from `export.gguf_tokenizer`.

transformers' own reader knows fewer ways of cutting a text (SmolLM's digits one by one, for
instance), so the tokenizer is put together here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tutelage.errors import CorruptFileError, TeacherError
from tutelage.export.gguf_tokenizer import CONTROL, SPACE, UNKNOWN, UNUSED, USER
from tutelage.export.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, named
from tutelage.passes import reason
from tutelage.teach.gguf_header import GgufHeader, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_KINDS = ("gpt2", "llama")


def tokenizer_in(header: GgufHeader, rows: int, longest: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `rows` tokens, for texts of up to `longest` tokens.

    Raises `TeacherError` for a kind that is not known here, `CorruptFileError` for fields that do
    not fit one another.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    fields = _Fields(header, rows)
    data = _byte_level(fields) if fields.kind == "gpt2" else _fallback(fields)
    first = fields.role("bos") if fields.adds("bos") else None
    last = fields.role("eos") if fields.adds("eos") else None
    data |= {"added_tokens": fields.added(), "post_processor": _between(fields, first, last)}
    try:
        made = Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # tokenizers raises its own kind of Exception
        raise fields.damaged(reason(error)) from error
    template = header.metadata.get("tokenizer.chat_template")
    roles = {key: fields.role(name) for key, name in _ROLES.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{key: fields.tokens[number] for key, number in roles.items() if number is not None},
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
    )


class _Fields:
    """The file's fields, checked against one another."""

    def __init__(self, header: GgufHeader, rows: int) -> None:
        self._header = header
        self.kind = self.get("model")
        if self.kind not in _KINDS:
            raise TeacherError(
                f"'{header.path}' has a tokenizer of kind '{shown(self.kind)}', which is not "
                f"known here. Use a file with one of {', '.join(_KINDS)}"
            )
        self.tokens = self._list("tokens", str, rows)
        self.types = self._list("token_type", int, rows)
        self.vocabulary = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocabulary) != rows:
            raise self.damaged("two tokens are the same")

    def get(self, key: str) -> Any:
        return self._header.metadata.get(f"tokenizer.ggml.{key}")

    def _list(self, key: str, kind: type, count: int | None) -> list[Any]:
        found = self.get(key)
        if not isinstance(found, list) or not all(isinstance(x, kind) for x in found):
            raise self.damaged(f"it has no {key}")
        if count is not None and len(found) != count:
            raise self.damaged(f"{len(found)} {key} for {count} rows of the embedding")
        return found

    def role(self, name: str) -> int | None:
        number = self.get(f"{name}_token_id")
        return number if isinstance(number, int) and 0 <= number < len(self.tokens) else None

    def adds(self, name: str) -> bool:
        said = self.get(f"add_{name}_token")
        if isinstance(said, bool):
            return said
        pre = named(self.get("pre"))
        return name == "bos" and (self.kind == "llama" or (pre is not None and pre.starts))

    def added(self) -> list[dict[str, Any]]:
        """Return the tokens that are never cut."""
        kinds = (CONTROL, USER, UNKNOWN) if self.kind == "llama" else (CONTROL, USER)
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": i, "content": token, "special": self.types[i] != USER, **plain}
            for i, token in enumerate(self.tokens)
            if self.types[i] in kinds
        ]

    def words(self) -> dict[str, int]:
        """Return the tokens that a text can be cut into."""
        return {t: i for t, i in self.vocabulary.items() if self.types[i] != UNUSED}

    def pairs(self) -> list[tuple[str, str]]:
        found = [tuple(pair.split(" ", 1)) for pair in self._list("merges", str, None)]
        words = self.vocabulary
        for pair in found:
            if len(pair) != 2 or any(x not in words for x in (*pair, "".join(pair))):
                raise self.damaged(f"the merge '{shown(' '.join(pair))}' is not of its tokens")
        return found  # pyright: ignore[reportReturnType]

    def scores(self) -> list[float]:
        return self._list("scores", float, len(self.tokens))

    def pre(self) -> PreTokenizer:
        name = self.get("pre")
        found = named(name)
        if found is None:
            known = ", ".join(p.name for p in PRE_TOKENIZERS)
            raise TeacherError(
                f"'{self._header.path}' cuts texts as '{shown(name)}', which is not known here. "
                f"Use a file with one of {known}, or the network's Hugging Face folder"
            )
        return found

    def damaged(self, why: str) -> CorruptFileError:
        return CorruptFileError(
            f"the tokenizer in '{self._header.path}' is damaged: {why}. Copy the file again from "
            "where it came from"
        )


def _byte_level(fields: _Fields) -> dict[str, Any]:
    pre = fields.pre()
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    model = {"type": "BPE", "vocab": fields.words(), "merges": fields.pairs()}
    return {
        "normalizer": {"type": "NFC"} if pre.composed else None,
        "pre_tokenizer": pre.parts(),
        "decoder": {**decoder, "use_regex": True},
        "model": {**model, "ignore_merges": pre.whole_words},
    }


def _fallback(fields: _Fields) -> dict[str, Any]:
    """Return the parts of a tokenizer that says unknown letters in bytes, as Llama 2's does."""
    said = fields.get("add_space_prefix")
    prefix = said if isinstance(said, bool) else True
    parts: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ]
    if prefix:
        parts.insert(0, {"type": "Prepend", "prepend": SPACE})
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next(
        (t for t, k in zip(fields.tokens, fields.types, strict=True) if k == UNKNOWN), None
    )
    words = fields.words()
    model = {"type": "BPE", "vocab": words, "merges": _merges(words, fields.scores())}
    return {
        "normalizer": {"type": "Sequence", "normalizers": parts},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {**model, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _merges(words: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return every pair that makes a token, best scores first."""
    found = []
    for token, number in words.items():
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(a, b) for a, b in cuts if a in words and b in words]
        found += [(-scores[number], words[a], words[b], a, b) for a, b in pairs]
    return [(a, b) for *_, a, b in sorted(found)]


def _between(fields: _Fields, first: int | None, last: int | None) -> dict[str, Any] | None:
    if first is None and last is None:
        return None
    ends = {n: fields.tokens[n] for n in (first, last) if n is not None}

    def special(number: int | None, side: int) -> list[dict[str, Any]]:
        return [] if number is None else [{"SpecialToken": {"id": ends[number], "type_id": side}}]

    def text(name: str, side: int) -> list[dict[str, Any]]:
        body = [{"Sequence": {"id": name, "type_id": side}}]
        return special(first, side) + body + special(last, side)

    named_ = {t: {"id": t, "ids": [n], "tokens": [t]} for n, t in ends.items()}
    single, pair = text("A", 0), text("A", 0) + text("B", 1)
    return {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named_,
    }  # fmt: skip
