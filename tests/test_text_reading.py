"""Long texts, large sets and characters that no training text holds."""

# pyright: reportOptionalMemberAccess=false

import random

import numpy as np
import pytest
from text_samples import (
    KINDS,
    WORDS,
    inputs,
    some_labels,
    some_texts,
    wordpiece,
    write_csv,
    write_jsonl,
    write_parquet,
)

from tutelage.tasks.text.encoding import encode, encode_starts
from tutelage.tasks.text.files import Findings, find_texts, rows
from tutelage.tasks.text.reading import read_rows
from tutelage.tasks.text.task import load
from tutelage.tasks.text.vocabulary import open_vocabulary, prune


class Heard:
    """A progress that remembers."""

    def __init__(self):
        self.bars, self.steps, self.open = [], 0, False

    def start(self, label, total, done=0):
        self.bars.append((label, total))
        self.open = True

    def advance(self, steps=1, note=""):
        self.steps += steps

    def finish(self):
        self.open = False

    def say(self, line):
        raise AssertionError(line)


def long_texts(n=20, seed=0):
    draw = random.Random(seed)
    texts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 900))) for _ in range(n)]
    blob = "".join(draw.choice("abcxyz") for _ in range(3_000))
    return [*texts, f"{blob} good film", f"good {blob} film", "", " " * 5_000 + "film", "漢" * 900]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [4, 16, 64])
def test_the_start_of_a_text_has_its_first_tokens(tmp_path, kind, most):
    tokenizer, texts = open_vocabulary(KINDS[kind](tmp_path / "m")).tokenizer(), long_texts()
    given = []

    class Watched:
        def encode_batch_fast(self, batch):
            given.extend(batch)
            return tokenizer.encode_batch_fast(batch)

    found = list(encode_starts(Watched(), texts, most))
    for (ids, size), whole, text in zip(found, encode(tokenizer, texts), texts, strict=True):
        assert size <= len(text) and (size == len(text) or len(ids) > most)
        assert (len(ids) > most) == (len(whole) > most)
        np.testing.assert_array_equal(ids[: most - 2], whole[: most - 2])  # but for the end's
    words = sum(map(len, texts[:20]))
    assert sum(map(len, given[:20])) < min(words, 20 * (6 * most + 10))


def test_a_very_long_text_costs_no_more_than_a_short_one(tmp_path, monkeypatch):
    folder, given = wordpiece(tmp_path / "model"), []
    texts = [*some_texts(199), " ".join(["good film"] * 9_000)]
    path = write_csv(tmp_path / "x.csv", texts, some_labels())

    def watched(tokenizer, batch):
        given.extend(map(len, batch))
        return encode(tokenizer, batch)

    for place in ("text.encoding", "text.reading"):
        monkeypatch.setattr(f"tutelage.tasks.{place}.encode", watched)
    data = load(path, tokenizer=folder, length=32)
    assert len(texts[-1]) > 80_000 and max(given) < 300 and len(given) >= 400
    ends = np.concatenate([part.offsets[1:] - part.offsets[:-1] for part in
                           (data.train, data.validation, data.test)])  # fmt: skip
    assert ends.max() == 32


def test_a_bound_changes_no_token(tmp_path, monkeypatch):
    folder = wordpiece(tmp_path / "model")
    path = write_csv(tmp_path / "x.csv", [t * 9 + "\u0020" for t in some_texts()], some_labels())
    short = load(path, tokenizer=folder, length=24)
    monkeypatch.setattr("tutelage.tasks.text.encoding._CHARACTERS", 1_000_000)
    assert load(path, tokenizer=folder, length=24).train.fingerprint == short.train.fingerprint


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_large_sets_have_a_bar(tmp_path, write, monkeypatch):
    monkeypatch.setattr("tutelage.tasks.text.reading._MANY", 150)
    folder, heard = wordpiece(tmp_path / "model"), Heard()
    suffix = {write_csv: "csv", write_jsonl: "jsonl", write_parquet: "parquet"}[write]
    path = write(tmp_path / f"x.{suffix}", some_texts(), some_labels())
    load(path, tokenizer=folder, progress=heard)
    (first, foretold), (second, known) = heard.bars
    assert first == second == f"Tokenising (x.{suffix})"
    assert known == 200 and 200 <= foretold <= 202
    assert heard.steps == 400 and not heard.open


def test_small_sets_have_none_and_missing_files_are_told_by_the_reader(tmp_path):
    path = write_csv(tmp_path / "x.csv", some_texts(), some_labels())
    heard, source = Heard(), find_texts(path).train
    assert list(read_rows(source, Findings(), heard)) == list(rows(source, Findings()))
    assert not heard.bars


def test_characters_that_no_training_text_holds_leave_the_vocabulary(tmp_path):
    folder = wordpiece(tmp_path / "model", more=["漢", "##漢", "ж", "##ж"])
    whole = open_vocabulary(folder)
    used = np.zeros(len(whole), np.bool_)
    used[whole.tokenizer().encode("good ж").ids] = True
    pruned = prune(whole, used)
    pieces = pruned.tokenizer().get_vocab()
    assert {"good", "ж", "##ж", "z", "##z"} <= pieces.keys()
    assert not {"漢", "##漢", "film"} & pieces.keys()
    said = pruned.tokenizer().encode("good жж film 漢").tokens
    assert said == ["[CLS]", "good", "ж", "##ж", "f", "##i", "##l", "##m", "[UNK]", "[SEP]"]


def test_texts_that_pruning_changed_are_known_with_their_tokens_before(tmp_path):
    folder = wordpiece(tmp_path / "model")
    for name, count, more in (("train", 60, ""), ("validation", 20, " zebra"), ("test", 20, "")):
        texts = some_texts(count, seed=len(name))
        lines = [t + more * (i % 4 == 0) for i, t in enumerate(texts)]
        write_jsonl(tmp_path / f"{name}.jsonl", lines, some_labels(count))
    pruned, whole = (load(tmp_path, tokenizer=folder, vocabulary=v) for v in ("pruned", "whole"))
    changed = pruned.validation.changed
    assert changed.index.tolist() == [0, 4, 8, 12, 16]
    np.testing.assert_array_equal(inputs(changed.whole), inputs(whole.validation)[changed.index])
    assert len(changed.whole.vocabulary) == len(whole.validation.vocabulary)
    assert pruned.train.changed is None and whole.validation.changed is None
    assert pruned.validation.take(np.array([1])).changed is None
