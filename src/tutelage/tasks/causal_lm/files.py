"""Rows of files that hold texts or chats, one by one: no file is ever whole in memory."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.tasks.cells import one_line
from tutelage.tasks.splits import split_name
from tutelage.tasks.text.files import (
    check_encoding,
    csv_rows,
    json_object,
    not_utf8,
    open_pyarrow,
)

LONGEST = 1 << 23  # bytes of a line of JSON, characters of a cell or of a line of text
_PIECE = 1 << 20  # characters of a .txt file that are one document, at most
_SOLE_PIECE = 1 << 14  # the same where there is no other file: a split needs several
_BLOCK = 1 << 18  # bytes read at once
_AT_ONCE = 256
_FORMS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".csv": "csv",
    ".tsv": "csv", ".txt": "txt",
}  # fmt: skip

Row = tuple[str, dict[str, Any]]


def find_files(path: str | Path) -> dict[str, tuple[Path, ...]]:
    """Return the files of each part that a file or folder holds; a single, unnamed set is `train`.

    A folder's tables may be named after their part (`train.jsonl`, `test-00000-of-00002.parquet`),
    its texts lie in folders named so, or are named so alone (`test.txt`). Raises `DataError`.
    """
    where = Path(path)
    if not where.exists():
        raise DataError(f"{path} does not exist: correct the path (looked in {Path.cwd()})")
    if not where.is_dir():
        _form(where)
        return {"train": (where,)}
    files = [f for f in sorted(where.rglob("*")) if f.is_file() and f.suffix.lower() in _FORMS]
    files = [f for f in files if not any(p[0] in "._" for p in f.relative_to(where).parts)]
    if not files:
        raise DataError(f"{where} holds no texts and no chats: put {', '.join(_FORMS)} into it")
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part(file, where) or "", []).append(file)
    unnamed = parts.pop("", [])
    if not parts:
        return {"train": tuple(unnamed)}
    if len(parts) == 1 and not unnamed:
        return {"train": tuple(next(iter(parts.values())))}
    if "train" not in parts:
        parts["train"] = unnamed
    if not parts["train"]:
        raise DataError(
            f"{where} has no 'train' part, only {', '.join(sorted(parts))}: give the path of the "
            "training documents themselves"
        )
    return {part: tuple(found) for part, found in parts.items()}


def _form(path: Path) -> str:
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        raise DataError(
            f"{path} is of no known form ('{path.suffix}'): give texts or chats as "
            f"{', '.join(_FORMS)}, or a folder of those"
        )
    return form


def _part(file: Path, root: Path) -> str | None:
    above = file.relative_to(root).parts[:-1]
    named = split_name(above[0]) if above else None
    if named or _form(file) == "txt":
        return named or split_name(file.stem)
    words = map(split_name, re.split(r"[-_.]", file.stem))
    return next((word for word in words if word), None)


def raw_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    """Yield the place of each row and its cells by name; a text file's are `text` alone.

    Raises `DataError` for a file or row that cannot be read, `MissingExtra` for Parquet.
    """
    for file in files:
        try:
            if _form(file) == "txt":
                size = _SOLE_PIECE if len(files) == 1 else _PIECE
                rows = _text(file, size)
            else:
                rows = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[_form(file)](file)
            for where, row in rows:
                yield f"{file}, {where}" if where else str(file), row
        except PermissionError:
            raise DataError(f"{file} may not be read: change its permissions") from None
        except OSError as error:
            raise DataError(f"{file} cannot be read ({one_line(error)}): check the disk") from None


def too_long(where: str, what: str = "one document a row") -> DataError:
    """Return what to say of a row or line that is longer than any document should be."""
    return DataError(
        f"{where} is longer than {LONGEST >> 20} MB: write {what}, and long texts as .txt files"
    )


def _jsonl(path: Path) -> Iterator[Row]:
    check_encoding(path)
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LONGEST + 1):
            number += 1
            if len(raw) > LONGEST:
                raise too_long(f"{path}, line {number}", "one JSON object a line")
            if raw.strip():
                yield f"line {number}", json_object(path, raw, number, file)


def _csv(path: Path) -> Iterator[Row]:
    check_encoding(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        header = [name.strip() for name in next(csv_rows(path, reader, 1), (1, []))[1]]
        while block := list(csv_rows(path, reader, _AT_ONCE)):
            for line, row in block:
                if len(row) == len(header):
                    yield f"line {line}", dict(zip(header, row, strict=True))
                elif row:
                    raise DataError(
                        f"{path}, line {line}: {len(row)} cells where the header has "
                        f"{len(header)}: mend the row (a text with a comma needs quotes)"
                    )


def _parquet(path: Path) -> Iterator[Row]:
    pa, pq = open_pyarrow()
    wanted = ("text", "messages", "prompt", "response", "completion")
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            names, row = [name for name in wanted if name in there], 0
            if not names and file.metadata.num_rows:
                yield "row 0", dict.fromkeys(there)
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=names) if names else ():
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    yield f"row {row}", cells
                    row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable Parquet ({one_line(error)})") from None


def _text(path: Path, size: int) -> Iterator[Row]:
    """Yield a file as one document, or in pieces of about `size` that end where a line does."""
    check_encoding(path)
    decoder, held, number = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    with path.open("rb") as file:
        while True:
            raw = file.read(_BLOCK)
            try:
                held += decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise not_utf8(path, f"before byte {file.tell()}", error) from None
            if "\0" in held:
                raise DataError(f"{path} holds NUL bytes: is it a text? Save it as UTF-8")
            while len(held) > size and (end := _line_end(held, size)):
                number += 1
                yield f"piece {number}", {"text": held[:end]}
                held = held[end:]
            if len(held) > LONGEST + size:
                raise too_long(f"{path}: a line", "lines")
            if not raw:
                break
    if held.strip() or not number:
        yield (f"piece {number + 1}" if number else ""), {"text": held}


def _line_end(text: str, size: int) -> int:
    """Return where to part a text: behind the last empty line within `size`, else a line's end."""
    for mark in ("\n\n", "\n"):
        found = text.rfind(mark, size // 2, size)
        if found >= 0:
            return found + len(mark)
    return text.find("\n", size) + 1
