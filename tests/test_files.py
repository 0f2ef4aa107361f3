"""Writing leaves the old file or the new one, never a part; reading tells damage in one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage import files
from tutelage.errors import CorruptFileError, DiskError
from tutelage.files import (
    hash_json,
    read_json,
    read_tensors,
    remove_leftovers,
    replace_atomically,
    sha256_file,
    write_atomically,
    write_json,
    write_tensors,
)

TENSORS = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.tensor(7), "c": torch.ones(0, 2)}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("data", [b"\x00new", "n\u00e9w", ""])
def test_the_new_file_stands_whole_and_alone(tmp_path, data):
    path = tmp_path / "deep" / "er" / "file"
    write_atomically(path, "old")
    write_atomically(path, data)
    assert contents(path.parent) == {"file": data if isinstance(data, bytes) else data.encode()}


# Every call to the system that writing makes, by the order in which it makes them.
STEPS = [
    ("mkstemp", 0), ("open", 0), ("write", 0), ("fsync", 0), ("fsync", 1), ("chmod", 0),
    ("replace", 0),
]  # fmt: skip


def break_at(monkeypatch, step: str, nth: int, error: BaseException) -> list[str]:
    """Make the `nth` call of one step raise; return the list in which the raise is noted."""
    hit: list[str] = []
    owner = {"mkstemp": files.tempfile, "open": Path, "write": Path}.get(step, os)
    name = "open" if step == "write" else step
    real = getattr(owner, name)
    calls = iter(range(100))

    def stop() -> None:
        hit.append(step)
        raise error

    def fake(*args, **options):
        mine = next(calls) == nth
        if mine and step != "write":
            stop()
        file = real(*args, **options)
        if mine and step == "write":
            whole = file.write

            def half(data):
                whole(data[: len(data) // 2])
                file.flush()
                stop()

            return Half(file, half)
        return file

    monkeypatch.setattr(owner, name, fake)
    return hit


class Half:
    """An open file that writes half and then fails."""

    def __init__(self, file, write):
        self.file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize(("step", "nth"), STEPS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, step, nth, number):
    path = tmp_path / "file"
    write_atomically(path, "old and whole")
    hit = break_at(monkeypatch, step, nth, OSError(number, os.strerror(number)))
    with pytest.raises(DiskError) as caught:
        write_atomically(path, "new " * 50)
    monkeypatch.undo()
    assert hit == [step]
    assert contents(tmp_path) == {"file": b"old and whole"}
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("no space left" in str(caught.value)) is full and "--run" in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_synced_leaves_the_new_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    hit = break_at(monkeypatch, "fsync", 2, OSError(errno.EIO, "x"))
    with pytest.raises(DiskError):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert hit and contents(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize(("step", "nth"), STEPS)
def test_an_interrupt_leaves_the_old_file_and_goes_through(tmp_path, monkeypatch, step, nth):
    path = tmp_path / "file"
    write_atomically(path, "old")
    break_at(monkeypatch, step, nth, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"file": b"old"}


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        replace_atomically(path, write)
    assert contents(tmp_path) == {"file": b"old"}


def test_a_folder_in_the_way_is_a_disk_error(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "file" / "below"):
        with pytest.raises(DiskError, match="cannot write"):
            write_atomically(path, "new")
    assert sorted(contents_of_all(tmp_path)) == ["file", "taken"]


def contents_of_all(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*")]


KILLED = """
import os, sys
from pathlib import Path
from tutelage import files
real, count = os.fsync, int(sys.argv[2])
def fsync(handle):
    global count
    if count == 0:
        os._exit(9)
    count -= 1
    real(handle)
os.fsync = fsync
files.write_atomically(Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize(("after", "left"), [(0, b"old"), (1, b"old"), (2, b"new")])
def test_a_kill_leaves_the_old_or_the_new(tmp_path, after, left):
    path = tmp_path / "file"
    write_atomically(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(after)])
    assert done.returncode == 9 and path.read_bytes() == left
    remove_leftovers(tmp_path)
    assert contents(tmp_path) == {"file": left}


def test_only_our_own_leftovers_are_removed(tmp_path):
    theirs = ["x.tmp", ".hidden.tmp", "notes.tutelage.tmp", "sub/.x.tmp"]
    ours = [".run.json.ab12.tutelage.tmp", "sub/deep/.m.safetensors.zz.tutelage.tmp"]
    for name in theirs + ours:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(n for n in contents_of_all(tmp_path) if "tmp" in n) == sorted(theirs)


def test_json_comes_back_and_nan_does_not_go_out(tmp_path):
    path = tmp_path / "x.json"
    data = {"a": [1, 2.5, None, "\u00e9"], "b": {}}
    write_json(path, data)
    assert read_json(path) == data
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"x": bad})
    assert read_json(path) == data


@pytest.mark.parametrize("damage", [b"", b"{", b'{"a": 1}}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_told_in_one_line(tmp_path, damage):
    path = tmp_path / "x.json"
    path.write_bytes(damage)
    with pytest.raises(CorruptFileError, match="is damaged") as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, read, monkeypatch):
    (tmp_path / "folder").mkdir()
    for name in ("missing", "folder"):
        with pytest.raises(CorruptFileError, match=name) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 5


def test_a_failing_read_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "x.json"
    path.write_text("{}")
    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(CorruptFileError, match="Input/output error"):
        read_json(path)


def test_tensors_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    odd = {"t": torch.arange(6.0).view(2, 3).T, "half": torch.randn(3).bfloat16(), **TENSORS}
    for note in (None, {"step": 3, "who": "\u00e9"}):
        write_tensors(path, odd, note)
        found, said = read_tensors(path)
        assert said == note and found.keys() == odd.keys()
        for name, tensor in odd.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_tied_and_overlapping_tensors_can_be_written(tmp_path):
    base = torch.arange(10.0)
    tied = {"a": base, "b": base, "c": base[2:6], "d": base[4:]}
    write_tensors(tmp_path / "x", tied)
    found, _ = read_tensors(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tied.items())


def test_every_truncation_of_a_tensor_file_is_found(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, TENSORS, {"n": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError) as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    write_tensors(path, TENSORS, {"n": 1})
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        read_tensors(path)  # a flip inside a number is the hash's to find
    except CorruptFileError as error:
        assert "\n" not in str(error)


def test_hashes(tmp_path):
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert sha256_file(empty).startswith("e3b0c44298fc1c149afbf4c8996fb924")
    big = tmp_path / "big"
    big.write_bytes(b"ab" * 2_000_000)
    other = tmp_path / "other"
    other.write_bytes(b"ab" * 1_999_999 + b"aa")
    assert sha256_file(big) != sha256_file(other)
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    assert hash_json({"a": 1, "b": [2]}) == hash_json(json.loads('{"b":[2],"a":1}'))
    assert len({hash_json(x) for x in (1, 1.5, "1", [1], [[1]], None, {"1": 1}, True)}) == 8
