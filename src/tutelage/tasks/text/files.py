"""Texts from CSV, JSON Lines and Parquet, row by row: they are never all in memory."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tutelage.errors import DataError, MissingExtra
from tutelage.registry import near_matches
from tutelage.tasks.cells import one_line as _line
from tutelage.tasks.parts import Parts, gather
from tutelage.tasks.several import several_labels
from tutelage.tasks.splits import split_name

LONGEST_TEXT = 100_000  # characters; what lies beyond is cut
_LONGEST_LINE = 1 << 26  # characters of one cell, bytes of one line of JSON
_MOST_EMPTY = 0.01
_AT_ONCE = 256
_TEXT_COLUMNS = ("text", "sentence", "content", "body", "review", "message")
_LABEL_COLUMNS = ("label", "class", "category", "target")
_FORMS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".pq": "parquet",
}  # fmt: skip
ABSENT = object()  # the label of a row where no column holds labels


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """The files of one part (shards in order), their form, and the columns if they are given.

    `bare`: labels are not read, whether there are any or not.
    """

    files: tuple[Path, ...]
    form: str
    name: str
    text_column: str | None = None
    label_column: str | None = None
    bare: bool = False

    def cells(self, file: Path) -> Iterator[tuple[str, Any, Any]]:
        """Yield place, text and label of each row of a file, as they stand there."""
        return _READERS[self.form](file, self)


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was met while reading: rows, and how many were empty, cut, or held NUL bytes."""

    rows: int = 0
    empty: int = 0
    first_empty: str = ""
    cut: int = 0
    nul: int = 0

    def notes(self, source: str) -> tuple[str, ...]:
        """Return the findings in words; raises `DataError` for no rows, or too many empty ones."""
        if self.rows == 0:
            raise DataError(f"{source} holds no texts: check that the path is the right one")
        if self.empty >= _MOST_EMPTY * self.rows and self.empty:
            raise DataError(
                f"{self.first_empty} has no text ({self.empty} of {self.rows} rows are empty): "
                "fill them in or drop them"
            )
        found = (
            (self.empty, "have no text and are left out"),
            (self.cut, f"are longer than {LONGEST_TEXT:,} characters and are cut there"),
            (self.nul, "hold NUL bytes, which are removed"),
        )
        return tuple(f"{n} of {self.rows} texts of {source} {what}" for n, what in found if n)


def find_texts(
    path: str | Path,
    *,
    format: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    bare: bool = False,
) -> Parts[TextSource]:
    """Find the parts that a file or folder holds; raises `DataError` in one line.

    A folder holds files named after their part (`train.csv`, `test-00000-of-00002.parquet`); those
    of one part are read as one, in the order of their names.
    """
    where = Path(path)
    if not where.exists():
        raise DataError(f"{path} does not exist: correct the path (looked in {Path.cwd()})")
    wanted = None if format in ("auto", "folder") else format
    known = sorted(set(_FORMS.values()))
    if wanted is not None and wanted not in known:
        raise DataError(f"texts are not read from '{wanted}'. {near_matches(wanted, known)}")

    def source(files: list[Path]) -> TextSource:
        forms = {wanted or _form(file) for file in files}
        if len(forms) > 1:
            raise DataError(f"{where} holds one part in {' and '.join(sorted(forms))}: keep one")
        name = str(files[0]) + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")
        return TextSource(
            files=tuple(files), form=forms.pop(), name=name, text_column=text_column,
            label_column=label_column, bare=bare,
        )  # fmt: skip

    if not where.is_dir():
        return Parts(train=source([where]))
    found = {part: source(files) for part, files in _files(where, wanted).items()}
    return gather(found, str(where), "texts")


def _form(path: Path) -> str:
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        raise DataError(
            f"{path} is of no known form ('{path.suffix}'): give texts as {', '.join(_FORMS)}, or "
            "a folder of those"
        )
    return form


def _files(folder: Path, wanted: str | None) -> dict[str, list[Path]]:
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name[0] not in "._"]
    files = [f for f in files if f.suffix.lower() in _FORMS]
    files = [f for f in files if wanted in (None, _FORMS[f.suffix.lower()])]
    parts: dict[str, list[Path]] = {}
    for file in files:
        words = [word for word in map(split_name, re.split(r"[-_.]", file.stem)) if word]
        if words:
            parts.setdefault(words[0], []).append(file)
    if not parts and len(files) == 1:
        return {"train": files}
    if not parts:
        raise DataError(
            f"{folder} holds no texts named after their part: name them train.csv and test.csv, "
            "say, or give the path of one file"
        )
    return parts


# --- rows ------------------------------------------------------------------------------------


def rows(source: TextSource, findings: Findings) -> Iterator[tuple[str, Any]]:
    """Read text and label of each row that has a text; `findings` counts what was met.

    The label is `ABSENT` where no column holds labels, or they are not read. NUL bytes are removed,
    halves of surrogate pairs replaced, and long texts cut. Raises `DataError` for a file, row or
    column that cannot be read, `MissingExtra` for Parquet.
    """
    for file in source.files:
        try:
            for where, text, label in source.cells(file):
                row = _cleaned(text, label, f"{file}, {where}", findings)
                if row is not None:
                    yield row
        except PermissionError:
            raise DataError(f"{file} may not be read: change its permissions") from None
        except OSError as error:
            raise DataError(f"{file} cannot be read ({_line(error)}): check the disk") from None


def _cleaned(text: Any, label: Any, where: str, findings: Findings) -> tuple[str, Any] | None:
    findings.rows += 1
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: '{str(text)[:30]}' is no text: name the right data.text_column")
    text = text or ""
    if "\0" in text:
        findings.nul += 1
        text = text.replace("\0", "")
    if len(text) > LONGEST_TEXT:
        findings.cut += 1
        text = text[:LONGEST_TEXT]
    if not text.strip():
        findings.empty += 1
        findings.first_empty = findings.first_empty or where
        return None
    if label is ABSENT:
        return sound(text), label
    if isinstance(label, (list, tuple, dict)):
        raise several_labels(where, label)
    if label is None or label == "" or (isinstance(label, float) and label != label):
        raise DataError(f"{where} has no label: fill it in or drop the row")
    if not isinstance(label, (str, int, float)):
        raise DataError(f"{where}: the label is no number and no name: name data.label_column")
    return sound(text), sound(label)


def sound(cell: Any) -> Any:
    """Return a cell with halves of surrogate pairs replaced."""
    try:
        if isinstance(cell, str):
            cell.encode()
        return cell
    except UnicodeEncodeError:  # half of a surrogate pair, from \ud800 in JSON
        return cell.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_Cells = Iterator[tuple[str, Any, Any]]


def _csv(path: Path, source: TextSource) -> _Cells:
    with path.open(encoding="utf-8-sig", newline="") as file:
        check_encoding(path)
        reader = csv.reader(
            file, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ","
        )
        header = [name.strip() for name in next(csv_rows(path, reader, 1), ["", []])[1]]
        name, label = _columns(path, header, source)
        text, at = header.index(name), None if label is None else header.index(label)
        while block := list(csv_rows(path, reader, _AT_ONCE)):
            for line, row in block:
                if len(row) == len(header):
                    yield f"line {line}", row[text], ABSENT if at is None else row[at].strip()
                elif row:
                    raise DataError(
                        f"{path}, line {line}: {len(row)} cells where the header has "
                        f"{len(header)}: mend the row (a text with a comma needs quotes)"
                    )


def csv_rows(path: Path, reader: Any, count: int) -> Iterator[tuple[int, list[str]]]:
    """Read rows with their last line's number; cells may be long, but not without end."""
    before = csv.field_size_limit(_LONGEST_LINE)
    try:
        yield from [(reader.line_num, row) for row in islice(reader, count)]
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"after line {reader.line_num}", error) from None
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {_line(error)}: mend it (is a quote left open?)"
        ) from None
    finally:
        csv.field_size_limit(before)


def _jsonl(path: Path, source: TextSource) -> _Cells:
    check_encoding(path)
    names: tuple[str, str | None] = ("", None)
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(_LONGEST_LINE):
            number += 1
            if not raw.strip():
                continue
            item = json_object(path, raw, number, file)
            if not names[0] or (names[1] is None and not source.bare and names[0] in item):
                names = _columns(path, list(item), source)  # labels may begin later
            label = ABSENT if names[1] is None else item.get(names[1])
            label = label.strip() if isinstance(label, str) else label
            yield f"line {number}", item.get(names[0]), label


def json_object(path: Path, raw: bytes, number: int, file: IO[bytes]) -> dict[str, Any]:
    """Return one line's object; raises `DataError` for what is none, or over 64 MB."""
    where = f"{path}, line {number}"
    if len(raw) >= _LONGEST_LINE and not raw.endswith(b"\n") and file.peek(1):  # pyright: ignore[reportAttributeAccessIssue]
        raise DataError(f"{where} is longer than {_LONGEST_LINE >> 20} MB: one object a line")
    try:
        item = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"line {number}", error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({_line(error)}): one object a line") from None
    if not isinstance(item, dict):
        raise DataError(f'{where} is no JSON object: write one a line, as {{"text": ...}}')
    return item


def _parquet(path: Path, source: TextSource) -> _Cells:
    pa, pq = open_pyarrow()
    try:
        with pq.ParquetFile(path) as file:
            text, label = _columns(path, file.schema_arrow.names, source)
            kind = file.schema_arrow.field(text).type
            if not re.search("string|null", str(kind)):
                raise DataError(
                    f"{path}: column '{text}' holds {kind}, not text: name the right "
                    "data.text_column"
                )
            row = 0
            names = [text] if label is None else [text, label]
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=names):
                batch.validate(full=True)
                for cells in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
                    yield f"row {row}", cells[0], ABSENT if label is None else cells[1]
                    row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable Parquet ({_line(error)})") from None


_READERS: dict[str, Callable[[Path, TextSource], _Cells]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}


def _columns(path: Path, header: list[str], source: TextSource) -> tuple[str, str | None]:
    """Return the text's column and the label's (or None): as given, else the first usual name."""
    there = ", ".join(map(str, header[:12])) or "(none)"
    twice = sorted({name for name in header if header.count(name) > 1})
    found: list[Any] = []
    for kind, wanted, usual in (
        ("text", source.text_column, _TEXT_COLUMNS),
        ("label", source.label_column, _LABEL_COLUMNS),
    ):
        by_name = {name.lower(): name for name in reversed(header)}
        name = wanted or next((by_name[name] for name in usual if name in by_name), None)
        if kind == "label" and (source.bare or name is None):
            return found[0], None
        if name is None or name not in header:
            missing = f"'{wanted}' for the {kind}s" if wanted else f"of {kind}s"
            raise DataError(
                f"{path} has no column {missing} among {there}: name it with data.{kind}_column"
            )
        if name in twice:
            raise DataError(f"{path} has two columns '{name}': rename one")
        found.append(name)
    return found[0], found[1]


def check_encoding(path: Path) -> None:
    """Raise `DataError` for a file that begins as UTF-16 or UTF-32 do."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path} is UTF-16 or UTF-32: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def not_utf8(path: Path, where: str, error: UnicodeDecodeError) -> DataError:
    """Return what to say of a byte that is not UTF-8."""
    byte = error.object[error.start]
    return DataError(
        f"{path}, {where}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8 "
        "(iconv -f WINDOWS-1252 -t UTF-8, say)"
    )


def declared(source: TextSource) -> tuple[str, ...] | None:
    """Return the names that a Parquet file declares for the numbers of its classes, if it does."""
    if source.form != "parquet":
        return None
    pa, pq = open_pyarrow()
    try:
        schema = pq.read_schema(source.files[0])
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info["info"]["features"]
        names = features[_columns(source.files[0], schema.names, source)[1]]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, pa.ArrowException):
        return None


def open_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet reader; raises `MissingExtra` where they are not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("Reading Parquet", "parquet") from None
    return pa, pq
