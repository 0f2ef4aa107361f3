"""Texts and chats from files of every form, and what is refused of them."""

import csv
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_samples import chat, some_chats, write_lines
from text_samples import refused

from tutelage.errors import DataError
from tutelage.tasks.causal_lm import files, reading
from tutelage.tasks.causal_lm.files import find_files
from tutelage.tasks.causal_lm.reading import Document, Findings, Message, documents, read_documents

ROWS = [{"messages": m} for m in some_chats(3)]
WANTED = [[tuple(turn.values()) for turn in row["messages"]] for row in ROWS]


def turns(found):
    return [[(m.role, m.content) for m in document.messages] for document in found]


def write_csv(path, header, rows, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_messages_are_read_from_every_table(tmp_path):
    assert turns(read_documents(write_lines(tmp_path / "a.jsonl", ROWS))) == WANTED
    assert turns(read_documents(write_parquet(tmp_path / "a.parquet", ROWS))) == WANTED
    cells = [[json.dumps(row["messages"])] for row in ROWS]
    assert turns(read_documents(write_csv(tmp_path / "a.csv", ["messages"], cells))) == WANTED


@pytest.mark.parametrize("answer", ["response", "completion"])
def test_prompt_and_response_are_a_conversation(tmp_path, answer):
    rows = [{"id": 1, "prompt": "why", answer: "so"}]
    wanted = [[("user", "why"), ("assistant", "so")]]
    assert turns(read_documents(write_lines(tmp_path / "a.jsonl", rows))) == wanted
    assert turns(read_documents(write_parquet(tmp_path / "a.parquet", rows))) == wanted
    assert turns(read_documents(write_csv(tmp_path / "a.csv", ["prompt", answer],
                                          [["why", "so"]]))) == wanted  # fmt: skip


def test_texts_and_chats_may_stand_in_one_file(tmp_path):
    rows = [{"text": "a film"}, {"messages": chat("why", "so"), "text": None}]
    found = read_documents(write_lines(tmp_path / "a.jsonl", rows))
    assert [d.text for d in found] == ["a film", ""] and turns(found)[1] == [
        ("user", "why"), ("assistant", "so")]  # fmt: skip
    assert found[0].where == f"{tmp_path / 'a.jsonl'}, line 1"
    assert found[1].chat() == chat("why", "so")


def test_a_folder_of_text_files_holds_one_document_each(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("ein\r\nFilm", newline="")
    (tmp_path / "deep" / "a.txt").write_text("\ufeffé", encoding="utf-8")
    (tmp_path / ".c.txt").write_text("hidden")
    assert [d.text for d in read_documents(tmp_path)] == ["ein\r\nFilm", "é"]


def test_the_only_text_file_comes_in_pieces_that_end_where_a_paragraph_does(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SOLE_PIECE", 100)
    monkeypatch.setattr(files, "_BLOCK", 7)  # in the middle of letters, too
    paragraphs = [f"{'é' * 30} {i}\n{'x' * 20}\n\n" for i in range(9)]
    path = tmp_path / "book.txt"
    path.write_text("".join(paragraphs), encoding="utf-8")
    found = [d.text for d in read_documents(path)]
    assert found == paragraphs
    path.write_text("a line\n" * 100)  # no paragraphs: the ends of lines
    found = [d.text for d in read_documents(path)]
    assert "".join(found) == "a line\n" * 100
    assert len(found) > 6 and all(piece.endswith("line\n") for piece in found)


def test_parts_are_found_by_name(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", "other.jsonl"):
        write_lines(tmp_path / "tables" / name, ROWS)
    names = {k: [f.name for f in v] for k, v in find_files(tmp_path / "tables").items()}
    assert names == {"train": ["train-0.jsonl", "train-1.jsonl"], "test": ["test.jsonl"]}
    for name in ("train/a.txt", "test/b.txt", "test/my-train-journey.txt"):
        write_lines(tmp_path / "texts" / name, ROWS)
    names = {k: [f.name for f in v] for k, v in find_files(tmp_path / "texts").items()}
    assert names == {"train": ["a.txt"], "test": ["b.txt", "my-train-journey.txt"]}
    write_lines(tmp_path / "lone" / "test.jsonl", ROWS)
    assert list(find_files(tmp_path / "lone")) == ["train"]


def test_nul_bytes_in_cells_are_removed_and_counted_once_a_document(tmp_path):
    rows = [{"messages": chat("w\0h\0y", "s\0o")}, *ROWS]
    findings = Findings()
    found = list(documents((write_lines(tmp_path / "a.jsonl", rows),), findings))
    assert turns(found)[0] == [("user", "why"), ("assistant", "so")]
    assert findings.notes("a") == ("1 of 4 documents of a hold NUL bytes, which are removed",)


def test_halves_of_surrogate_pairs_are_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud800 b"}\n')
    assert read_documents(path)[0].text == "a \ufffd b"


def test_few_empty_documents_are_left_out(tmp_path):
    rows = [{"messages": []}, *({"text": f"film {i}"} for i in range(150))]
    findings = Findings()
    assert len(list(documents((write_lines(tmp_path / "a.jsonl", rows),), findings))) == 150
    assert findings.notes("a") == ("1 of 151 documents of a are empty and left out",)


BAD_ROWS = {
    "no turn (1 of 1": {"messages": []},
    "message 2 has no content (1 of 1": {"messages": chat("why", "  ")},
    "has no text (1 of 1": {"text": " "},
    "message 2 has no content": {"prompt": "why", "response": ""},
    "'user' follows 'user'": {"messages": [*chat("why"), *chat("why")]},
    "'assistant' comes first": {"messages": chat("why", "so")[1:]},
    "'user' follows 'assistant'": None,
    "'system' follows 'user'": {"messages": [*chat("why"), {"role": "system", "content": "be"}]},
    "Did you mean 'assistant'?": {"messages": [*chat("a"), {"role": "asistant", "content": "b"}]},
    "the role 'tool' is unknown": {"messages": [{"role": "tool", "content": "b"}]},
    "has no answer": {"messages": chat("why")},
    "message 1 has no role and content": {"messages": [{"from": "human", "value": "why"}]},
    "messages is no list": {"messages": {"role": "user"}},
    "are not JSON": {"messages": "[{"},
    "it has question, answer": {"question": "why", "answer": "so"},
    "'5' is no text": {"text": 5},
    "'['why']' is no text": {"messages": chat(["why"], "so")},
}


@pytest.mark.parametrize("what", [k for k, row in BAD_ROWS.items() if row])
def test_bad_rows_are_refused_by_their_line(tmp_path, what):
    path = write_lines(tmp_path / "a.jsonl", [BAD_ROWS[what]])
    assert f"{path}, line 1" in refused(what, read_documents, path)


def test_bad_files_are_refused(tmp_path):
    empty = tmp_path / "a.jsonl"
    empty.write_text("")
    refused(f"{empty} is empty", read_documents, empty)
    empty = tmp_path / "a.txt"
    empty.write_text("\n")
    refused(f"{empty} has no text", read_documents, empty)
    refused("does not exist", read_documents, tmp_path / "none.jsonl")
    refused("of no known form ('.xml')", read_documents, write_lines(tmp_path / "a.xml", ROWS))
    (tmp_path / "nothing").mkdir()
    refused("holds no texts and no chats", read_documents, tmp_path / "nothing")
    nul = tmp_path / "nul.txt"
    nul.write_bytes(b"f\0i\0l\0m\0")
    refused("NUL bytes", read_documents, nul)
    for suffix in (".txt", ".jsonl", ".csv"):
        latin = tmp_path / f"latin{suffix}"
        latin.write_bytes('{"text": "é"}\n'.encode("latin-1"))
        refused("0xe9 is not UTF-8", read_documents, latin)
        wide = tmp_path / f"wide{suffix}"
        wide.write_bytes('{"text": "é"}\n'.encode("utf-16"))
        refused("UTF-16", read_documents, wide)
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1 nothing")
    refused("not readable Parquet", read_documents, broken)
    refused("it has q", read_documents, write_parquet(tmp_path / "q.parquet", [{"q": "why"}]))
    path = write_csv(tmp_path / "cells.csv", ["prompt", "response"], [["why"]])
    refused("line 2: 1 cells where the header has 2", read_documents, path)
    write_lines(tmp_path / "parts" / "test.jsonl", ROWS)
    write_lines(tmp_path / "parts" / "validation.jsonl", ROWS)
    refused("has no 'train' part", read_documents, tmp_path / "parts")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    path.chmod(0)
    refused("may not be read", read_documents, path)


def test_a_line_of_10_mb_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    line = "x" * (10 << 20)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "film"}) + "\n" + json.dumps({"text": line}) + "\n")
    refused(f"{path}, line 2 is longer than 8 MB", read_documents, path)
    path = tmp_path / "a.txt"
    path.write_text("film\n" + line)
    refused(f"{path}: a line is longer than 8 MB", read_documents, path)
    monkeypatch.setattr(reading, "LONGEST", 99)
    path = write_csv(tmp_path / "a.csv", ["text"], [["x" * 99], ["x" * 100]])
    refused(f"{path}, line 3 is longer than", read_documents, path)


def test_documents_are_read_one_by_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "film"}\nno json\n')
    found = documents((path,), Findings())
    assert next(found) == Document(text="film", where=f"{path}, line 1")
    with pytest.raises(DataError, match="is not JSON"):
        next(found)


def test_messages_are_values():
    assert Message(role="user", content="a") == Message(role="user", content="a")
