"""Series: readers on real small files, bad input, splits, normalisation, augmentation, batches."""

# pyright: reportArgumentType=false, reportIndexIssue=false

import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tutelage.errors import RecipeError, TutelageError
from tutelage.tasks import find_task
from tutelage.tasks.cells import check_ascending
from tutelage.tasks.series.augment import (
    NO_SERIES_AUGMENT,
)
from tutelage.tasks.series.base import SeriesOptions, make_series
from tutelage.tasks.series.files import read_series
from tutelage.tasks.series.task import arrange, load, take_out

NAN = np.nan
TS = """# a comment
@problemName Toy
@univariate true
@equalLength true
@seriesLength 4
@classLabel true b a
@data
1,2,3,4:a
1,?,NaN,5:b
2.5,-1e-3,0,4:a
"""


def some_values(n=30, channels=2, steps=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, channels, steps)).astype(np.float32)


def some_series(n=30, classes=3, **shape):
    return make_series(some_values(n, **shape), np.arange(n) % classes, source="made")


def read(path, **options):
    return read_series(path, options=SeriesOptions(**options))


def write(path, text):
    path.write_text(text)
    return path


def refused(text, call, *args, **kwargs):
    with pytest.raises(TutelageError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and text in message, message
    return message


# --- readers ---------------------------------------------------------------------------------


def test_ts_file(tmp_path):
    found = read(write(tmp_path / "toy.ts", TS))
    assert found.test is None
    series = found.train
    assert series.values.dtype == np.float32 and series.labels.dtype == np.int64
    assert series.shape == (1, 4) and series.classes == ("b", "a")
    np.testing.assert_array_equal(series.labels, [1, 0, 1])
    np.testing.assert_array_equal(series.values[1, 0], np.float32([1, NAN, NAN, 5]))
    np.testing.assert_array_equal(series.lengths, [4, 4, 4])


def test_ts_of_unequal_lengths_and_several_channels(tmp_path):
    text = (
        "@univariate false\n@dimensions 2\n@equalLength false\n@classLabel true a b\n@data\n"
        "1,2:3,4:a\n5,6,7:8,9:b\n"
    )
    series = read(write(tmp_path / "t.ts", text)).train
    assert series.shape == (2, 3)
    np.testing.assert_array_equal(series.values[0], np.float32([[1, 2, NAN], [3, 4, NAN]]))
    np.testing.assert_array_equal(series.values[1], np.float32([[5, 6, 7], [8, 9, NAN]]))
    np.testing.assert_array_equal(series.lengths, [2, 3])


def test_ts_with_timestamps(tmp_path):
    head = "@timeStamps true\n@classLabel true 1 2\n@data\n"
    dates = "(2007-01-01 00:00:00,241.97),(2007-01-01 00:01:00,?):(0,7),(1.5,8):1\n"
    series = read(write(tmp_path / "t.ts", head + dates)).train
    np.testing.assert_array_equal(series.values[0], np.float32([[241.97, NAN], [7, 8]]))
    mixed = "(2007-01-01 00:01:00,1),(2007-01-01 00:00:00,2):1\n"
    refused("line 4: timestamp 2007-01-01 00:00:00", read, write(tmp_path / "u.ts", head + mixed))
    for bad in ("(0,1),(1:1", "(0,1)(1,2):1", "(0),(1,2):1", "(x,1),(1,2):1"):
        refused("line 4", read, write(tmp_path / "u.ts", head + bad))


def test_nanosecond_timestamps_are_not_rounded():
    check_ascending([1_700_000_000_000_000_000, 1_700_000_000_000_000_001], "here")
    refused("does not come after", check_ascending, ["5", "5"], "here")


def test_folder_of_an_archive(tmp_path):
    folder = tmp_path / "Toy"
    folder.mkdir()
    write(folder / "Toy_TRAIN.ts", TS)
    write(folder / "Toy_TEST.ts", TS.replace("1,2,3,4:a", "9,9,9,9:a"))
    found = read(folder)
    assert found.test is not None and found.test.values[0, 0, 0] == 9
    write(folder / "Toy_eq_TRAIN.ts", TS)
    assert len(read(folder).train) == 3  # the one with the folder's own name
    folder = folder.rename(tmp_path / "other")
    refused("holds both", read, folder)


def test_npz(tmp_path):
    x = some_values(6)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([1, -1, 1, -1, 1, -1]))
    series = read(tmp_path / "a.npz").train
    assert series.classes == ("-1", "1")
    np.testing.assert_array_equal(series.labels, [1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(series.values, x)
    np.savez(
        tmp_path / "b.npz", x_train=x[:, 0], y_train=list("ababab"), X_test=x[:2, 0],
        y_test=np.array([b"a", b"b"]),
    )  # fmt: skip
    found = read(tmp_path / "b.npz")
    assert found.train.shape == (1, 20) and found.test is not None
    assert found.test.classes == ("a", "b")


def test_wide_tables_say_the_same(tmp_path):
    write(tmp_path / "t.csv", "t0,t1,t2,label\n1,2,3,up\n4,,6,down\n")
    table = pa.table({"t0": [1.0, 4], "t1": [2, None], "t2": [3, 6], "label": ["up", "down"]})
    pq.write_table(table, tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        series = read(tmp_path / name).train
        assert series.classes == ("down", "up") and series.shape == (1, 3)
        np.testing.assert_array_equal(series.values[:, 0], np.float32([[1, 2, 3], [4, NAN, 6]]))
    assert (
        read(tmp_path / "t.csv").train.fingerprint == read(tmp_path / "t.parquet").train.fingerprint
    )


def test_long_table(tmp_path):
    text = (
        "run,when,x,y,activity\na,0,1,2,walk\nb,0,5,6,sit\na,1,3,4,walk\nb,3,7,8,sit\nb,4,9,9,sit\n"
    )
    path = write(tmp_path / "t.csv", text)
    series = read(path, series_column="run", time_column="when").train
    assert series.classes == ("sit", "walk") and series.shape == (2, 3)
    np.testing.assert_array_equal(series.values[0], np.float32([[1, 3, NAN], [2, 4, NAN]]))
    np.testing.assert_array_equal(series.labels, [1, 0])
    wrong = write(tmp_path / "u.csv", text.replace("a,1,", "a,-1,"))
    refused("series 'a': timestamp -1", read, wrong, series_column="run", time_column="when")
    wrong = write(tmp_path / "u.csv", text.replace("4,walk", "4,sit"))
    refused("several labels", read, wrong, series_column="run", time_column="when")
    wrong = write(tmp_path / "u.csv", text.replace("a,1,", ",1,"))
    refused("data row 2 does not say which series", read, wrong, series_column="run")
    refused("no series column 'rum'. Did you mean 'run'?", read, path, series_column="rum")
    refused("for the long form", read, path, time_column="when")


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("2.5", "2.5x", "line 10: '2.5x' is not a number"),
        ("2.5", "inf", "the series of line 10 is infinite"),
        ("2.5", "1e39", "beyond single precision, at step 0 of channel 0"),
        ("4:a\n1", "4:c\n1", "line 8: label 'c' is not one of the 2 classes"),
        ("0,4:a", "0,4", "line 10 does not end in ':' and one label"),
        ("0,4:a", "0,4,5:a", "has 5 steps where the header says 4"),
        ("0,4:a", "0,4:1,2,3,4:a", "has 2 channels where the header says 1"),
        ("@data\n", "", "line 7: series begin before a line '@data'"),
        ("@classLabel true b a\n", "", "has no labels"),
        ("@classLabel true b a", "@classLabel false", "'a' is not a number"),
        ("@classLabel true b a", "@classLabel true", "names no classes"),
        ("@classLabel true b a", "@targetLabel true", "line 8 has the label 'a', which is"),
        ("@univariate true", "@univariate yes", "line 3: @univariate must say true or false"),
        ("@classLabel true b a", "@", "has no labels"),
        ("@seriesLength 4", "@seriesLength four", "line 5: @seriesLength needs a whole number"),
        ("1,?,NaN,5", "?,?,?,?", "the series of line 9 has no values at all"),
    ],
)
def test_bad_ts_is_refused_in_one_line(tmp_path, old, new, says):
    path = write(tmp_path / "t.ts", TS.replace(old, new, 1))
    assert str(path) in refused(says, read, path)


def test_empty_and_foreign_files_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("has no line '@data'", read, write(tmp_path / "a.ts", ""))
    refused("holds no series", read, write(tmp_path / "a.ts", "@classLabel true a b\n@data\n"))
    (tmp_path / "b.ts").write_bytes(b"\xff\xfe\x00\x01")
    refused("is not readable text", read, tmp_path / "b.ts")
    refused("does not exist", read, tmp_path / "none.ts")
    refused("of no known form ('.txt')", read, write(tmp_path / "a.txt", ""))
    refused("holds no series files", read, empty)
    refused("is not a readable .npz", read, write(tmp_path / "a.npz", "no"))
    refused("is not readable Parquet", read, write(tmp_path / "a.parquet", "no"))
    refused("unknown series format", read_series, tmp_path / "a.txt", format="idx",
            options=SeriesOptions())  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no series"),
        ("a,b,label\n", "holds no series"),
        ("1,2,3\n4,5,6\n", "all numbers: add a header"),
        ("a,b,label\n1,2\n", "line 2: 2 cells where the header has 3"),
        ("a,b,label\n1,two,u\n", "line 2, column 'b': 'two' is not a number"),
        ("a,b,c\n1,2,3\n", "has no column of labels"),
        (",a,label\n0,1,u\n", "or one has none"),
        ("a,a,label\n0,1,u\n", "two columns have the same name"),
        ("a,b,label\n1,2,0.25\n3,4,0.5\n", "write data.target: values"),
        ("a,b,label\n1,2,u\n3,4,\n", "line 3 has no label"),
        ("a,label\n1,u\n", "series of 1 steps"),
        ("label\nu\n", "no columns of values"),
        ("a,b,label\n1,2,u\n,,v\n", "line 3 has no values at all"),
    ],
)
def test_bad_csv_is_refused_in_one_line(tmp_path, text, says):
    refused(says, read, write(tmp_path / "t.csv", text))


def test_bad_arrays_are_refused(tmp_path):
    x, y = some_values(6), np.arange(6) % 2
    for arrays, says in [
        ({"y": y}, "name the series x"),
        ({"x": x, "y": y[:5]}, "6 series but 5 labels"),
        ({"x": x, "y": y + 0.5}, "write data.target: values"),
        ({"x": x, "y": np.eye(6) * 2}, "not one class a series"),
        ({"x": x.astype(str), "y": y}, "are not numbers"),
        ({"x": x[:, :, :, None], "y": y}, "are not series"),
        ({"x": x[0, 0], "y": y}, "are not series"),
        ({"x": x[:0], "y": y}, "holds no series"),
        ({"x": np.float32(1), "y": y}, "a single number"),
    ]:
        np.savez(tmp_path / "t.npz", **arrays)
        refused(says, read, tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", x=np.array([object()]), y=y)
    refused("plain arrays", read, tmp_path / "t.npz")


def test_a_dead_channel_and_uneven_channels_are_refused():
    x = some_values(6)
    x[:, 1] = NAN
    refused("channel 1 of 2 has no values in any series", make_series, x, [0, 1] * 3, source="s")
    items = [np.ones((2, 4)), np.ones((3, 4))]
    refused("series 1 has 3 channels where series 0 has 2", make_series, items, "ab", source="s")


# --- splits ----------------------------------------------------------------------------------


def test_splits_are_stratified_and_do_not_depend_on_order():
    series = some_series(60)
    data = arrange(series, seed=3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [42, 6, 12]
    for part in (data.train, data.validation, data.test):
        assert len(np.unique(np.bincount(part.labels))) == 1
    mixed = arrange(series.take(np.random.default_rng(0).permutation(60)), seed=3)
    kept = {row.tobytes() for row in data.test.values}
    assert kept == {row.tobytes() for row in mixed.test.values}
    assert kept != {row.tobytes() for row in arrange(series, seed=4).test.values}


def test_the_smallest_set_has_every_class_in_every_split():
    data = arrange(some_series(9))
    for part in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(np.bincount(part.labels), [1, 1, 1])
    refused("has 2 series of class '2' where 3 are needed", arrange, some_series(8))
    refused("one class only ('0')", arrange, make_series(some_values(4), [0] * 4, source="s"))


def test_equal_series_fall_on_the_same_side():
    x = np.repeat(some_values(10), 4, axis=0)
    stays, taken = take_out(make_series(x, [0] * 40, source="s"), 0.3, seed=0, split="test")
    assert not {r.tobytes() for r in stays.values} & {r.tobytes() for r in taken.values}


def test_test_path_wins_and_its_classes_are_matched_by_name(tmp_path):
    x = some_values(24)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=list("abc") * 8, x_test=x[:3] + 9,
             y_test=list("abc"))  # fmt: skip
    np.savez(tmp_path / "b.npz", x=x[:2] + 1, y=list("cb"))
    assert len(load(tmp_path / "a.npz").test) == 3
    data = load(tmp_path / "a.npz", tmp_path / "b.npz")
    np.testing.assert_array_equal(data.test.labels, [2, 1])
    assert data.test.classes == data.train.classes == ("a", "b", "c")
    np.savez(tmp_path / "b.npz", x=x[:2] + 1, y=list("cd"))
    refused("has the class 'd', which is not among", load, tmp_path / "a.npz", tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", x=x[:2, :1], y=list("cb"))
    refused("have 2 channels and of", load, tmp_path / "a.npz", tmp_path / "b.npz")


def test_test_series_that_were_trained_on():
    series = some_series(60)
    refused("so the test score would be worthless", arrange, series, test=series.take(np.arange(9)))
    other = make_series(some_values(59, seed=1), np.arange(59) % 3, source="other")
    values = np.concatenate([other.values, series.values[:1]])
    one = make_series(values, np.arange(60) % 3, source="other")
    assert arrange(series, test=one).notes[0].startswith("1 of 60 test series of other")
    still = make_series(np.ones((6, 2, 20)), np.arange(6) % 3, source="still")
    rest = make_series(np.concatenate([series.values, np.ones((1, 2, 20))]), [*series.labels, 0],
                       source="rest")  # fmt: skip
    assert arrange(rest, test=still).notes == ()


def test_length_cuts_pads_and_says_so():
    series = some_series(30)
    data = arrange(series, length=8, hop=4)
    assert data.train.shape == (2, 8) and data.hop == 4 and data.train.lengths.max() == 8
    assert "30 of 30 training series of made are cut to the 8 steps of data.length" in data.notes
    data = arrange(series, length=25)
    assert data.train.shape == (2, 25) and np.isnan(data.train.values[:, :, 20:]).all()
    assert data.notes == () and data.hop == 25
    longer = make_series(some_values(6, steps=24, seed=1), np.arange(6) % 3, source="longer")
    data = arrange(series, test=longer)
    assert data.test.shape == (2, 20) and "6 of 6 test series of longer" in data.notes[0]
    for wrong in ({"length": 1}, {"hop": 0}, {"validation_share": 1.0}):
        with pytest.raises(RecipeError):
            arrange(series, **wrong)
    late = some_values(30)
    late[4, :, :10] = NAN
    late = make_series(late, np.arange(30) % 3, source="late")
    refused("series 4 has no values in its first 8 steps", arrange, late, length=8)


def test_channels_and_steps_that_look_exchanged_are_noted():
    assert "wrong way round" in arrange(some_series(30, channels=20, steps=5)).notes[0]


# --- normalisation and batches ---------------------------------------------------------------


def test_the_task_says_what_the_artifact_needs(tmp_path):
    task = find_task("series")
    np.savez(tmp_path / "a.npz", x=some_values(40, channels=5), y=np.arange(40) % 2)
    data = task.load(tmp_path / "a.npz", hop=7, seed=1, validation_share=0.2)
    assert task.input_shape(data.train) == (5, 20)
    assert task.knobs(data.train) == {"channels": 5, "length": 20}
    meta = task.meta(data, task.normalisation(data.train))
    assert meta["details"] == {"length": 20, "channels": 5, "hop": 7, "rate": None}
    assert (meta["input"], meta["layout"], meta["scale"]) == ("series", "NCT", 1.0)
    values = data.test.values[:3]
    by_hand = (values - np.float32(meta["mean"])[:, None]) / np.float32(meta["std"])[:, None]
    batch = task.batch(
        data.test, np.arange(3), view=0, seed=0, augment=NO_SERIES_AUGMENT,
        normalisation=task.normalisation(data.train),
    )  # fmt: skip
    np.testing.assert_allclose(batch.inputs.numpy(), by_hand, rtol=1e-5, atol=1e-6)
    assert task.decisions_an_hour(data) is None
    streamed = task.load(tmp_path / "a.npz", hop=7, rate=14.0, seed=1, validation_share=0.2)
    assert task.decisions_an_hour(streamed) == 7200
    assert task.beside(data) == {} and task.tokens(data.train) is None


def test_show_draws_a_small_plot():
    x = some_values(2, channels=6)
    x[1, 0] = 3
    x[1, 1, 1:] = NAN
    x[1, 2] = NAN
    task, series = find_task("series"), make_series(x, [0, 1], source="s")
    for i in range(2):
        uri = task.show(series, i)
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert image.size == (192, 96) and len(image.convert("RGB").getcolors()) > 3
        assert uri == task.show(series, i)


def test_fingerprint_is_of_the_content_alone():
    a, b = some_series(), some_series()
    assert a.fingerprint == b.fingerprint
    other = make_series(some_values() + 1, np.arange(30) % 3, source="made")
    assert len({a.fingerprint, other.fingerprint, a.take(np.arange(29, -1, -1)).fingerprint}) == 3
    named = make_series(some_values(), [f"c{i % 3}" for i in range(30)], source="elsewhere")
    assert named.fingerprint != a.fingerprint
    zeros = np.zeros((2, 1, 4), np.float32)
    minus = make_series(-zeros, [0, 1], source="m")
    assert minus.fingerprint == make_series(zeros, [0, 1], source="z").fingerprint
