"""Readers without labels, and unlabelled examples that join the training split."""

import json

import numpy as np
import pytest
import tiny
from test_text_data import some_labels, some_texts, wordpiece, write_csv

from tutelage.errors import TutelageError
from tutelage.tasks.series import task as series
from tutelage.tasks.text import task as text
from tutelage.tasks.vision import task as vision


def refused(says, call, *args, **kwargs):
    with pytest.raises(TutelageError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value) and says in str(caught.value), caught.value


def save_images(path, count=60, seed=0, labelled=True):
    x, y = tiny.images(count, seed=seed)
    np.savez(path, x=x, **({"y": y} if labelled else {}))
    return path


def windows(path, count=60, seed=0, labelled=True):
    x = np.random.default_rng(seed).normal(size=(count, 2, 12)).astype(np.float32)
    np.savez(path, x=x, **({"y": np.arange(count) % 2} if labelled else {}))
    return path


@pytest.mark.parametrize(
    ("load", "save"), [(vision.load, save_images), (series.load, windows)], ids=["vision", "series"]
)
def test_unlabelled_examples_join_the_training_split_alone(tmp_path, load, save):
    train, more = save(tmp_path / "a.npz"), save(tmp_path / "b.npz", 40, 1)
    alone, both = load(train), load(train, unlabelled=more)
    assert len(both.train) == len(alone.train) + 40
    assert both.train.labels[-40:].tolist() == [-1] * 40  # those in the file are not read
    assert both.train.classes == alone.train.classes
    assert both.train.take(np.arange(len(alone.train))).fingerprint == alone.train.fingerprint
    for part in ("validation", "test"):
        assert getattr(both, part).fingerprint == getattr(alone, part).fingerprint
    other = load(train, unlabelled=save(tmp_path / "c.npz", 40, 2, labelled=False))
    assert other.train.fingerprint != both.train.fingerprint != alone.train.fingerprint
    assert both.notes[-1].startswith("40 unlabelled")


@pytest.mark.parametrize(
    ("load", "save"), [(vision.load, save_images), (series.load, windows)], ids=["vision", "series"]
)
def test_copies_of_test_and_validation_are_left_out_and_counted(tmp_path, load, save):
    train = save(tmp_path / "a.npz")
    alone = load(train)
    both = load(train, unlabelled=train)  # all 60 again, those of the two splits among them
    held = len(alone.test) + len(alone.validation)
    assert len(both.train) == len(alone.train) + 60 - held
    assert f"{held} of 60 unlabelled" in both.notes[-1]
    assert len(load(train, save(tmp_path / "t.npz", 30, 5), unlabelled=train).test) == 30
    x = np.load(train)["x"]
    first = vision.content_keys if load is vision.load else series.content_keys
    held_keys = {tuple(k) for part in (alone.test, alone.validation) for k in first(part).tolist()}
    every = load(train, unlabelled=save(tmp_path / "n.npz")).train
    assert not held_keys & {tuple(k) for k in first(every).tolist()} and len(x) == 60
    np.savez(tmp_path / "only.npz", x=alone.test.pixels if load is vision.load
             else alone.test.values)  # fmt: skip
    refused("are validation or test", load, train, unlabelled=tmp_path / "only.npz")


@pytest.mark.parametrize(
    ("load", "save"), [(vision.load, save_images), (series.load, windows)], ids=["vision", "series"]
)
def test_data_without_labels_is_split_by_content_and_said(tmp_path, load, save):
    bare = load(save(tmp_path / "a.npz", labelled=False))
    assert bare.train.labels is bare.test.labels is None and bare.train.classes == ()
    assert [len(p) for p in (bare.train, bare.validation, bare.test)] == [43, 5, 12]
    assert "has no labels" in bare.notes[0] and "agreement" in bare.notes[0]
    said = load(save(tmp_path / "b.npz"), label_column="none")
    assert said.test.fingerprint == bare.test.fingerprint  # the labels there are not read
    named = save(tmp_path / "t.npz", 30, 5)
    refused("has labels and", load, tmp_path / "a.npz", named)
    refused("needs to be tested on", load, named, tmp_path / "a.npz")


def test_a_folder_of_images_alone_has_no_labels(tmp_path):
    from PIL import Image

    for i, pixels in enumerate(tiny.images(12)[0]):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i}.png")
    assert vision.load(tmp_path).train.labels is None
    (tmp_path / "cat").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "cat" / "0.png")
    refused("one class only ('cat')", vision.load, tmp_path)
    data = vision.load(save_images(tmp_path / "a.npz"), unlabelled=tmp_path)
    assert (data.train.labels == -1).sum() + len(data.notes) > 1


TS = "@univariate true\n@equalLength true\n@classLabel {}\n@data\n"


def test_ts_says_that_it_has_no_labels(tmp_path):
    lines = [f"{i},{i * i},3,4" for i in range(20)]
    (tmp_path / "a.ts").write_text(TS.format("false") + "\n".join(lines))
    bare = series.load(tmp_path / "a.ts")
    assert bare.train.labels is None and bare.train.shape == (1, 4)
    labelled = [f"{line}:{'ab'[i % 2]}" for i, line in enumerate(lines)]
    (tmp_path / "b.ts").write_text(TS.format("true a b") + "\n".join(labelled))
    odd = [f"{line.replace('3', '9')}:?" for line in lines]
    (tmp_path / "c.ts").write_text(TS.format("true a b") + "\n".join(odd))
    data = series.load(tmp_path / "b.ts", unlabelled=tmp_path / "c.ts")
    assert (data.train.labels == -1).sum() == 20


def test_a_table_of_series_must_say_that_it_has_no_labels(tmp_path):
    rows = "\n".join(f"{i},{i + 1},{i % 2}" for i in range(20))
    (tmp_path / "a.csv").write_text("s,t,kind\n" + rows)
    refused("no column of labels", series.load, tmp_path / "a.csv")
    refused("no label column 'knd'", series.load, tmp_path / "a.csv", label_column="knd")
    assert series.load(tmp_path / "a.csv", label_column="none").train.shape == (1, 3)
    named = series.load(tmp_path / "a.csv", unlabelled=tmp_path / "a.csv", label_column="kind")
    assert named.train.shape == (1, 2)  # the labels are no values, though they are not read


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_texts_without_labels(tmp_path, form):
    model, texts = wordpiece(tmp_path / "model"), some_texts(80)
    bare = tmp_path / f"bare.{form}"
    if form == "csv":
        bare.write_text("text\n" + "\n".join(texts))
    else:
        bare.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    data = text.load(bare, tokenizer=model)
    assert data.train.labels is data.test.labels is None and data.train.classes == ()
    assert "has no labels" in data.notes[0]
    labelled = write_csv(tmp_path / "t.csv", some_texts(40, seed=3), some_labels(40))
    refused("has labels and", text.load, bare, labelled, tokenizer=model)
    both = text.load(labelled, unlabelled=bare, tokenizer=model)
    alone = text.load(labelled, tokenizer=model)
    assert (both.train.labels == -1).sum() == 80 == len(both.train) - len(alone.train)
    assert both.test.labels.tolist() == alone.test.labels.tolist()
    own = text.load(labelled, unlabelled=labelled, tokenizer=model)
    held = len(own.test) + len(own.validation)
    assert (own.train.labels == -1).sum() == 40 - held
    assert f"{held} of 40 unlabelled texts" in " ".join(own.notes)


def test_words_of_unlabelled_texts_stay_in_the_vocabulary(tmp_path):
    model = wordpiece(tmp_path / "model")
    labelled = write_csv(tmp_path / "t.csv", some_texts(60, words=["film"]), some_labels(60))
    more = write_csv(tmp_path / "u.csv", some_texts(20, words=["film", "zebra"]), some_labels(20))
    alone = text.load(labelled, tokenizer=model).train.vocabulary
    both = text.load(labelled, unlabelled=more, tokenizer=model).train.vocabulary
    assert set(alone.kept.tolist()) < set(both.kept.tolist())


def test_labels_that_begin_later_are_not_lost(tmp_path):
    model = wordpiece(tmp_path / "model")
    items = [{"text": t} for t in some_texts(3)] + [{"text": "late", "label": "a"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, items)))
    refused("labels are missing", text.load, tmp_path / "t.jsonl", tokenizer=model)
    refused("no column 'lable'", text.load, tmp_path / "t.jsonl", tokenizer=model,
            label_column="lable")  # fmt: skip
