"""A language model's tokenizer without the tokens that its texts do not use.

Texts of kept tokens become the same tokens as before, numbered anew; all other texts become smaller
pieces, single bytes at the least, and decode to themselves as before. Covers fast tokenizers of
transformers whose `tokenizer.json` can be pruned (BPE, WordPiece, Unigram).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from tutelage.errors import DataError
from tutelage.tasks.text.token_pruning import dumped, opened, without_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CARRIED = (
    "model_max_length", "padding_side", "truncation_side", "model_input_names",
    "clean_up_tokenization_spaces",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrunedTokenizer:
    """A tokenizer of transformers, and which token of the whole one each of its own was."""

    tokenizer: PreTrainedTokenizerBase
    kept: Int[np.ndarray, " v"]

    def __len__(self) -> int:
        return len(self.kept)


def prune_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    ids: Int[np.ndarray, "*n"],
    *,
    most: int | None = None,
) -> PrunedTokenizer:
    """Return the tokenizer with the tokens of `ids` alone, and what they cannot do without.

    Those are all added tokens, single bytes or characters, and what merges on the way to a kept
    token. With `most`, the rarest are left out until so many are left. Raises `DataError` for a
    tokenizer that cannot be pruned, or not to so few.
    """
    text, size = _json_of(tokenizer)
    counts = np.bincount(np.asarray(ids).reshape(-1), minlength=size)
    if len(counts) > size:
        raise DataError(
            f"the texts hold token {len(counts) - 1} and the tokenizer knows {size}: read them "
            "with this tokenizer"
        )
    counts[[i for i in _ends(tokenizer) if i is not None]] = counts.sum() + 1  # before all others
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    found = _with(text, order, size)
    if most is not None and len(found[1]) > most:
        low, high = 0, len(order) - 1  # of these, `low` may be too many still; above `high` are
        while low < high:
            middle = (low + high + 1) // 2
            if len(_with(text, order[:middle], size)[1]) <= most:
                low = middle
            else:
                high = middle - 1
        found = _with(text, order[:low], size)
        if len(found[1]) > most:
            raise DataError(
                f"a vocabulary of {most} tokens is too small: {len(found[1])} stay in any case, "
                "added tokens and single characters. Keep more"
            )
    return PrunedTokenizer(tokenizer=_like(tokenizer, found[0]), kept=found[1])


def changed_texts(
    whole: PreTrainedTokenizerBase, pruned: PrunedTokenizer, texts: Sequence[str]
) -> list[int]:
    """Return which texts the pruned tokenizer reads as other tokens than the whole one."""
    if not texts:
        return []
    before, after = (x(list(texts))["input_ids"] for x in (whole, pruned.tokenizer))
    pairs: Any = zip(before, after, strict=True)
    return [i for i, (a, b) in enumerate(pairs) if a != pruned.kept[b].tolist()]


def _with(text: bytes, order: Int[np.ndarray, " k"], size: int) -> tuple[bytes, np.ndarray]:
    used = np.zeros(size, np.bool_)
    used[order] = True
    found = without_tokens(text, used)
    if found is None:
        kind = json.loads(text)["model"].get("type")
        raise DataError(f"a tokenizer of type {kind} cannot be pruned: keep its whole vocabulary")
    return found


def _json_of(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, int]:
    """Return the `tokenizer.json`, and one more than its last token."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            "the tokenizer is not one of the library tokenizers, so it cannot be pruned: save it "
            "as a fast one, with a tokenizer.json"
        )
    data = json.loads(backend.to_str())
    data["truncation"] = data["padding"] = None
    data.setdefault("added_tokens", [])
    if data["model"].get("dropout"):
        data["model"]["dropout"] = None  # merges left out by chance, meant for training
    return dumped(data), max(tokenizer.get_vocab().values()) + 1


def _ends(tokenizer: PreTrainedTokenizerBase) -> list[int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    return [getattr(tokenizer, name, None) for name in names]


def _like(tokenizer: PreTrainedTokenizerBase, text: bytes) -> PreTrainedTokenizerBase:
    """Return a tokenizer that says the JSON, with this one's special tokens and chat template.

    Its class is the one that takes a `tokenizer.json` as it stands.
    """
    from transformers import PreTrainedTokenizerFast

    carried = {name: getattr(tokenizer, name, None) for name in _CARRIED}
    options = {name: value for name, value in carried.items() if value is not None}
    template = getattr(tokenizer, "chat_template", None)
    made = PreTrainedTokenizerFast(
        tokenizer_object=opened(text), **tokenizer.special_tokens_map, **options
    )
    if template is not None:
        made.chat_template = template
    return made
