"""The signal cache: asked once, found again by content, checked, and equal to asking live."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage.errors import CorruptFileError, DiskError, TeacherError
from tutelage.progress import Silent
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.teach import signals
from tutelage.teach.lenses import Lens
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.types import Batch, Reading
from tutelage.units import format_quantity

COUNT, CLASSES, PROBE = 21, 4, 2
SPEC = ConvNetSpec(image=(1, 8, 8), classes=CLASSES, widths=(4, 6), depths=(1, 1))


class Teacher:
    """Says what can be told from the inputs; counts what it is asked, and may fail."""

    def __init__(self, fingerprint="teacher", big=(), stop_after=None, poison=None):
        self.fingerprint, self.big, self.stop_after = fingerprint, big, stop_after
        self.poison, self.asked = poison, []

    def read(self, inputs, *, features, maps, keep=None):
        flat = inputs.flatten(1)
        for number in flat[:, 0].tolist():
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(number)
        decision = torch.stack([flat.sum(1), flat[:, 0], -flat[:, 0], flat.square().sum(1)], 1)
        feature = flat[:, :3].clone()
        for number in self.big:
            feature[flat[:, 0] == number] = 1e6
        if self.poison is not None:
            decision[flat[:, 0] == self.poison] = torch.nan
        return Reading(
            decision=decision,
            features=(feature, flat[:, :2] * 0.5) if features else (),
            maps=(inputs[:, 0] ** 2,) if maps else (),
        )


def batch(index, view):
    """The first pixel of example i in view v is i + v / 8, exact in half precision."""
    inputs = torch.arange(64).view(1, 1, 8, 8) / 64 + torch.zeros(len(index), 1, 8, 8)
    inputs[:, 0, 0, 0] = index + view / 8
    return Batch(inputs=inputs, labels=None, index=index, view=view)


SPLIT = Split(name="train", count=COUNT, content="data", batch=batch)


def cache(folder, teacher=None, *, split=SPLIT, views=2, features=True, maps=True):
    teacher = teacher or Teacher()
    return SignalCache(folder, split, views=views, features=features, maps=maps, teacher=teacher)


@pytest.fixture
def shards(monkeypatch):
    """Make shards of five examples: 5, 5, 5, 5, 1."""
    monkeypatch.setattr(signals, "_SHARD_BYTES", 5 * (4 * 4 + 3 * 2 + 2 * 2 + 64 * 2) + 1)
    monkeypatch.setattr(signals, "_BATCH", 2)


def tensors(reading):
    return [reading.decision, *reading.trajectory, *reading.features, *reading.maps]


def same(one, other):
    assert len(tensors(one)) == len(tensors(other))
    for mine, theirs in zip(tensors(one), tensors(other), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_every_example_and_view_is_asked_once(tmp_path, shards):
    held = cache(tmp_path)
    assert held.block == 5
    paths = held.fill(Silent())
    want = [index + view / 8 for view in range(2) for index in range(COUNT)]
    assert held.teacher.asked[PROBE:] == want
    assert len(paths) == 10 and all(path.exists() for path in paths)


def test_a_second_fill_asks_nothing(tmp_path, shards):
    first = cache(tmp_path)
    paths = first.fill(Silent())
    before = {path: path.stat().st_mtime_ns for path in paths}
    again = cache(tmp_path)
    assert again.fill(Silent()) == paths
    assert len(again.teacher.asked) == PROBE
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    same(again.read(torch.arange(COUNT), 1), first.read(torch.arange(COUNT), 1))


def test_more_views_ask_for_the_new_ones_only(tmp_path, shards):
    cache(tmp_path).fill(Silent())
    more = cache(tmp_path, views=3)
    more.fill(Silent())
    assert more.teacher.asked[PROBE:] == [index + 2 / 8 for index in range(COUNT)]


@pytest.mark.parametrize("after", [0, 4, 5, 13, 24, 41])
def test_a_stop_loses_at_most_one_shard(tmp_path, shards, after):
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, Teacher(stop_after=PROBE + after)).fill(Silent())
    again = cache(tmp_path)
    again.fill(Silent())
    per_view = [5, 10, 15, 20, 21]
    kept = max([0, *(n for n in per_view + [21 + n for n in per_view] if n <= after)])
    assert len(again.teacher.asked) == PROBE + 2 * COUNT - kept
    whole = cache(tmp_path / "whole")
    whole.fill(Silent())
    for view in range(2):
        same(again.read(torch.arange(COUNT), view), whole.read(torch.arange(COUNT), view))


class Bar(Silent):
    def __init__(self):
        self.total = self.done = 0

    def start(self, label, total, done=0):
        self.total, self.done = total, done

    def advance(self, steps=1, note=""):
        self.done += steps


@pytest.mark.parametrize("stop", [0, 13, 30])
def test_the_bar_ends_at_its_total(tmp_path, shards, stop):
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, Teacher(stop_after=PROBE + stop)).fill(Silent())
    bar = Bar()
    cache(tmp_path).fill(bar)
    assert bar.total == bar.done == 2 * COUNT


@pytest.mark.parametrize("order", [[3], [20, 0, 7, 7, 19], list(range(COUNT))[::-1]])
def test_many_shards_read_as_one(tmp_path, shards, monkeypatch, order):
    many = cache(tmp_path / "many")
    many.fill(Silent())
    monkeypatch.undo()
    one = cache(tmp_path / "one")
    assert one.block == COUNT
    one.fill(Silent())
    for view in range(2):
        found = many.read(torch.tensor(order), view)
        same(found, one.read(torch.tensor(order), view))
        assert found.decision[:, 1].tolist() == [index + view / 8 for index in order]


@pytest.mark.parametrize("big", [(2,), (18,), (2, 18)])
def test_values_too_large_for_half_precision_are_kept_whichever_shard_they_are_in(
    tmp_path, shards, big
):
    held = cache(tmp_path, Teacher(big=big), views=1)
    held.fill(Silent())
    for order in (torch.arange(COUNT), torch.arange(COUNT).flip(0)):
        found = held.read(order, 0).features[0]
        assert found.dtype == torch.float32
        want = [1e6 if index in big else float(index) for index in order.tolist()]
        assert found[:, 0].tolist() == want


def test_bytes_are_told_before_and_are_what_is_written(tmp_path, shards):
    held = cache(tmp_path)
    assert held.bytes_per_example == 4 * 4 + 3 * 2 + 2 * 2 + 64 * 2
    assert held.total_bytes == 2 * COUNT * held.bytes_per_example
    line = held.describe()
    whole = format_quantity(held.total_bytes, "B")
    assert f"{COUNT} examples x 2 views x {held.bytes_per_example} B = {whole} in" in line
    assert not held.folder.exists()
    paths = held.fill(Silent())
    stored = sum(t.nbytes for path in paths for t in load_file(path).values())
    assert stored == held.total_bytes
    for path in paths:
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size - header <= 5 * held.bytes_per_example
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in paths)
    assert sum(path.stat().st_size for path in paths) == held.total_bytes + headers


def test_only_what_is_asked_for_is_stored(tmp_path):
    held = cache(tmp_path, features=False, maps=False)
    held.fill(Silent())
    found = held.read(torch.arange(3), 0)
    assert found.features == found.maps == found.trajectory == ()
    assert held.bytes_per_example == 16


def spoil(path, how):
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(whole[:-1])
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_an_altered_shard_is_refused(tmp_path, shards, how):
    paths = cache(tmp_path).fill(Silent())
    spoil(paths[3], how)
    again = cache(tmp_path)
    with pytest.raises(CorruptFileError, match="delete the folder"):
        again.fill(Silent())
    assert len(again.teacher.asked) == PROBE


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"key": "x", "shards": {}}', '"x"', "\x00"])
def test_an_altered_manifest_is_refused(tmp_path, text):
    held = cache(tmp_path)
    held.fill(Silent())
    (held.folder / "manifest.json").write_text(text)
    with pytest.raises(CorruptFileError, match="delete"):
        cache(tmp_path).fill(Silent())


def test_a_disk_too_small_is_refused_before_the_teacher_is_asked(tmp_path, shards, monkeypatch):
    held = cache(tmp_path / "not" / "yet")
    usage = type("Usage", (), {"free": held.total_bytes})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r"lower augment\.views"):
        held.fill(Silent())
    assert len(held.teacher.asked) == PROBE and not held.folder.exists()
    monkeypatch.undo()
    held.fill(Silent())
    usage.free = 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    cache(tmp_path / "not" / "yet").fill(Silent())  # nothing is missing: nothing is needed


def test_a_teacher_that_says_nan_is_refused_where_it_does(tmp_path, shards):
    with pytest.raises(TeacherError, match="examples 12 to 13 of train"):
        cache(tmp_path, Teacher(poison=12.0)).fill(Silent())
    with pytest.raises(TeacherError, match="examples 0 to 1"):
        cache(tmp_path, Teacher(poison=1.0))


def test_lenses_are_applied_on_reading(tmp_path, shards):
    held = cache(tmp_path)
    held.fill(Silent())
    draw = torch.Generator().manual_seed(0)
    held.lenses = tuple(
        Lens(weight=torch.randn(CLASSES, n, generator=draw), bias=torch.ones(CLASSES), agreement=0)
        for n in (3, 2)
    )
    found = held.read(torch.tensor([9, 2]), 1)
    for said, lens, feature in zip(found.trajectory, held.lenses, found.features, strict=True):
        want = feature.float() @ lens.weight.T + 1
        torch.testing.assert_close(said, want)


def real(folder, **options):
    torch.manual_seed(0)
    teacher = TorchTeacher(ConvNet(SPEC), classes=CLASSES, image_shape=(1, 8, 8))
    return cache(folder, teacher, **options), teacher


def test_live_signals_equal_the_cache(tmp_path, shards):
    held, teacher = real(tmp_path)
    held.fill(Silent())
    live = LiveSignals(teacher, features=True, maps=True)
    held.lenses = live.lenses = tuple(
        Lens(weight=torch.ones(CLASSES, n) / n, bias=torch.zeros(CLASSES), agreement=0)
        for n in (4, 6)
    )
    index = torch.tensor([20, 3, 11])
    for view in range(2):
        stored, said = held.read(index, view), live.read(batch(index, view).inputs)
        torch.testing.assert_close(stored.decision, said.decision, rtol=1e-5, atol=1e-6)
        assert len(said.trajectory) == len(said.features) == len(said.maps) == 2
        for mine, theirs in zip(tensors(stored), tensors(said), strict=True):
            torch.testing.assert_close(mine.float(), theirs, rtol=2e-3, atol=2e-3)


def test_the_key_follows_teacher_data_and_what_is_stored(tmp_path):
    held, teacher = real(tmp_path)
    assert real(tmp_path)[0].key == held.key
    module = teacher.module
    flat = module.head.weight.data.view(-1).view(torch.uint8)
    flat[5] ^= 1  # one bit of one byte
    changed = TorchTeacher(module, classes=CLASSES, image_shape=(1, 8, 8))
    other = Split(name="train", count=COUNT, content="dato", batch=batch)
    keys = {
        held.key, cache(tmp_path, changed).key, cache(tmp_path, teacher, split=other).key,
        cache(tmp_path, teacher, maps=False).key, cache(tmp_path, teacher, features=False).key,
    }  # fmt: skip
    assert len(keys) == 5
    assert cache(tmp_path, teacher, views=7).key == held.key
    assert held.folder == Path(tmp_path) / held.key[:16]
