"""Images that cannot be read: damaged and hostile files, each one line."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportArgumentType=false

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_vision_data import (
    hf_table,
    idx_bytes,
    refused,
    some_labels,
    some_pixels,
    write_folder,
    write_idx,
)

from tutelage.errors import TutelageError
from tutelage.tasks.vision.reading import read_images, read_splits


def test_empty_class_folder(tmp_path):
    write_folder(tmp_path, some_pixels(), some_labels())
    (tmp_path / "dog").mkdir()
    refused("dog holds no images", read_images, tmp_path)


def test_mixed_sizes_name_two_files(tmp_path):
    write_folder(tmp_path, some_pixels(3), some_labels(3))
    write_folder(tmp_path, some_pixels(4, (10, 9, 3)), [0, 0, 0, 1])
    message = refused("data.size: [H, W]", read_images, tmp_path)
    assert "'ant/000.png' is 10x9" in message and "'bee/001.png' is 8x9" in message
    assert read_images(tmp_path, size=(6, 5)).pixels.shape[1:] == (6, 5, 3)


@pytest.mark.parametrize("keep", [0, 20, -40])
def test_corrupt_image_is_named(tmp_path, keep):
    write_folder(tmp_path, some_pixels(), some_labels())
    victim = tmp_path / "bee" / "004.png"
    victim.write_bytes(victim.read_bytes()[:keep])
    refused("bee/004.png", read_images, tmp_path)


@pytest.mark.parametrize("keep", [1, 9, 40, -4])
def test_truncated_gz(tmp_path, keep):
    write_idx(tmp_path, "train", some_pixels(12, (5, 4)), some_labels(), zipped=True)
    victim = tmp_path / "train-images-idx3-ubyte.gz"
    victim.write_bytes(victim.read_bytes()[:keep])
    refused("train-images-idx3-ubyte.gz", read_images, tmp_path)
    refused("train-images-idx3-ubyte.gz", read_images, victim)


def test_idx_header_that_lies(tmp_path):
    write_idx(tmp_path, "train", some_pixels(12, (5, 4)), some_labels())
    victim = tmp_path / "train-images-idx3-ubyte"
    data = bytearray(victim.read_bytes())
    data[4] = 0x7F  # two thousand million images
    victim.write_bytes(data)
    refused("header promises", read_images, victim)
    refused("holds no images", read_images, tmp_path / "train-labels-idx1-ubyte")
    victim.write_bytes(idx_bytes(some_pixels(12, (5, 4))) + b"x")
    refused("promises 240 bytes and it holds more", read_images, victim)
    victim.write_bytes(idx_bytes(some_pixels(0, (5, 4))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(some_labels(0)))
    refused("holds no images", read_images, victim)


def test_npz_that_is_none_of_it(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=[0])
    refused("never loaded", read_images, path)
    np.savez(path, pictures=some_pixels())
    refused("name the images x", read_images, path)
    path.write_bytes(b"PK\x03\x04 and no more")
    refused("not a readable .npz", read_images, path)
    with path.open("wb") as file:
        np.save(file, some_pixels())
    refused("a single .npy array", read_images, path)


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    refused("not readable Parquet", read_images, path)
    pq.write_table(pa.table({"a": [1], "label": [0]}), path)
    refused("no image column among a, label", read_images, path)
    pq.write_table(pa.table({"image": [None, b""], "label": [0, 1]}), path)
    refused("row 0 of column 'image'", read_images, path)
    pq.write_table(pa.table({"image": [[1, 2], [1]], "label": [0, 1]}), path)
    refused("differ in length", read_images, path)
    table = tmp_path / "a.csv"
    table.write_text("")
    refused("no image column", read_images, table)
    table.write_text("label,pixel0\n")
    refused("holds no images", read_images, table)
    table.write_text("image,label\n0.png\n")
    refused("row 0 has 1 cells", read_images, table)
    table.write_text("label,pixel0\n0,1\n0,x\n")
    refused("could not convert string 'x'", read_images, table)
    table.write_text("label,pixel0\n0.5,1\n1.0,3\n")
    refused("labels of type float64", read_images, table)
    table.write_text("label,pixel0\n,1\n1,3\n")
    refused("example 0 has no label", read_images, table)


@pytest.mark.parametrize("form", ["PNG", "idx", "npz", "parquet"])
def test_flipped_and_cut_bytes_never_escape(tmp_path, form):
    target = victim = tmp_path / f"a.{form}"
    if form == "PNG":
        target = tmp_path
        write_folder(tmp_path, some_pixels(4), some_labels(4))
        victim = tmp_path / "ant" / "000.png"
    elif form == "idx":
        write_idx(tmp_path, "train", some_pixels(12, (5, 4)), some_labels(), zipped=True)
        victim = target = tmp_path / "train-images-idx3-ubyte.gz"
    elif form == "npz":
        np.savez_compressed(victim, x=some_pixels(), y=some_labels())
    else:
        pq.write_table(hf_table(some_pixels(), some_labels()), victim)
    good, rng, outcomes = victim.read_bytes(), np.random.default_rng(0), set()
    for i in range(60):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        victim.write_bytes(bad[: rng.integers(len(bad))] if i % 2 else bad)
        try:
            read_splits(target)
            outcomes.add("read")
        except TutelageError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes
