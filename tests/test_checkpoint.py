"""A checkpoint comes back as it was, and any altered byte of it is noticed."""

import math
import random

import pytest
import torch
from safetensors.torch import save_file

from tutelage.errors import CorruptFileError, DiskError
from tutelage.train.checkpoint import digest, load_state, save_state


def state():
    draw = torch.Generator().manual_seed(0)
    return {
        "modules": [{"weight": torch.randn(3, 4, generator=draw), "count": torch.tensor(7)}, {}],
        "optimizer": {
            "state": {0: {"step": torch.tensor(2.0)}, 1: {"half": torch.ones(2).bfloat16()}},
            "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "foreach": None}],
        },
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "step": 12,
        "name": "état",
        "flags": [True, False, None],
        "loss": [1e-300, math.inf],
    }


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "deep" / "state.safetensors"
    save_state(target, state())
    return target


def compare(one, other, place="state"):
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            compare(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, item in enumerate(one):
            compare(item, other[number], f"{place}.{number}")
    else:
        assert one == other and type(one) is type(other), place


def test_a_state_comes_back_as_it_was(path):
    compare(state(), load_state(path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nan_comes_back(tmp_path):
    save_state(tmp_path / "s", {"loss": math.nan, "t": torch.tensor([math.nan])})
    found = load_state(tmp_path / "s")
    assert math.isnan(found["loss"]) and found["t"].isnan().all()


def test_the_same_state_gives_the_same_bytes(path, tmp_path):
    save_state(tmp_path / "again", state())
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_what_is_saved_does_not_share_memory_with_what_goes_on(tmp_path):
    weight = torch.zeros(3)
    save_state(tmp_path / "s", {"a": weight, "same": weight, "view": weight[:2]})
    weight += 1
    assert all((t == 0).all() for t in load_state(tmp_path / "s").values())


def test_any_kind_of_layout_is_kept_by_value(tmp_path):
    kernel = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_state(tmp_path / "s", {"k": kernel, "t": kernel[0, 0].T})
    found = load_state(tmp_path / "s")
    assert torch.equal(found["k"], kernel) and torch.equal(found["t"], kernel[0, 0].T)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptFileError, match="delete it and run again"):
        load_state(path)


def test_every_flipped_bit_is_noticed_or_means_nothing(path):
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = [*range(10), *draw.sample(range(10, length), 150), *range(length, len(whole))]
    noticed = 0
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
        try:
            compare(load_state(path), state())  # padding between parts of the header
        except CorruptFileError:
            noticed += 1
            continue
        assert place < length
    assert noticed > 0.9 * len(places)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "s")
    with pytest.raises(CorruptFileError, match="is not a checkpoint"):
        load_state(tmp_path / "s")


def test_a_folder_that_cannot_be_written_is_named_and_the_old_file_stays(path, monkeypatch):
    whole = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tutelage.files.os.replace", full)
    with pytest.raises(DiskError, match="no space left"):
        save_state(path, {"step": 13})
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_digest_follows_name_type_shape_and_bytes():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"c": torch.zeros(2, 3), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0000001])},
    ]
    found = {digest(base), *(digest(other) for other in others)}
    found |= {digest(base, "x"), digest(base, "x", "y"), digest(base, "xy")}
    assert len(found) == 8
    assert digest(dict(reversed(base.items()))) == digest(base)
