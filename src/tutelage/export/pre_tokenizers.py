"""How a text is cut before byte pairs are merged: tokenizers' own parts, and llama.cpp's names.

A GGUF file stores only the name, so a tokenizer can be exported where llama.cpp knows its way of
cutting. Source: llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_MARKED = r"[^\r\n\p{L}\p{N}]?"
LLAMA3 = rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_SHORT}|{_LETTERS}|\p{{N}}{_REST}"
TEKKEN = (
    rf"{_MARKED}[{_UPPER}]*[{_LOWER}]+|{_MARKED}[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
    + _REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """A way of cutting: digits one by one, then a pattern (None: GPT-2's own).

    `whole_words`: a word that is a token stays whole, whatever the merges say. `starts`: llama.cpp
    puts the first token before a text unless a file says otherwise.
    """

    name: str
    digits: bool = False
    pattern: str | None = None
    composed: bool = False
    whole_words: bool = False
    starts: bool = False

    def parts(self) -> dict[str, Any]:
        """Return it as tokenizer.json has it."""
        found: list[dict[str, Any]] = []
        if self.digits:
            found.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            cut = {"Regex": self.pattern}
            found.append({"type": "Split", "pattern": cut, "behavior": "Isolated", "invert": False})
        own = self.pattern is None
        found.append(
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own}
        )
        return found[0] if len(found) == 1 else {"type": "Sequence", "pretokenizers": found}


# Of equal ways the first is written; the others are read.
PRE_TOKENIZERS = (
    PreTokenizer(name="smollm", digits=True),
    PreTokenizer(name="gpt-2"),
    PreTokenizer(name="llama-bpe", pattern=LLAMA3, whole_words=True, starts=True),
    PreTokenizer(name="llama3", pattern=LLAMA3, whole_words=True, starts=True),
    PreTokenizer(name="smaug-bpe", pattern=LLAMA3),
    PreTokenizer(name="qwen2", pattern=QWEN2, composed=True),
    PreTokenizer(name="deepseek-r1-qwen", pattern=QWEN2, composed=True),
    PreTokenizer(name="tekken", pattern=TEKKEN, whole_words=True, starts=True),
)


def named(name: object) -> PreTokenizer | None:
    """Return the way of cutting that a GGUF file names."""
    return next((p for p in PRE_TOKENIZERS if p.name == name), None)


def recognised(parts: Any, *, composed: bool, whole_words: bool) -> PreTokenizer | None:
    """Return the way of cutting of a tokenizer.json's `pre_tokenizer`; None where unknown."""
    found = _plain(parts)
    same = [p for p in PRE_TOKENIZERS if _plain(p.parts()) == found]
    ranked = sorted(same, key=lambda p: (p.whole_words != whole_words, p.composed != composed))
    return ranked[0] if ranked else None


def _plain(parts: Any) -> list[tuple[Any, ...]]:
    """List what decides the cut; where tokens start in the text does not."""
    if not isinstance(parts, dict):
        return [("none",)]
    kind = parts.get("type")
    if kind == "Sequence":
        return [cut for part in parts.get("pretokenizers", []) for cut in _plain(part)]
    if kind == "Digits":
        return [(kind, parts.get("individual_digits"))]
    if kind == "Split":
        pattern = parts.get("pattern")
        text = pattern.get("Regex") if isinstance(pattern, dict) else None
        return [(kind, text, parts.get("behavior"), parts.get("invert"))]
    if kind == "ByteLevel":
        return [(kind, parts.get("add_prefix_space"), parts.get("use_regex", True))]
    return [(kind,)]
