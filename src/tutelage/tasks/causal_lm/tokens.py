"""Documents as tokens, and which of them are learned: all of a text's, the answers' of a chat's.

A chat is written by the tokenizer's own template. Where the template marks what the assistant says,
the marks are taken. Else the conversation is also written as far as each answer's beginning and
end: where those tokens are a prefix of the whole's, the answer lies between. Some templates write
an earlier turn otherwise than the last one, or ask for more than they write: there the answer ends
with the token that ends the last one, begins where the two part, and must say what it should. Where
that fails for an answer, the whole conversation is learned, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tutelage.errors import DataError
from tutelage.tasks.causal_lm.reading import Document
from tutelage.tasks.cells import one_line

Spans = list[tuple[int, int]]
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE = "26 Jul 2024"  # what templates that write a date write: the same tokens every day
_FIXED_DATE = "{%- macro strftime_now(format) %}" + _DATE + "{% endmacro %}"
_AT_ONCE, _MOST_CHARACTERS = 128, 1 << 20


class Writer:
    """Writes documents as tokens with one tokenizer; `unclear` counts chats learned whole.

    `end` is the token that parts documents, `start` are those before a text.

    Raises `DataError` for a tokenizer without an end token, and for chats where it has no template,
    or one that refuses them.
    """

    def __init__(self, tokenizer: Any, *, answers_only: bool = True) -> None:
        self.tokenizer, self.answers_only = tokenizer, answers_only
        self.unclear = self.chats = 0
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer names no end token, which parts documents: set eos_token in its "
                "tokenizer_config.json"
            )
        self.end = int(tokenizer.eos_token_id)
        self.start = self._before_texts()
        self._special = {
            *tokenizer.all_special_ids,
            *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special),
        }
        self._given_template: str | None = None

    def write(
        self, documents: Iterable[Document]
    ) -> Iterator[tuple[Document, Int[np.ndarray, " t"], Bool[np.ndarray, " t"]]]:
        """Yield each document with its ids, the end token last, and which of them are learned."""
        for block in _blocks(documents):
            chats = self._chats([d for d in block if d.messages])
            texts = self._texts([d.text for d in block if not d.messages])
            for document in block:
                ids, learned = next(chats if document.messages else texts)
                learned[:1] = False  # nothing stands before it
                yield document, ids, learned

    def prompt(self, document: Document) -> list[int]:
        """Return the ids of a text as a beginning, or of a chat up to where the answer begins."""
        if not document.messages:
            return [*self.start, *self._ids([document.text])[0]]
        return self._ids(self._rendered([document.chat()], [document.where], ask=True))[0]

    def ends(self) -> set[int]:
        """Return the tokens that end an answer: the end token, and what ends a chat's turn."""
        if self.tokenizer.chat_template is None:
            return {self.end}
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        whole, before = self._ids(
            self._rendered([turns], ["a chat"]) + self._rendered([turns[:1]], ["a chat"], ask=True)
        )
        special = [i for i in whole[len(before) :] if i in self._special]
        return {self.end, *special[:1]}

    # --- texts -------------------------------------------------------------------------------

    def _before_texts(self) -> list[int]:
        """Return what the tokenizer puts before a text, such as a token for the beginning."""
        bare = self._ids(["a"])[0]
        around = list(self.tokenizer("a", verbose=False)["input_ids"])
        for start in range(len(around) - len(bare) + 1):
            if around[start : start + len(bare)] == bare:
                return around[:start]
        return []

    def _texts(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids in self._ids(texts):
            whole = np.array([*self.start, *ids, self.end], np.int32)
            yield whole, np.ones(len(whole), np.bool_)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.tokenizer(
            texts, add_special_tokens=False, padding=False, truncation=False, verbose=False,
            return_attention_mask=False,
        )  # fmt: skip
        return found["input_ids"]

    # --- chats -------------------------------------------------------------------------------

    @property
    def _template(self) -> str:
        if self._given_template is None:
            try:
                found = str(self.tokenizer.get_chat_template())
            except ValueError:
                raise DataError(
                    "the data holds chats, but the tokenizer has no chat template: take the "
                    "tokenizer of a model that was tuned on chats, or give texts"
                ) from None
            dated = "strftime_now" in found
            self._given_template = _FIXED_DATE + found if dated else found
        return self._given_template

    def _rendered(
        self, chats: list[list[dict[str, str]]], places: Sequence[str], *, ask: bool = False
    ) -> list[str]:
        found = []
        for chat, where in zip(chats, places, strict=True):
            try:
                found.append(self.tokenizer.apply_chat_template(
                    chat, tokenize=False, chat_template=self._template, date_string=_DATE,
                    add_generation_prompt=ask,
                ))  # fmt: skip
            except DataError:
                raise
            except Exception as error:  # a template can raise anything
                raise DataError(
                    f"{where}: the tokenizer's chat template refuses this conversation "
                    f"({one_line(error)}): change it to what the model was tuned on"
                ) from None
        return found

    def _chats(self, documents: list[Document]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not documents:
            return
        chats, places = [d.chat() for d in documents], [d.where for d in documents]
        whole = self._ids(self._rendered(chats, places))
        marked: list[Spans | None] = [None] * len(chats)
        if self.answers_only:
            marked = self._marked(chats, whole)
        if self.answers_only and None in marked:
            marked = self._between(chats, places, whole, marked)
        for ids, spans in zip(whole, marked, strict=True):
            self.chats += 1
            yield self._masked(ids, spans)

    def _masked(self, ids: list[int], spans: Spans | None) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and which are learned; an end token is added unless one ends them already."""
        self.unclear += spans is None and self.answers_only
        last = self._without_blank(ids, (0, len(ids)))[1]
        tail = [] if ids[last - 1] == self.end else [self.end]
        learned = np.full(len(ids) + len(tail), spans is None, np.bool_)
        for start, end in spans or ():
            learned[start:end] = True
        if spans and tail:  # where the template ends no turn, the end token does
            learned[-1] = spans[-1][1] == len(ids) and ids[-1] not in self._special
        return np.array(ids + tail, np.int32), learned

    def _marked(
        self, chats: list[list[dict[str, str]]], whole: list[list[int]]
    ) -> list[Spans | None]:
        """Return the answers' spans by the template's own marks; None where it has none."""
        if _MARKS.search(self._template) is None:
            return [None] * len(chats)
        try:
            found = self.tokenizer.apply_chat_template(
                chats, chat_template=self._template, date_string=_DATE, return_dict=True,
                return_assistant_tokens_mask=True,
            )  # fmt: skip
        except Exception:  # marks around nothing: the library trips over them
            return [None] * len(chats)
        spans: list[Spans | None] = []
        for chat, ids, same, mask in zip(
            chats, whole, found["input_ids"], found["assistant_masks"], strict=True
        ):
            edges = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
            runs = list(zip(edges[::2], edges[1::2], strict=True))
            good = ids == list(same) and len(runs) == _answers(chat)
            spans.append([self._with_end(ids, run) for run in runs] if good else None)
        return spans

    def _between(
        self, chats: list[list[dict[str, str]]], places: list[str], whole: list[list[int]],
        marked: list[Spans | None],
    ) -> list[Spans | None]:  # fmt: skip
        """Return the answers' spans by writing each conversation as far as each of its answers."""
        found, asked = list(marked), []
        todo = [
            (i, n) for i, spans in enumerate(marked) if spans is None
            for n, turn in enumerate(chats[i]) if turn["role"] == "assistant"
        ]  # fmt: skip
        for i, n in todo:
            asked += self._rendered([chats[i][:n]], places[i : i + 1], ask=True)
            if n + 1 < len(chats[i]):
                asked += self._rendered([chats[i][: n + 1]], places[i : i + 1])
        ids = iter(self._ids(asked))
        answers: dict[int, list[tuple[str, list[int], list[int]]]] = {i: [] for i, _ in todo}
        for i, n in todo:
            before, last = next(ids), n + 1 == len(chats[i])
            answers[i].append((chats[i][n]["content"], before, whole[i] if last else next(ids)))
        for i, own in answers.items():
            found[i] = self._spans(whole[i], own)
        return found

    def _spans(
        self, whole: list[int], answers: list[tuple[str, list[int], list[int]]]
    ) -> Spans | None:
        spans: Spans = []
        for content, before, after in answers:
            start, end = _shared(whole, before), len(after)
            certain = start == len(before)
            if end <= start or whole[:end] != after:
                end, certain = self._found_end(whole, start, after), False
            if end is None or not (certain or self._says(whole[start:end], content)):
                return None
            spans.append(self._without_blank(whole, (start, end)))
        return spans

    def _found_end(self, whole: list[int], start: int, after: list[int]) -> int | None:
        """Return where an answer ends, by the token that ends `after`."""
        special = [i for i in after[start:] if i in self._special]
        if not special or special[-1] not in whole[start:]:
            return None
        return whole.index(special[-1], start) + 1

    def _says(self, ids: list[int], content: str) -> bool:
        """Say whether an answer begins with what it should say, white space apart."""
        said = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return "".join(said.split()).startswith("".join(content.split()))

    def _with_end(self, ids: list[int], span: tuple[int, int]) -> tuple[int, int]:
        """Return a span with the token that ends the turn, where it stands just behind."""
        start, end = self._without_blank(ids, span)
        behind = end < len(ids) and ids[end] in self._special
        return start, end + (behind and ids[end - 1] not in self._special)

    def _without_blank(self, ids: list[int], span: tuple[int, int]) -> tuple[int, int]:
        """Return a span without white space behind its last special token: no one generates it."""
        start, end = span
        last = next((i for i in range(end - 1, start - 1, -1) if ids[i] in self._special), None)
        blank = last is not None and self._is_blank(ids[last + 1 : end])
        return start, last + 1 if blank and last is not None else end

    def _is_blank(self, ids: list[int]) -> bool:
        return not self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


def _shared(one: list[int], other: list[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _answers(chat: list[dict[str, str]]) -> int:
    return sum(turn["role"] == "assistant" for turn in chat)


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in lists that are neither many nor, all together, long."""
    block: list[Document] = []
    held = 0
    for document in documents:
        block.append(document)
        held += len(document.text) + sum(len(m.content) for m in document.messages)
        if len(block) == _AT_ONCE or held > _MOST_CHARACTERS:
            yield block
            block, held = [], 0
    if block:
        yield block
