"""Readers on real small files, bad input, and splits."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportArgumentType=false

import gzip
import io
import json
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tutelage.errors import DataError, MissingExtra, RecipeError, TutelageError
from tutelage.tasks import TASKS, accuracy, find_task, wilson_interval
from tutelage.tasks.vision.base import Images, make_images
from tutelage.tasks.vision.reading import read_images, read_splits
from tutelage.tasks.vision.task import arrange, load


def some_pixels(n=12, shape=(8, 9, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def some_labels(n=12, classes=3):
    return np.arange(n) % classes


def some_images(n=300, classes=3, seed=0, shape=(8, 8, 1)):
    return make_images(some_pixels(n, shape, seed), some_labels(n, classes), source=f"set{seed}")


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder, prefix, pixels, labels, zipped=False):
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        data = idx_bytes(array)
        name = f"{prefix}-{kind}-ubyte" + (".gz" if zipped else "")
        (folder / name).write_bytes(gzip.compress(data) if zipped else data)


def encoded(pixels, form="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out, form)
    return out.getvalue()


def write_folder(folder, pixels, labels, names=("ant", "bee", "cat"), form="PNG"):
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        (folder / names[label] / f"{i:03}.{form.lower()}").write_bytes(encoded(image, form))


def refused(text, call, *args, **kwargs):
    with pytest.raises(TutelageError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and text in message, message
    return message


def same(images, pixels, labels, classes=None):
    assert images.pixels.dtype == np.uint8 and images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.pixels, pixels)
    np.testing.assert_array_equal(images.labels, labels)
    assert classes is None or images.classes == classes


# --- readers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder_and_single_file(tmp_path, zipped):
    train, test = some_pixels(12, (5, 4)), some_pixels(6, (5, 4), seed=1)
    write_idx(tmp_path, "train", train, some_labels(12), zipped)
    write_idx(tmp_path, "t10k", test, some_labels(6), zipped)
    found = read_splits(tmp_path)
    same(found.train, train[..., None], some_labels(12), ("0", "1", "2"))
    same(found.test, test[..., None], some_labels(6))
    assert found.validation is None
    one = read_images(tmp_path / ("t10k-images-idx3-ubyte" + (".gz" if zipped else "")))
    same(one, test[..., None], some_labels(6))
    same(read_images(tmp_path, split="test"), test[..., None], some_labels(6))


def test_idx_labels_by_path_and_without_labels(tmp_path):
    write_idx(tmp_path, "train", some_pixels(12, (5, 4)), some_labels(12))
    other = tmp_path / "mine"
    (tmp_path / "train-labels-idx1-ubyte").rename(other)
    images = tmp_path / "train-images-idx3-ubyte"
    assert read_images(images).labels is None
    assert read_images(images).classes == ()
    np.testing.assert_array_equal(read_images(images, labels=other).labels, some_labels(12))
    assert load(images).train.labels is None


def test_idx_folder_prefers_unpacked_and_refuses_two_sets(tmp_path):
    pixels = some_pixels(12, (5, 4))
    write_idx(tmp_path, "train", pixels, some_labels(12))
    write_idx(tmp_path, "train", pixels[::-1], some_labels(12), zipped=True)
    same(read_images(tmp_path), pixels[..., None], some_labels(12))
    write_idx(tmp_path, "letters-train", pixels, some_labels(12))
    refused("several IDX image files", read_splits, tmp_path)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_folder_of_class_folders(tmp_path, form):
    pixels = some_pixels()
    write_folder(tmp_path, pixels, some_labels(), ("cat", "ant", "bee"), form)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    order = [1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9]
    same(read_images(tmp_path), pixels[order], np.repeat([0, 1, 2], 4), ("ant", "bee", "cat"))


def test_jpeg_folder_is_close(tmp_path):
    smooth = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None, None], (4, 16, 16, 1))
    write_folder(tmp_path, smooth, some_labels(4), form="JPEG")
    found = read_images(tmp_path)
    assert found.shape == (16, 16, 1)
    assert np.abs(found.pixels.astype(int) - smooth).max() <= 6


def test_folder_with_train_validation_and_test(tmp_path):
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        write_folder(tmp_path / split, some_pixels(9, seed=seed), some_labels(9))
    found = read_splits(tmp_path)
    assert (len(found.train), len(found.validation), len(found.test)) == (9, 9, 9)
    assert found.train.classes == ("ant", "bee", "cat")
    data = load(tmp_path)
    assert data.validation.fingerprint == found.validation.fingerprint


def test_grey_and_colour_in_one_folder_become_colour(tmp_path):
    grey, colour = some_pixels(2, (8, 9, 1)), some_pixels(2, (8, 9, 3))
    write_folder(tmp_path, grey, [0, 0])
    write_folder(tmp_path, colour, [1, 1])
    found = read_images(tmp_path)
    np.testing.assert_array_equal(found.pixels[:2], np.repeat(grey, 3, axis=3))
    np.testing.assert_array_equal(found.pixels[2:], colour)


def test_sixteen_bit_palette_and_transparent_images(tmp_path):
    (tmp_path / "a").mkdir()
    wide = (np.arange(72, dtype=np.uint16) * 257).reshape(8, 9)
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    found = read_images(tmp_path)
    np.testing.assert_array_equal(found.pixels[0, :, :, 0], np.arange(72).reshape(8, 9))
    rgb = some_pixels(1)[0]
    Image.fromarray(np.dstack([rgb, np.full((8, 9), 7, np.uint8)])).save(tmp_path / "a" / "0.png")
    np.testing.assert_array_equal(read_images(tmp_path).pixels[0], rgb)
    Image.fromarray(rgb).quantize(4).save(tmp_path / "a" / "0.png")
    assert read_images(tmp_path).shape == (8, 9, 3)


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("data", "target"), ("X", "y")])
def test_npz_keys(tmp_path, keys):
    np.savez(tmp_path / "a.npz", **{keys[0]: some_pixels(), keys[1]: some_labels()})
    same(read_images(tmp_path / "a.npz"), some_pixels(), some_labels())


def test_npz_splits_column_labels_and_names(tmp_path):
    np.savez(
        tmp_path / "a.npz", x_train=some_pixels(12), y_train=some_labels()[:, None],
        x_test=some_pixels(6, seed=1), y_test=some_labels(6)[:, None],
    )  # fmt: skip
    found = read_splits(tmp_path / "a.npz")
    same(found.train, some_pixels(12), some_labels())
    same(found.test, some_pixels(6, seed=1), some_labels(6))
    np.savez(tmp_path / "b.npz", x=some_pixels(3), y=np.array(["b", "a", "b"]))
    same(read_images(tmp_path / "b.npz"), some_pixels(3), [1, 0, 1], ("a", "b"))


def csv_of_pixels(path, pixels, labels, names=("label", "pixel")):
    header = [names[0], *(f"{names[1]}{i}" for i in range(pixels[0].size))]
    rows = [
        ",".join(map(str, [label, *image.ravel()]))
        for image, label in zip(pixels, labels, strict=True)
    ]
    path.write_text("\n".join([",".join(header), *rows, ""]))


def test_csv_of_pixels(tmp_path):
    square, oblong = some_pixels(6, (4, 4, 1)), some_pixels(6, (3, 5, 1))
    csv_of_pixels(tmp_path / "a.csv", square, some_labels(6))
    same(read_images(tmp_path / "a.csv"), square, some_labels(6))
    csv_of_pixels(tmp_path / "b.csv", oblong, some_labels(6))
    refused("data.size: [H, W]", read_images, tmp_path / "b.csv")
    same(read_images(tmp_path / "b.csv", size=(3, 5)), oblong, some_labels(6))


def test_csv_of_paths(tmp_path):
    pixels, labels = some_pixels(6), ["dog", "cat"] * 3
    (tmp_path / "img").mkdir()
    rows = ["file,kind"]
    for i in range(6):
        (tmp_path / "img" / f"{i}.png").write_bytes(encoded(pixels[i]))
        rows.append(f"img/{i}.png,{labels[i]}")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    found = read_images(tmp_path / "a.csv", label_column="kind")
    same(found, pixels, [1, 0] * 3, ("cat", "dog"))
    refused("Did you mean 'kind'", read_images, tmp_path / "a.csv", label_column="kin")
    (tmp_path / "img" / "3.png").unlink()
    refused("img/3.png", read_images, tmp_path / "a.csv")


@pytest.mark.parametrize("form", ["bytes", "struct", "path", "pixels", "nested"])
def test_parquet_columns(tmp_path, form):
    pixels = some_pixels(6, (4, 4, 3) if form != "pixels" else (4, 4, 1))
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(pixels[i]))
    files = [f"{i}.png" for i in range(6)]
    if form == "pixels":
        flat = pixels.reshape(6, 16)
        # Written out of order: the numbers in the names count.
        columns = {f"pixel{i}": flat[:, i] for i in reversed(range(16))}
    else:
        columns = {
            "image": {
                "bytes": lambda: [encoded(p) for p in pixels],
                "struct": lambda: (
                    [{"bytes": encoded(p), "path": None} for p in pixels[:3]]
                    + [{"bytes": None, "path": name} for name in files[3:]]
                ),
                "path": lambda: files,
                "nested": lambda: pixels.tolist(),
            }[form]()
        }
    pq.write_table(pa.table({**columns, "label": some_labels(6)}), tmp_path / "a.parquet")
    same(read_images(tmp_path / "a.parquet"), pixels, some_labels(6), ("0", "1", "2"))


FEATURES = {
    "picture": {"_type": "Image"},
    "kind": {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]},
}


def hf_table(pixels, labels):
    cells = [{"bytes": encoded(p), "path": None} for p in pixels]
    return pa.table({"picture": cells, "kind": labels})


def test_parquet_folder_with_shards_and_declared_features(tmp_path):
    meta = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
    for name, pixels in (
        ("train-00000-of-00002", some_pixels(6)),
        ("train-00001-of-00002", some_pixels(3, seed=1)),
        ("test-00000-of-00001", some_pixels(3, seed=2)),
    ):
        table = hf_table(pixels, some_labels(len(pixels))).replace_schema_metadata(meta)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = read_splits(tmp_path)
    assert (len(found.train), len(found.test)) == (9, 3)
    assert found.train.classes == ("ant", "bee", "cat")
    np.testing.assert_array_equal(found.train.pixels[6:], some_pixels(3, seed=1))


def save_dataset(folder, pixels, labels):
    folder.mkdir(parents=True)
    table = hf_table(pixels, labels)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def test_dataset_saved_on_disk(tmp_path):
    save_dataset(tmp_path / "dd" / "train", some_pixels(9), some_labels(9))
    save_dataset(tmp_path / "dd" / "test", some_pixels(3, seed=1), some_labels(3))
    (tmp_path / "dd" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = read_splits(tmp_path / "dd")
    same(found.train, some_pixels(9), some_labels(9), ("ant", "bee", "cat"))
    same(found.test, some_pixels(3, seed=1), some_labels(3))
    same(read_images(tmp_path / "dd" / "train"), some_pixels(9), some_labels(9))
    arrow = tmp_path / "dd" / "train" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:500])
    refused("is damaged", read_splits, tmp_path / "dd")


def test_declared_class_numbers_are_checked(tmp_path):
    save_dataset(tmp_path / "one", some_pixels(3), [0, 1, 3])
    refused("label 3 of example 2 is out of range (0 to 2)", read_images, tmp_path / "one")


def test_missing_pyarrow_is_a_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tutelage\[parquet\]'"):
        read_images(tmp_path / "a.parquet")


def test_digits():
    digits = read_images("digits")
    assert digits.pixels.shape == (1797, 8, 8, 1) and digits.pixels.max() == 255
    assert digits.classes == tuple("0123456789")
    data = load("digits")
    assert len(data.train) + len(data.validation) + len(data.test) == 1797 and data.notes == ()


# --- pixels and labels -----------------------------------------------------------------------


def test_fingerprint_is_of_content_alone(tmp_path):
    write_folder(tmp_path / "a", some_pixels(), some_labels())
    write_folder(tmp_path / "b", some_pixels(), some_labels())
    a, b = read_images(tmp_path / "a"), read_images(tmp_path / "b")
    assert a.source != b.source and a.fingerprint == b.fingerprint
    changed = a.pixels.copy()
    changed[3, 2, 1, 0] ^= 1
    others = [
        Images(pixels=changed, labels=a.labels, classes=a.classes, source=""),
        Images(pixels=a.pixels, labels=a.labels[::-1], classes=a.classes, source=""),
        Images(pixels=a.pixels, labels=None, classes=a.classes, source=""),
        Images(pixels=a.pixels, labels=a.labels, classes=("an", "tbee", "cat"), source=""),
        Images(pixels=a.pixels.reshape(12, 9, 8, 3), labels=a.labels, classes=a.classes, source=""),
    ]
    assert len({a.fingerprint, *(other.fingerprint for other in others)}) == 6


# --- bad files -------------------------------------------------------------------------------


def test_paths_and_forms(tmp_path):
    refused("does not exist", read_images, tmp_path / "nowhere")
    refused("empty folder", read_images, tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    refused("of no known form ('.txt')", read_images, tmp_path / "a.txt")
    refused("holds no images", read_images, tmp_path)
    (tmp_path / "0.png").write_bytes(encoded(some_pixels(1)[0]))
    assert read_images(tmp_path).labels is None
    refused("Did you mean 'npz'", read_images, tmp_path, format="npy")
    refused("data.size", read_images, tmp_path, size=(0, 8))
    refused("correct data.format", read_images, tmp_path / "a.txt", format="folder")
    refused("is a folder", read_images, tmp_path, format="csv")
    refused("is a folder", read_images, tmp_path, format="npz")


# --- splits ----------------------------------------------------------------------------------


def names_of(images):
    return {image.tobytes() for image in images.pixels}


def test_too_little_to_learn_from():
    shape = (8, 8, 1)

    def of(labels):
        return make_images(some_pixels(len(labels), shape), labels, source="s")

    refused("one class only ('0')", arrange, of([0] * 30))
    refused("one class only ('4')", arrange, of([4] * 30))
    refused("1 images of class '1'", arrange, of([0] * 30 + [1]))
    refused("2 images of class '1' where 3 are needed", arrange, of([0] * 30 + [1] * 2))
    refused("no example of class '2'", arrange, of([0, 1, 3] * 10))
    refused("2 images where 3", arrange, make_images(some_pixels(2, shape), None, source="s"))
    data = arrange(of([0, 1] * 3))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [2, 2, 2]
    data = arrange(of([0, 1] * 2), test=some_images(30, classes=2, seed=1))
    assert [len(part) for part in (data.train, data.validation)] == [2, 2]


# --- what tasks share ------------------------------------------------------------------------


def test_find_task():
    assert find_task("vision").name == "vision" and list(TASKS) == ["series", "text", "vision"]
    with pytest.raises(RecipeError, match="Did you mean 'vision'"):
        find_task("vison")


def test_accuracy_has_wilsons_interval():
    # 81 of 263: Newcombe (1998), table I, method 3: 0.2553 to 0.3662.
    low, high = wilson_interval(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    # 0 of 20: 0 to 0.1611.
    assert [round(end, 4) for end in wilson_interval(0.0, 20)] == [0.0, 0.1611]
    figure = accuracy(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0]))
    assert (figure.value, figure.n, figure.kind, figure.unit) == (0.75, 4, "measured", "1")
    with pytest.raises(ValueError):
        accuracy(np.array([], int), np.array([], int))


def test_refusals_about_data_are_data_errors(tmp_path):
    with pytest.raises(DataError) as caught:
        read_images(tmp_path / "nowhere")
    assert caught.value.exit_code == 2
