"""Texts: readers, bad input, splits, and a pruned vocabulary that says the same."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import csv
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_samples import (
    WORDS,
    WRITERS,
    inputs,
    read,
    refused,
    some_labels,
    some_texts,
    wordpiece,
    write_csv,
    write_jsonl,
    write_parquet,
)
from tokenizers import Tokenizer, models

from tutelage.errors import MissingExtra, RecipeError
from tutelage.tasks import find_task
from tutelage.tasks.text.files import ABSENT, LONGEST_TEXT
from tutelage.tasks.text.task import Texts, load
from tutelage.tasks.text.vocabulary import open_vocabulary, prune

TASK: Any = find_task("text")


@pytest.fixture
def model(tmp_path):
    return wordpiece(tmp_path / "model")


def shipped(data):
    return Tokenizer.from_buffer(TASK.beside(data)["tokenizer.json"])


# --- readers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_form_reads_the_same(tmp_path, suffix, model):
    texts = [*some_texts(40), 'two\nlines, a "quote"', "é 漢 😀 the film"]
    path = WRITERS[suffix](tmp_path / f"x{suffix}", texts, some_labels(42))
    found, findings = read(path)
    assert [text for text, _ in found] == texts and findings.rows == 42
    data = load(path, tokenizer=model)
    assert len(data.train) + len(data.validation) + len(data.test) == 42
    assert data.train.classes == ("no", "yes")
    reference = load(write_csv(tmp_path / "y.csv", texts, some_labels(42)), tokenizer=model)
    for split in ("train", "validation", "test"):
        assert getattr(data, split).fingerprint == getattr(reference, split).fingerprint


def test_folder_with_parts_of_several_files(tmp_path, model):
    for part, n, seed in (("train", 60, 0), ("val", 20, 1), ("test", 20, 2)):
        for shard in range(2):
            texts = some_texts(n, seed=10 * seed + shard)
            name = f"{part}-0000{shard}-of-00002.parquet"
            write_parquet(tmp_path / name, texts, some_labels(n))
    data = load(tmp_path, tokenizer=model)
    assert (len(data.train), len(data.validation), len(data.test)) == (120, 40, 40)
    again = load(tmp_path, tmp_path / "test-00001-of-00002.parquet", tokenizer=model)
    assert len(again.test) == 20 and again.train.fingerprint == data.train.fingerprint
    write_csv(tmp_path / "train.csv", ["a"], ["b"])
    refused("one part in csv and parquet", load, tmp_path, tokenizer=model)
    (tmp_path / "sub").mkdir()
    refused("no texts named after their part", load, tmp_path / "sub", tokenizer=model)


def test_columns_are_found_or_named(tmp_path):
    odd = write_csv(tmp_path / "x.csv", ["one"], ["a"], ("Review", " Category"))
    assert read(odd)[0] == [("one", "a")]
    other = write_csv(tmp_path / "y.csv", ["one"], ["a"], ("words", "kind"))
    assert read(other, text_column="words", label_column="kind")[0] == [("one", "a")]
    refused("no column of texts among words, kind", read, other)
    assert read(other, text_column="words")[0] == [("one", ABSENT)]
    refused("no column 'sort' for the labels", read, other, text_column="words",
            label_column="sort")  # fmt: skip
    twice = write_csv(tmp_path / "z.csv", ["one"], ["a"], ("text", "text"))
    refused("two columns 'text'", read, twice, label_column="text")


def test_wrong_encodings_are_named(tmp_path):
    many = ["plain"] * 5000 + ["café"]
    latin = write_csv(tmp_path / "l.csv", many, ["a"] * 5001, encoding="latin-1")
    assert "after line" in refused("byte 0xe9 is not UTF-8", read, latin)
    wide = write_csv(tmp_path / "w.csv", ["café"], ["a"], encoding="utf-16")
    refused("UTF-16", read, wide)
    (tmp_path / "l.jsonl").write_bytes('{"text": "café", "label": 1}'.encode("latin-1"))
    refused("line 1: byte 0xe9 is not UTF-8", read, tmp_path / "l.jsonl")
    marked = write_csv(tmp_path / "b.csv", ["café"], ["a"], encoding="utf-8-sig")
    assert read(marked)[0] == [("café", "a")]


@pytest.mark.parametrize("suffix", WRITERS)
def test_huge_texts_are_cut_and_nul_bytes_removed(tmp_path, suffix):
    texts = ["x" * 10_000_000, "a\0b"]
    path = WRITERS[suffix](tmp_path / f"x{suffix}", texts, ["a", "b"])
    limit = csv.field_size_limit()
    found, findings = read(path)
    assert [text for text, _ in found] == ["x" * LONGEST_TEXT, "ab"]
    assert csv.field_size_limit() == limit
    notes = " ".join(findings.notes("x"))
    assert "1 of 2 texts of x are longer than 100,000" in notes and "NUL" in notes


def test_empty_texts(tmp_path, model):
    texts, labels = some_texts(300), some_labels(300)
    texts[7], texts[8] = " \t", ""
    data = load(write_csv(tmp_path / "x.csv", texts, labels), tokenizer=model)
    assert len(data.train) + len(data.validation) + len(data.test) == 298
    assert "2 of 300 texts" in data.notes[0]
    texts[9] = "\0"
    path = write_jsonl(tmp_path / "x.jsonl", [*texts[:9], None, *texts[10:]], labels)
    refused("x.jsonl, line 8 has no text (3 of 300", load, path, tokenizer=model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\none,a\ntwo,b,c\n", "line 3: 3 cells where the header has 2"),
        ("b.csv", 'text,label\n"one,a\ntwo,b\n', "is a quote left open?"),
        ("c.csv", "", "no column of texts among (none)"),
        ("d.csv", "text,label\n", "holds no texts"),
        ("e.csv", "text,label\none,\n", "line 2 has no label"),
        ("f.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2 is not JSON"),
        ("g.jsonl", '[{"text": "a"}]', "line 1 is no JSON object"),
        ("h.jsonl", '{"text": 5, "label": 1}', "'5' is no text"),
        ("i.jsonl", '{"text": "a", "label": [1]}', "has a list of labels"),
        ("j.jsonl", '{"text": "a", "label": null}', "has no label"),
        ("k.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("l.parquet", "no parquet", "is not readable Parquet"),
        ("m.txt", "a", "of no known form ('.txt')"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, model, name, content, message):
    (tmp_path / name).write_text(content)
    refused(message, load, tmp_path / name, tokenizer=model)


def test_a_parquet_column_that_is_no_text(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), tmp_path / "x.parquet")
    refused("column 'text' holds int64, not text", read, tmp_path / "x.parquet")


def test_half_a_surrogate_pair_is_replaced(tmp_path, model):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"text": f"{t} \ud800", "label": "a\udfff" if i % 2 else "b"})
             for i, t in enumerate(some_texts(40))]  # fmt: skip
    path.write_text("\n".join(lines))
    assert load(path, tokenizer=model).train.classes == ("a\ufffd", "b")


def test_labels(tmp_path, model):
    texts = some_texts(60)
    for labels, classes in (
        ([i % 3 + 1 for i in range(60)], ("1", "2", "3")),
        ([float(i % 2) for i in range(60)], ("0", "1")),
        ([bool(i % 2) for i in range(60)], ("false", "true")),
        (["2" if i % 2 else "x" for i in range(60)], ("2", "x")),
    ):
        for suffix in (".jsonl", ".parquet"):
            path = WRITERS[suffix](tmp_path / f"x{suffix}", texts, labels)
            assert load(path, tokenizer=model).train.classes == classes
    path = write_jsonl(tmp_path / "x.jsonl", texts, [i / 7 for i in range(60)])
    refused("is a fraction and so no class", load, path, tokenizer=model)
    path = write_jsonl(tmp_path / "x.jsonl", texts, [-1, 0] * 30)
    refused("label -1", load, path, tokenizer=model)
    path = write_jsonl(tmp_path / "x.jsonl", texts, ["a"] * 60)
    refused("one class only ('a')", load, path, tokenizer=model)
    path = write_jsonl(tmp_path / "x.jsonl", texts, ["a"] * 59 + ["b"])
    refused("1 texts of class 'b' where 3 are needed", load, path, tokenizer=model)


def test_class_names_that_parquet_declares(tmp_path, model):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    table = pa.table({"text": some_texts(40), "label": [i % 2 for i in range(40)]})
    info = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", tokenizer=model).train.classes == ("neg", "pos")


# --- splits ----------------------------------------------------------------------------------


def test_splits_do_not_depend_on_order_and_keep_equal_texts_together(tmp_path, model):
    texts = [*some_texts(150), *some_texts(50)]  # 50 of them twice
    labels = [("no", "yes")[int(len(text) % 3 > 0)] for text in texts]
    one = load(write_csv(tmp_path / "a.csv", texts, labels), tokenizer=model, seed=3)
    order = np.random.default_rng(0).permutation(200)
    path = write_csv(tmp_path / "b.csv", [texts[i] for i in order], [labels[i] for i in order])
    two = load(path, tokenizer=model, seed=3)
    seen = []
    for split in ("train", "validation", "test"):
        a, b = (sorted(map(tuple, inputs(getattr(d, split)).tolist())) for d in (one, two))
        assert a == b
        assert not set(a) & set(seen)
        seen += a
    assert len(seen) == 200 and 30 <= len(one.test) <= 50 and 8 <= len(one.validation) <= 24
    other = load(tmp_path / "a.csv", tokenizer=model, seed=4)
    assert other.test.fingerprint != one.test.fingerprint


def test_duplicates_between_training_and_test(tmp_path, model):
    texts = some_texts(200)
    train = write_csv(tmp_path / "a.csv", texts, some_labels())
    fresh = some_texts(200, seed=1)
    test = write_csv(tmp_path / "b.csv", [*fresh[:199], texts[0]], some_labels())
    data = load(train, test, tokenizer=model)
    assert any("1 of 200 test texts" in note for note in data.notes)
    bad = write_csv(tmp_path / "c.csv", [*fresh[:197], *texts[:3]], some_labels())
    refused("would be worthless", load, train, bad, tokenizer=model)
    unknown = write_csv(tmp_path / "d.csv", fresh, ["no", "maybe"] * 100)
    refused("the class 'maybe', which is not among", load, train, unknown, tokenizer=model)


def test_texts_that_are_all_equal_cannot_be_split(tmp_path, model):
    path = write_csv(tmp_path / "x.csv", ["good", "bad"] * 20, some_labels(40))
    refused("too few different texts", load, path, tokenizer=model)


# --- vocabulary ------------------------------------------------------------------------------


def test_a_tokenizer_that_cannot_be_pruned_is_left_whole(tmp_path, model, monkeypatch):
    path = write_csv(tmp_path / "x.csv", some_texts(), some_labels())
    whole = load(path, tokenizer=model, vocabulary="whole")
    spoilt = [lambda whole, used: None, lambda whole, used: prune(whole, np.zeros_like(used))]
    for wrong in spoilt:  # no pruned tokenizer, and one that cuts words to letters
        monkeypatch.setattr("tutelage.tasks.text.reading.prune", wrong)
        data = load(path, tokenizer=model)
        assert any("left whole" in note for note in data.notes)
        assert data.train.fingerprint == whole.train.fingerprint
    file = model / "tokenizer.json"
    other = json.loads(file.read_text())
    other["model"]["type"] = "Other"
    vocabulary = replace(open_vocabulary(model), json=json.dumps(other).encode())
    assert prune(vocabulary, np.ones(len(vocabulary), np.bool_)) is None


def test_tokenizers_that_cannot_be_used(tmp_path, model):
    path = write_csv(tmp_path / "x.csv", some_texts(), some_labels())
    refused("data.tokenizer: FOLDER", load, path)
    refused("does not exist", load, path, tokenizer=tmp_path / "none")
    (model / "tokenizer.json").write_text("{}")
    refused("is no readable tokenizer", load, path, tokenizer=model)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(model / "tokenizer.json"))
    refused("has no padding token", load, path, tokenizer=model)
    (model / "tokenizer_config.json").write_text('{"pad_token": {"content": "a"}}')
    assert open_vocabulary(model).pad == 0


# --- length ----------------------------------------------------------------------------------


def test_the_length_covers_most_texts(tmp_path, model):
    texts = some_texts()
    path = write_csv(tmp_path / "x.csv", texts, some_labels())
    data = load(path, tokenizer=model)
    assert TASK.knobs(data.train)["length"] == 32  # 95 % have at most 22 tokens
    short = load(path, tokenizer=model, length=9)
    assert TASK.input_shape(short.train) == (9,)
    assert any("have over 9 tokens" in note for note in short.notes)
    sep = shipped(short).token_to_id("[SEP]")
    full = inputs(short.train)
    assert (full[:, 8][full[:, 8] != short.train.vocabulary.pad] == sep).all()
    long = write_csv(tmp_path / "y.csv", [" ".join([t] * 80) for t in texts], some_labels())
    assert load(long, tokenizer=model).train.shape == (256,)
    assert load(long, tokenizer=model, length=300).train.shape == (300,)
    with pytest.raises(RecipeError, match="above 2 special"):
        load(path, tokenizer=model, length=2)
    with pytest.raises(RecipeError, match="either pruned or whole"):
        load(path, tokenizer=model, vocabulary="half")


# --- the task --------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, model):
    return load(write_csv(tmp_path / "x.csv", some_texts(), some_labels()), tokenizer=model)


def test_what_the_task_says(data):
    train: Texts = data.train
    pad, length = train.vocabulary.pad, train.length
    assert TASK.knobs(train) == {"vocabulary": len(train.vocabulary), "length": length, "pad": pad}
    meta = TASK.meta(data, TASK.normalisation(train))
    assert meta["details"] == {"pad": pad, "length": length, "tokenizer": "tokenizer.json"}
    assert (meta["input"], meta["layout"], meta["dtype"]) == ("ids", "NT", "int64")
    assert set(TASK.families) == {"encoder", "textconv"}
    assert TASK.decisions_an_hour(data) is None
    text = TASK.show(train, 0)
    assert set(text.split()) <= set(WORDS) and len(text) <= 300
    taken = train.take(np.array([3, 1, 3]))
    np.testing.assert_array_equal(inputs(taken), inputs(train, index=[3, 1, 3]))
    assert taken.labels.tolist() == train.labels[[3, 1, 3]].tolist()
    assert taken.fingerprint != train.fingerprint


def test_erasing_is_a_pure_function_and_spares_special_tokens(data):
    train = data.train
    plain = inputs(train)
    np.testing.assert_array_equal(plain, inputs(train, view=0, erase=0.3))
    varied = inputs(train, view=2, seed=5, erase=0.3)
    np.testing.assert_array_equal(varied[[7, 2]], inputs(train, 2, 5, [7, 2], 0.3))
    changed = varied != plain
    blank = train.vocabulary.tokenizer().token_to_id("[MASK]")
    assert (varied[changed] == blank).all()
    assert not np.isin(plain[changed], train.vocabulary.specials).any()
    words = ~np.isin(plain, train.vocabulary.specials)
    assert abs(changed.sum() / words.sum() - 0.3) < 0.05
    assert (inputs(train, view=3, seed=5, erase=0.3) != varied).any()
    assert (inputs(train, view=2, seed=6, erase=0.3) != varied).any()


def test_augmentation_that_is_wanted(data):
    assert not TASK.augment(data.train, SimpleNamespace(erase=0.0, shift=None, flip=False))
    assert TASK.augment(data.train, SimpleNamespace(erase=0.1))
    refused("augment.flip is not for texts", TASK.augment, data.train,
            SimpleNamespace(erase=0.0, flip=True))  # fmt: skip


def test_missing_libraries_are_named(tmp_path, monkeypatch, model):
    path = write_parquet(tmp_path / "x.parquet", some_texts(), some_labels())
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtra, match=r"tutelage\[parquet\]"):
            load(path, tokenizer=model)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"tutelage\[hf\]"):
        load(path, tokenizer=model)


def test_finding_the_task_loads_no_heavy_library():
    code = (
        "import sys; from tutelage.tasks import find_task; find_task('text');"
        "sys.exit(bool({'tokenizers', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
