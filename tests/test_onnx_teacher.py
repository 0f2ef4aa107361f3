"""Teachers in ONNX files."""

from pathlib import Path

import onnx
import pytest
import torch
from test_teachers import SHAPE, load, refused, write_onnx

from tutelage.errors import TeacherError
from tutelage.teach.checks import PROBABILITY_NOTE, REPEAT_NOTE
from tutelage.teach.onnx_teacher import OnnxTeacher


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_onnx_teacher_says_what_the_file_says(tmp_path, batch):
    path = tmp_path / "t.onnx"
    weight = write_onnx(path, batch=batch)
    asked, x = load(str(path)), torch.rand(6, *SHAPE)
    assert isinstance(asked, OnnxTeacher) and asked.taps == () and asked.notes == ()
    read = asked.read(x)
    assert torch.allclose(read.decision, x.flatten(1) @ weight, atol=1e-4)
    assert read.features == ()
    with pytest.raises(TeacherError, match="decisions only. Use losses"):
        asked.read(x, features=True)


def test_onnx_probabilities_and_repeated_channels_are_noted(tmp_path):
    path = tmp_path / "t.onnx"
    weight = write_onnx(path, channels=3, softmax=True)
    assert "teacher.channels: repeat" in refused(str(path))
    asked, x = load(str(path), channels="repeat"), torch.rand(2, *SHAPE)
    assert asked.notes == (REPEAT_NOTE, PROBABILITY_NOTE)
    wanted = (x.expand(-1, 3, -1, -1).flatten(1) @ weight).softmax(1)
    assert torch.allclose(asked.read(x).decision.softmax(1), wanted, atol=1e-5)


def test_onnx_teachers_that_do_not_fit(tmp_path):
    path = tmp_path / "t.onnx"
    write_onnx(path, classes=7)
    assert "among 7 classes and the data has 10" in refused(str(path))
    write_onnx(path)
    said = refused(str(path), image_shape=(1, 9, 9))
    assert "reads images of 1 x 8 x 8" in said and "has 1 x 9 x 9" in said
    assert "holds its own weights" in refused(str(path), taps=["a"])
    path.write_bytes(b"no protobuf at all")
    assert "cannot be opened" in refused(str(path))
    assert "That folder has: t.onnx" in refused(str(tmp_path / "s.onnx"))


def test_onnx_nan_names_the_batch(tmp_path):
    write_onnx(tmp_path / "t.onnx", poison=True)
    asked = load(str(tmp_path / "t.onnx"))
    with pytest.raises(TeacherError, match="says NaN at batch 0 .*3 of 3 examples"):
        asked.read(torch.rand(3, *SHAPE))


def test_onnx_fingerprint_follows_the_file_and_its_external_weights(tmp_path):
    path = tmp_path / "t.onnx"
    write_onnx(path)
    first = load(str(path)).fingerprint
    assert load(str(path)).fingerprint == first
    onnx.save(
        onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="e.bin",
        size_threshold=0,
    )  # fmt: skip
    one = load(str(tmp_path / "e.onnx")).fingerprint
    data = bytearray(Path(tmp_path / "e.bin").read_bytes())
    data[2] ^= 1
    (tmp_path / "e.bin").write_bytes(bytes(data))
    assert len({first, one, load(str(tmp_path / "e.onnx")).fingerprint}) == 3
