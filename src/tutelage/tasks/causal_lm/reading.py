"""Documents of language models: texts, or conversations whose roles are in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.registry import near_matches
from tutelage.tasks.causal_lm.files import LONGEST, find_files, raw_rows, too_long
from tutelage.tasks.text.files import sound

ROLES = ("system", "user", "assistant")
_ANSWERS = ("response", "completion")
_MOST_EMPTY = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text, or a conversation (then `text` is empty); `where` names its place."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    where: str = ""

    def chat(self) -> list[dict[str, str]]:
        """Return the messages as chat templates take them."""
        return [{"role": m.role, "content": m.content} for m in self.messages]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was met while reading: documents, and how many were empty or held NUL bytes."""

    documents: int = 0
    empty: int = 0
    first_empty: str = ""
    nul: int = 0

    def notes(self, source: str) -> tuple[str, ...]:
        """Return the findings in words; raises `DataError` for none, or too many empty ones."""
        if self.documents == 0:
            raise DataError(f"{source} is empty: check that the path is the right one")
        if self.empty >= _MOST_EMPTY * self.documents and self.empty:
            raise DataError(
                f"{self.first_empty} ({self.empty} of {self.documents} documents are empty): fill "
                "them in or drop them"
            )
        found = (
            (self.empty, "are empty and left out"),
            (self.nul, "hold NUL bytes, which are removed"),
        )
        return tuple(
            f"{n} of {self.documents} documents of {source} {what}" for n, what in found if n
        )


def read_documents(path: str | Path) -> list[Document]:
    """Return all documents of a file or folder, whatever their part; raises `DataError`.

    Rows of JSON Lines, Parquet and CSV hold `messages` (a list of role and content), or `prompt`
    and `response`, or `text`; a .txt file is a text, and in pieces where it is the only file.
    """
    findings, files = Findings(), [f for part in find_files(path).values() for f in part]
    found = list(documents(tuple(files), findings))
    findings.notes(str(path))
    return found


def documents(files: tuple[Path, ...], findings: Findings) -> Iterator[Document]:
    """Yield the documents of files that are not empty; `findings` counts what was met.

    NUL bytes in cells are removed, halves of surrogate pairs replaced. Raises `DataError` for a
    row that is no document, a role that is unknown or out of turn, or text without end.
    """
    for where, row in raw_rows(files):
        findings.documents += 1
        before = findings.nul
        found = _document(row, where, findings)
        findings.nul = min(findings.nul, before + 1)
        if found is not None:
            yield found


def _document(row: dict[str, Any], where: str, findings: Findings) -> Document | None:
    answer = next((name for name in _ANSWERS if row.get(name) is not None), None)
    if row.get("messages") is not None:
        return _conversation(_listed(row["messages"], where), where, findings)
    if row.get("prompt") is not None and answer is not None:
        pair = (("user", row["prompt"]), ("assistant", row[answer]))
        turns = [{"role": role, "content": content} for role, content in pair]
        return _conversation(turns, where, findings)
    if "text" in row:
        text = _cleaned(row["text"], where, findings)
        return Document(text=text, where=where) if text.strip() else _empty(where, findings, "text")
    there = ", ".join(map(str, list(row)[:12])) or "(none)"
    raise DataError(
        f"{where} holds neither text, nor messages, nor prompt and response (it has {there}): "
        "rename its columns to one of these"
    )


def _listed(messages: Any, where: str) -> list[Any]:
    if isinstance(messages, str):  # a cell of CSV
        try:
            messages = json.loads(messages) if messages.strip() else []
        except (ValueError, RecursionError):
            raise DataError(f"{where}: the messages are not JSON: write a list of them") from None
    if not isinstance(messages, list):
        raise DataError(f"{where}: messages is no list: give role and content of each turn")
    return messages


def _conversation(turns: list[Any], where: str, findings: Findings) -> Document | None:
    if not turns:
        return _empty(where, findings, "turn")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        at = f"{where}, message {number}"
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise DataError(f"{at} has no role and content: give each turn both")
        role, before = turn["role"], messages[-1].role if messages else None
        _check_role(role, before, at)
        content = _cleaned(turn["content"], at, findings)
        if not content.strip():
            return _empty(at, findings, "content")
        messages.append(Message(role=role, content=content))
    if all(m.role != "assistant" for m in messages):
        raise DataError(f"{where} has no answer: a conversation needs a turn of the assistant")
    return Document(messages=tuple(messages), where=where)


def _check_role(role: Any, before: str | None, where: str) -> None:
    if role not in ROLES:
        raise DataError(
            f"{where}: the role '{role}' is unknown. {near_matches(str(role), list(ROLES))}"
        )
    follows = {None: ("system", "user"), "system": ("user",), "user": ("assistant",)}
    if role not in follows.get(before, ("user",)):
        last = f"follows '{before}'" if before else "comes first"
        raise DataError(
            f"{where}: '{role}' {last}: roles take turns, an optional system, then user and "
            "assistant"
        )


def _cleaned(text: Any, where: str, findings: Findings) -> str:
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: '{str(text)[:30]}' is no text: write it as a string")
    text = text or ""
    if len(text) > LONGEST:
        raise too_long(where)
    if "\0" in text:
        findings.nul += 1
        text = text.replace("\0", "")
    return sound(text)


def _empty(where: str, findings: Findings, what: str) -> None:
    findings.empty += 1
    findings.first_empty = findings.first_empty or f"{where} has no {what}"
