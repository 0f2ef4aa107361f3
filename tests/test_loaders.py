"""What is found in loaders of any kind, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tutelage.errors import DataError
from tutelage.progress import Silent
from tutelage.tasks.given import loaders
from tutelage.tasks.given.loaders import Found, read_loader
from tutelage.tasks.given.task import arrange

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


def read(given: Any) -> Found:
    return read_loader(given, name="the data", seed=0, progress=Silent())


def all_of(found: Found, view: int = 0) -> tuple[Any, Any]:
    return found.source.read(np.arange(len(found.keys)), view)


class Rows(Dataset):
    """Items made by a function of the index."""

    def __init__(self, item: Any, count: int = 30) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


class Stream(IterableDataset):
    """Single examples, one after the other."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Batches:
    """An iterable of batches that is nothing of torch's."""

    def __iter__(self) -> Iterator[Any]:
        return ((X[i : i + 7], Y[i : i + 7]) for i in range(0, 30, 7))


ALIKE = {
    "data set": lambda: TensorDataset(X, Y),
    "list": lambda: list(zip(X, Y.tolist(), strict=True)),
    "shuffled loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True),
    "loader that drops": lambda: DataLoader(TensorDataset(X, Y), batch_size=8, drop_last=True),
    "stream": lambda: Stream(),
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=8),
    "loader that batches nothing": lambda: DataLoader(
        Rows(lambda i: (X[5 * i : 5 * i + 5], Y[5 * i : 5 * i + 5]), 6), batch_size=None
    ),
    "batches": lambda: Batches(),
    "generator": lambda: iter(Batches()),
    "numpy": lambda: Rows(lambda i: (X[i].numpy(), np.int64(Y[i]))),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_the_same_examples_are_found_however_they_come(kind: str) -> None:
    found = read(ALIKE[kind]())
    inputs, labels = all_of(found)
    assert torch.equal(inputs, X) and torch.equal(labels, Y)
    assert found.labels is not None and found.labels.tolist() == Y.tolist()
    assert np.array_equal(found.keys, read(TensorDataset(X, Y)).keys)
    assert not found.varies


def test_inputs_keep_their_types_and_their_nesting() -> None:
    def item(i: int) -> Any:
        return {"ids": torch.arange(3) + i, "both": (X[i].double(), [1, 2, i]), "label": i % 2}

    inputs, labels = all_of(read(Rows(item)))
    assert list(inputs) == ["ids", "both"]
    assert inputs["ids"].dtype == torch.int64 and inputs["both"][0].dtype == torch.float64
    assert inputs["both"][1][5].tolist() == [1, 2, 5]  # a list of numbers is one tensor
    assert labels.tolist() == [i % 2 for i in range(30)]


@pytest.mark.parametrize(
    "given", [TensorDataset(X), Rows(lambda i: X[i]), Rows(lambda i: {"x": X[i]}),
              Rows(lambda i: (X[i], None))]
)  # fmt: skip
def test_labels_may_be_missing(given: Any) -> None:
    assert read(given).labels is None


def test_a_sampler_that_keeps_to_some_rows_is_followed() -> None:
    kept = DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([9, 3, 6, 1]))
    assert torch.equal(all_of(read(kept))[0], X[[1, 3, 6, 9]])
    batches = DataLoader(
        TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(range(12)), 4, False)
    )
    assert len(read(batches).keys) == 12


def test_equal_inputs_hash_alike_and_others_do_not() -> None:
    found = read(TensorDataset(torch.tensor([[1.0], [2.0], [1.0], [0.0], [-0.0]])))
    first = found.keys[:, 0].tolist()
    assert first[0] == first[2] and len(set(first)) == 4
    whole = read(TensorDataset(torch.tensor([[1], [2]]), torch.tensor([0, 1])))
    assert whole.keys[0, 0] != first[0]  # another type is another input


def test_padding_by_a_collate_function_is_left_to_it() -> None:
    lengths = [2, 3, 5, 4]

    def pad(items: list[Tensor]) -> Any:
        return {"ids": torch.nn.utils.rnn.pad_sequence(items, batch_first=True)}

    loader = DataLoader(Rows(lambda i: torch.ones(lengths[i]), 4), collate_fn=pad)  # pyright: ignore
    found = read(loader)
    assert found.source.read(np.array([0, 1]), 0)[0]["ids"].shape == (2, 3)
    assert found.source.read(np.array([2, 0]), 0)[0]["ids"].shape == (2, 5)


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(()).item(), random.random, lambda: float(np.random.rand())],
    ids=["torch", "random", "numpy"],
)
def test_a_random_data_set_is_noticed_and_drawn_alike_by_view(draw: Any) -> None:
    given = Rows(lambda i: (X[i] + draw(), int(Y[i])))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # pyright: ignore
    found = read(given)
    assert found.varies and "differ" in found.notes[0]
    one, two = all_of(found, view=3)[0], all_of(found, view=3)[0]
    assert torch.equal(one, two)
    assert not torch.equal(one, all_of(found, view=4)[0])
    few = found.source.read(np.array([7, 2]), 3)[0]
    assert torch.equal(few, one[[7, 2]])  # whatever else is in the batch
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # pyright: ignore
    assert np.array_equal(found.keys, read(given).keys)


def test_a_collate_function_that_draws_is_noticed() -> None:
    def noisy(items: list[Any]) -> Any:
        return torch.stack(items) + torch.rand(())

    assert read(DataLoader(Rows(lambda i: X[i]), batch_size=4, collate_fn=noisy)).varies


NAN = X.clone()
NAN[11, 2] = float("nan")
BAD = {
    "nothing": ([], "holds no examples"),
    "an empty loader": (DataLoader(Rows(lambda i: X[i], 0)), "holds no examples"),
    "a spent generator": (iter(()), "yields nothing.*generator that was read before"),
    "a number": (3, "the data is a int: give a path"),
    "a dict": ({"x": X}, "the data is a dict: give a path"),
    "texts": (Rows(lambda i: "word"), "hold a str: give tensors"),
    "objects": (Rows(lambda i: (X[i], object())), "make no batch: TypeError.*default_collate"),
    "triples": (Rows(lambda i: (X[i], X[i], 1)), "tuples of 3: give"),
    "two labels": (Rows(lambda i: {"x": X[i], "y": 0, "label": 1}), "both 'label' and 'y'"),
    "no inputs": (Rows(lambda i: {"label": 1}), "inputs hold a dict"),
    "fractions": (Rows(lambda i: (X[i], 0.5)), "labels of type float64 are no classes"),
    "several": (Rows(lambda i: (X[i], torch.ones(2).int())), r"30 examples have labels of shape"),
    "names": (Rows(lambda i: (X[i], "cat")), "labels cannot be read"),
    "shapes": (Rows(lambda i: X[i, : 2 + i % 2]), "make no batch: RuntimeError.*collate_fn pads"),
    "NaN": (TensorDataset(NAN, Y), "example 11 holds NaN"),
    "NaN in a stream": (((NAN[i : i + 4], Y[i : i + 4]) for i in range(0, 30, 4)), "example 11"),
    "a broken item": (Rows(lambda i: X[i + 25]), "fails at item 5: IndexError"),
    "a weighted sampler": (
        DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 30, 9)),
        "draws other examples each time .WeightedRandomSampler.",
    ),
    "a list of batches": ([(X[:7], Y[:7]), (X[7:14], Y[7:14])], r"labels of shape \[2, 7\]"),
    "half the labels": (iter([(X[:7], Y[:7]), (X[7:], None)]), "labels for some examples only"),
    "uneven batches": (iter([X[:, :3], X]), "different forms .float32 3 and float32 4."),
    "uneven parts": (iter([{"a": X, "b": X[:5]}]), "hold 5 and 30 examples"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused_in_one_line(case: str) -> None:
    given, said = BAD[case]
    with pytest.raises(DataError, match=said) as raised:
        read(given)
    assert "\n" not in str(raised.value)


def test_what_is_read_once_must_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size = X.numel() * 4
    monkeypatch.setattr(loaders, "MOST_HELD_BYTES", size)
    assert len(read(Batches()).keys) == 30
    monkeypatch.setattr(loaders, "MOST_HELD_BYTES", size - 1)
    with pytest.raises(DataError, match="give a data set with __getitem__ and __len__"):
        read(Batches())
    assert len(read(TensorDataset(X, Y)).keys) == 30  # is not held


# --- splits ----------------------------------------------------------------------------------


def split(given: Any, validation: Any = None, *, classes: int = 3, share: float = 0.2) -> Any:
    held = None if validation is None else read(validation)
    return arrange(read(given), held, classes=classes, validation_share=share, seed=0)


def test_a_share_of_each_class_is_set_aside_by_content() -> None:
    data = split(TensorDataset(X, Y))
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert len(data.train) == 24 and len(data.test) == 0
    turned = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    other = split(TensorDataset(X[turned], Y[turned]))
    keys = [set(map(tuple, d.validation.found.keys[d.validation.rows])) for d in (data, other)]
    assert keys[0] == keys[1]
    assert len(split(TensorDataset(X)).validation) == 6


def test_the_fingerprint_follows_inputs_labels_and_classes() -> None:
    prints = {
        split(TensorDataset(X, Y)).train.fingerprint,
        split(TensorDataset(X + 1, Y)).train.fingerprint,
        split(TensorDataset(X, Y.flip(0))).train.fingerprint,
        split(TensorDataset(X, Y), classes=4).train.fingerprint,
    }
    assert len(prints) == 4
    assert split(Stream()).train.fingerprint in prints


BAD_SPLITS = {
    "label too high": ((TensorDataset(X, Y), None), {"classes": 2}, "example 2 has the label 2"),
    "label below 0": ((TensorDataset(X, Y - 1), None), {}, "example 0 has the label -1"),
    "one class": ((TensorDataset(X, Y * 0), None), {}, r"one class only \(0\)"),
    "validation's label": ((TensorDataset(X, Y), TensorDataset(X + 1, Y + 1)), {}, "the label 3"),
    "the same twice": ((TensorDataset(X, Y), TensorDataset(X, Y)), {}, "are also training"),
    "one example": ((TensorDataset(X[:1]), None), {}, "too few different examples"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_what_cannot_be_learned_from_is_refused(case: str) -> None:
    given, options, said = BAD_SPLITS[case]
    with pytest.raises(DataError, match=said):
        split(*given, **options)
