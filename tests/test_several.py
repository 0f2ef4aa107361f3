"""Several labels an example are refused by name in every reader; one-hot rows are classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from tutelage.errors import DataError
from tutelage.tasks.labels import as_labels
from tutelage.tasks.series.base import SeriesOptions
from tutelage.tasks.series.files import read_series
from tutelage.tasks.several import from_one_hot, parts_among
from tutelage.tasks.text.files import Findings, find_texts, rows
from tutelage.tasks.text.labels import class_numbers
from tutelage.tasks.vision.reading import read_splits

LABELS = ["a", "b", "c", "a;b", "a", "b"]


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert "several labels an example are not supported: give each" in line
    return line


@pytest.mark.parametrize("label", ["a;b", "a|b", "a,b", "a; b", "b , a"])
def test_parts_that_are_labels_of_their_own(label: str) -> None:
    assert sorted(parts_among(label, {"a", "b", label})) == ["a", "b"]
    assert parts_among(label, {"a", label}) == (), "b never stands alone"


@pytest.mark.parametrize("name", ["Washington, D.C.", "a;", ";", "a b", "salt, pepper"])
def test_ordinary_names_with_commas_are_left_alone(name: str) -> None:
    numbers, classes = as_labels(["a", "b", name, "salt"], None, "here")
    assert name in classes and len(numbers) == 4


def test_a_column_of_joined_names_alone_is_taken_for_names() -> None:
    assert as_labels(["a;b", "b;c", "a;b"], None, "here")[1] == ("a;b", "b;c")


def test_one_hot_rows_are_classes() -> None:
    hot = np.eye(4)[[2, 0, 3, 1]]
    for array in (hot, hot.astype(bool), hot.astype(np.uint8)):
        found = from_one_hot(array, str)
        assert found is not None and found.tolist() == [2, 0, 3, 1]
        numbers, classes = as_labels(array, None, "here")
        assert numbers.tolist() == [2, 0, 3, 1] and classes == ("0", "1", "2", "3")
    late = np.eye(3)[[1, 2, 1]]  # no example of class 0, which keeps its number all the same
    assert as_labels(late, None, "here")[0].tolist() == [1, 2, 1]
    for other in (hot * 2, hot[:, :1], hot[0], hot - 0.5):
        assert from_one_hot(np.asarray(other), str) is None


def test_rows_of_ones_and_zeros_that_are_not_one_hot() -> None:
    several = np.array([[1, 0, 0], [0, 1, 1]])
    assert "example 1 has several labels (classes [1, 2])" in refusal(
        lambda: as_labels(several, None, "y.npz")
    )
    with pytest.raises(DataError, match="example 0 has no label, a row of zeros"):
        as_labels(np.array([[0, 0], [0, 1]]), None, "y.npz")


@pytest.mark.parametrize("read", ["images", "series"])
def test_npz(tmp_path: Path, read: str) -> None:
    x, y = tiny.images(12)
    x = x if read == "images" else x.reshape(12, 1, 64).astype(np.float32)
    path = tmp_path / "data.npz"

    def labels(values: np.ndarray) -> np.ndarray:
        np.savez(path, x=x, y=values)
        if read == "images":
            found = read_splits(path).train.labels
            assert found is not None
            return found
        return read_series(path, options=SeriesOptions()).train.labels

    hot = np.eye(3, dtype=np.int64)[y]
    assert labels(hot).tolist() == y.tolist()
    hot[7] = [1, 1, 0]
    assert " 7 has several labels (classes [0, 1])" in refusal(lambda: labels(hot))
    names = np.array(["a", "b", "a;b"])[y]
    assert " 2 has several labels (a;b)" in refusal(lambda: labels(names))


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        cells = zip(*columns.values(), strict=True)
        path.write_text(
            "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in cells)
        )
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_texts(tmp_path: Path, suffix: str) -> None:
    def read(labels: list[Any]) -> Any:
        texts = [f"text {i}" for i in range(len(labels))]
        path = write(tmp_path / f"t{suffix}", {"text": texts, "label": labels})
        source = find_texts(path).train
        found: dict[Any, int] = {}
        codes = [found.setdefault(x, len(found)) for _, x in rows(source, Findings())]
        return class_numbers(list(found), np.array(codes), source)

    assert "text 3 has several labels (a;b)" in refusal(lambda: read(LABELS))
    assert read([*"abc", "d;e"])[1] == ("a", "b", "c", "d;e")
    assert "text 2 has several labels (1|2)" in refusal(lambda: read(["1", "2", "1|2", "1"]))
    if suffix != ".csv":
        line = refusal(lambda: read([["a"], ["a", "b"]]))
        where = "line 1" if suffix == ".jsonl" else "row 0"
        assert f"{where} has a list of labels (['a'])" in line


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("long", [False, True], ids=["windows", "long"])
def test_tables_of_series(tmp_path: Path, suffix: str, long: bool) -> None:
    def read(labels: list[Any]) -> Any:
        n = len(labels)
        columns: dict[str, list[Any]] = {"t0": [0.5 * i for i in range(n)], "t1": [1.0] * n}
        columns["label"] = labels
        if long:
            columns = {key: [x for x in column for _ in "ab"] for key, column in columns.items()}
            columns["id"] = [i for i in range(n) for _ in "ab"]
        path = write(tmp_path / f"s{suffix}", columns)
        options = SeriesOptions(label_column="label", series_column="id" if long else None)
        return read_series(path, options=options).train

    assert "has several labels (a;b)" in refusal(lambda: read(LABELS))
    assert read(["a", "b", "b, c"]).classes == ("a", "b", "b, c")
    if suffix == ".parquet":
        assert "row 0 has a list of labels" in refusal(lambda: read([["a"], ["a", "b"], ["b"]]))


def test_ts(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    path.write_text("@classLabel true a b\n@data\n1,2,3:a\n3,2,1:b\n1,1,2:a,b\n")
    line = refusal(lambda: read_series(path, options=SeriesOptions()))
    assert "line 5 has several labels (a,b)" in line


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_images(tmp_path: Path, suffix: str) -> None:
    def read(labels: list[Any]) -> Any:
        pixels = {f"pixel{i}": [(i * 7 + j) % 256 for j in range(len(labels))] for i in range(4)}
        return read_splits(write(tmp_path / f"i{suffix}", {**pixels, "label": labels})).train

    assert "example 3 has several labels (a;b)" in refusal(lambda: read(LABELS))
    if suffix == ".parquet":
        lists = [[0], [0, 1], [1]]
        assert "example 0 has a list of labels ([0])" in refusal(lambda: read(lists))


def test_a_saved_dataset_with_a_sequence_of_labels(tmp_path: Path) -> None:
    pixels = [bytes([i] * 4) for i in range(3)]
    table = pa.table(
        {"image": [list(row) for row in pixels], "labels": [[0], [0, 1], [1]]},
    )
    folder = tmp_path / "saved"
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    names = {"_type": "ClassLabel", "names": ["a", "b"]}
    features = {"labels": {"_type": "Sequence", "feature": names}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    line = refusal(lambda: read_splits(folder))
    assert "example 0 has a list of labels ([0])" in line
