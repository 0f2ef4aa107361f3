"""Texts, series and encoders that cannot be used: from the command line, one clear line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from test_bad_input import refused
from test_series_run import RECIPE as SERIES
from test_series_run import windows
from test_text_run import RECIPE as TEXT
from test_text_run import encoder, mails

from tutelage.pipeline.material import read_material
from tutelage.recipe import Recipe

pytest.importorskip("transformers")


def run(folder: Path, base: dict[str, Any], **parts: Any) -> tiny.Said:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**base, **parts}))
    return tiny.cli("run", recipe, "--run", folder / "run")


# --- texts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    encoder(folder)
    return folder


def text_run(folder: Path, model: Path, train: str, **parts: Any) -> tiny.Said:
    data = {"train": train, "validation": 0.2}
    teacher = {"source": str(model), "fit": "head"}
    return run(folder, TEXT, **{"data": data, "teacher": teacher, **parts})


def mail_rows() -> list[dict[str, Any]]:
    return list(mails(60))


def csv_text(rows: list[dict[str, Any]], names: str = "text,label") -> str:
    return "\n".join([names, *(f"{row['text']},{row['label']}" for row in rows)]) + "\n"


def _nul(rows: list[dict[str, Any]]) -> None:
    rows[3]["text"] = "\0\0\0"


def _empty(rows: list[dict[str, Any]]) -> None:
    rows[3]["text"] = "  "


def _equal(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["label"] = "ham"


def _several(rows: list[dict[str, Any]]) -> None:
    rows[3]["label"] = ["ham", "spam"]


def _number(rows: list[dict[str, Any]]) -> None:
    rows[3]["text"] = 7


TEXTS: dict[str, tuple[Callable[[list[dict[str, Any]]], None], tuple[str, ...]]] = {
    "nothing but NUL bytes": (_nul, ("line 4 has no text", "drop them")),
    "empty strings": (_empty, ("line 4 has no text", "fill them in")),
    "labels all equal": (_equal, ("one class only ('ham')", "another class")),
    "several labels": (_several, ("line 4 has a list of labels", "run once a label")),
    "no text": (_number, ("line 4: '7' is no text", "data.text_column")),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(tmp_path: Path, model: Path, name: str) -> None:
    damage, words = TEXTS[name]
    rows = mail_rows()
    damage(rows)
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(text_run(tmp_path, model, "t.jsonl"), 2, "t.jsonl", *words)


def test_a_label_column_that_is_missing(tmp_path: Path, model: Path) -> None:
    (tmp_path / "t.csv").write_text(csv_text(mail_rows(), "text,kind"))
    said = text_run(tmp_path, model, "t.csv")
    refused(said, 2, "t.csv has none", "the column of labels in data.label_column")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32-be"])
def test_a_wrong_encoding(tmp_path: Path, model: Path, encoding: str) -> None:
    rows = mail_rows()
    rows[5]["text"] = "café"
    (tmp_path / "t.csv").write_bytes(csv_text(rows).encode(encoding))
    refused(text_run(tmp_path, model, "t.csv"), 2, "t.csv", "UTF-8", "iconv")


def test_a_line_of_ten_megabytes_and_nul_bytes_are_told_and_used(
    tmp_path: Path, model: Path
) -> None:
    rows = mail_rows()
    rows[4]["text"] += " word" * 2_000_000
    rows[6]["text"] += "\0"
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"train": "t.jsonl", "validation": 0.2, "tokenizer": str(model)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**TEXT, "data": data}))
    material = read_material(Recipe.read(tmp_path / "recipe.yaml"))
    said = " ".join(material.notes)
    assert "1 of 60 texts" in said and "longer than 100,000 characters" in said
    assert "hold NUL bytes, which are removed" in said
    assert material.train.count + material.validation.count + material.test.count == 60


def test_encoders(tmp_path: Path, model: Path) -> None:
    (tmp_path / "t.csv").write_text(csv_text(mail_rows()))
    copy = tmp_path / "model"

    def changed(**config: Any) -> tiny.Said:
        path = copy / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return text_run(tmp_path, copy, "t.csv")

    shutil.copytree(model, copy)
    automatic = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (copy / "own.py").write_text("raise SystemExit('foreign code ran')\n")
    refused(changed(auto_map=automatic, model_type="own_kind"), 2, "Python code", "--trust-code")
    shutil.copyfile(model / "config.json", copy / "config.json")
    refused(changed(vocab_size=40), 2, "model")
    shutil.copyfile(model / "config.json", copy / "config.json")
    (copy / "model.safetensors").unlink()
    refused(text_run(tmp_path, copy, "t.csv"), 2, "has no model.safetensors")
    (copy / "tokenizer.json").unlink()
    refused(text_run(tmp_path, copy, "t.csv"), 2, "tokenizer")


def test_a_tokenizer_of_another_model(tmp_path: Path, model: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["[PAD]", "[UNK]", *(f"x{i}" for i in range(300))]
    names += sorted({word for row in mail_rows() for word in row["text"].split()})
    other = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    other.add_special_tokens(["[PAD]", "[UNK]"])
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.csv").write_text(csv_text(mail_rows()))
    data = {"train": "t.csv", "validation": 0.2, "tokenizer": "tokenizer.json"}
    said = text_run(tmp_path, model, "t.csv", data=data)
    refused(said, 2, "token", "data.tokenizer: FOLDER")


# --- series ----------------------------------------------------------------------------------


def save(folder: Path, values: Any, labels: np.ndarray) -> None:
    np.savez(folder / "data.npz", x=values, y=labels)


def test_a_channel_without_values(tmp_path: Path) -> None:
    values, labels = windows(60)
    values[:, 1] = np.nan
    save(tmp_path, values, labels)
    refused(run(tmp_path, SERIES), 2, "channel 1 of 2 has no values", "remove the channel")


def test_a_constant_channel_is_told_and_used(tmp_path: Path) -> None:
    values, labels = windows(60)
    values[:, 1] = 3.0
    save(tmp_path, values, labels)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SERIES))
    material = read_material(Recipe.read(tmp_path / "recipe.yaml"))
    (note,) = material.notes
    assert "channel 1 of 2 has the same value in all training series" in note
    inputs = material.train.batch(torch.arange(8), 0).inputs
    assert inputs.isfinite().all() and not inputs[:, 1].any(), "nothing is divided by zero"


def test_labels_all_equal(tmp_path: Path) -> None:
    values, labels = windows(60)
    save(tmp_path, values, labels[np.zeros(60, int)])
    refused(run(tmp_path, SERIES), 2, "one class only ('slow')", "add")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["1,2,3:4,5,6:a", "1,2,3:b"], ("line 4", "1 channels where", "2")),
        (["(0,1),(1,2):a", "(5,1),(4,2):b"], ("line 4: timestamp 4 does not come after 5", "sort")),
        (["1,2,3:a", "NaN,?,NaN:b"], ("line 4 has no values at all", "remove it")),
        (["1,2,3:a", "1,2,3:a,b"], ("line 4 has several labels (a,b)", "run once a label")),
        (["1,2,3:a", "1,2,3"], ("line 4", "add the label")),
    ],
    ids=["channels", "timestamps", "empty", "several labels", "no label"],
)
def test_ts(tmp_path: Path, lines: list[str], words: tuple[str, ...]) -> None:
    (tmp_path / "x.ts").write_text("\n".join(["@classLabel true a b", "@data", *lines]))
    refused(run(tmp_path, SERIES, data={"train": "x.ts"}), 2, "x.ts", *words)


def test_a_table_whose_time_goes_back(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,t,v,label\n1,0,5,a\n1,2,6,a\n1,1,7,a\n2,0,1,b\n2,1,1,b\n")
    data = {"train": "x.csv", "series_column": "id", "time_column": "t", "label_column": "label"}
    said = run(tmp_path, SERIES, data=data)
    refused(said, 2, "series '1': timestamp 1 does not come after 2", "sort the series by time")


def test_training_and_test_of_different_channels(tmp_path: Path) -> None:
    values, labels = windows(60)
    save(tmp_path, values, labels)
    np.savez(tmp_path / "test.npz", x=values[:, :1], y=labels)
    data = {"train": "data.npz", "test": "test.npz"}
    refused(run(tmp_path, SERIES, data=data), 2, "have 2 channels", "test.npz")
