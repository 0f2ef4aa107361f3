"""Any teacher, any student, any loader: `distill` on data of the user's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_readme
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import tutelage
from tutelage.errors import DataError, RecipeError, StudentError, TeacherError, TutelageError
from tutelage.progress import Silent
from tutelage.teach import torch_teacher

QUICK: dict[str, Any] = {"threads": 1, "distill": {"batch": 16}}
X = torch.randn(160, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long() + (X[:, 2] > 1).long()
ALL = TensorDataset(X, Y)


class Layers(nn.Module):
    """Two layers and a head; `seen` keeps what it was called with."""

    def __init__(self, width: int, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.early = nn.Sequential(nn.Linear(6, width), nn.ReLU())
        self.late = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, classes)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.head(self.late(self.early(x)))


@pytest.fixture(scope="module")
def teacher() -> Layers:
    network = Layers(32)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X), Y).backward()
        optimizer.step()
    return network


class Says(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("name", ["kl", "cross_entropy", "trajectory", "features", "cka"])
def test_losses_of_every_kind_teach(teacher: Layers, name: str) -> None:
    student = Layers(4)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    taught = tutelage.distill(
        teacher, student, DataLoader(ALL, batch_size=32, shuffle=True), losses={name: 1}, epochs=1,
        **QUICK,
    )  # fmt: skip
    assert taught.student is student
    assert any(not torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert np.isfinite(taught.history["loss"]).all()
    assert taught.validation.name == "accuracy_validation"
    assert taught.validation.n == 16
    assert taught.pairing is not None and taught.pairing["pairs"] == [[0, 0], [1, 1]]


def test_a_student_learns_and_reads_nothing_but_what_the_loader_yields(
    teacher: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_teacher, "native_bf16", lambda device: False)
    student, held = Layers(16), TensorDataset(*(part[120:] for part in (X, Y)))
    data = TensorDataset(*(part[:120] for part in (X, Y)))
    teacher.seen.clear()
    taught = tutelage.distill(teacher, student, data, validation=held, epochs=40, **QUICK)
    assert taught.validation.value > 0.8
    assert taught.validation.n == 40
    rows = {tuple(row) for row in X.tolist()}
    for network in (teacher, student):
        assert {tuple(row) for batch in network.seen for row in batch.tolist()} <= rows
    # A first look of two (where bfloat16 need not be judged), then each example once, in few calls.
    assert sum(len(batch) for batch in teacher.seen if len(batch) > 2) == 160


def test_without_labels_the_figure_is_agreement(teacher: Layers) -> None:
    taught = tutelage.distill(teacher, Layers(16), TensorDataset(X), epochs=30, **QUICK)
    assert taught.validation.name == "agreement_validation"
    assert taught.validation.value > 0.7
    with pytest.raises(RecipeError, match="'cross_entropy' reads labels, but the data has none"):
        tutelage.distill(
            teacher, Layers(4), TensorDataset(X), losses={"cross_entropy": 1}, epochs=1, **QUICK
        )


def test_what_can_only_be_gone_through_teaches_the_same(teacher: Layers) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(ALL)

    def taught(data: Any) -> Any:
        return tutelage.distill(teacher, Layers(4), data, epochs=2, **QUICK)

    said = Says()
    found = tutelage.distill(teacher, Layers(4), Stream(), epochs=2, progress=said, **QUICK)
    assert any("is read once: 160 examples" in line for line in said.lines)
    assert found.history == taught(ALL).history
    assert (
        found.history == taught((X[i : i + 50], Y[i : i + 50]) for i in range(0, 160, 50)).history
    )


class Noisy(Dataset):
    """Draws anew at each reading, from two of the global random states."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Any:
        return X[i] + 0.1 * torch.randn(6) + 0.1 * random.random(), int(Y[i])


def test_a_random_data_set_keeps_the_teacher_in_the_loop(teacher: Layers, tmp_path: Path) -> None:
    said = Says()

    def distill(run: str) -> Any:
        losses = {"dist": 1, "trajectory": "auto"}
        return tutelage.distill(
            teacher, Layers(8), Noisy(), losses=losses, epochs=8, run=tmp_path / run,
            progress=said, **QUICK,
        )  # fmt: skip

    teacher.seen.clear()
    taught = distill("a")
    assert any("the teacher is asked anew for every batch" in line for line in said.lines)
    assert any("better give validation=" in line for line in said.lines)
    batches = [batch for batch in teacher.seen if len(batch) == 16]
    assert len(batches) >= 8 * 9  # one a step, beside the caches of validation and for the lenses
    assert len({tuple(row) for batch in batches for row in batch.tolist()}) > 160
    # Drawn by seed, view and index: the same again, whatever was drawn in between.
    torch.manual_seed(5)
    random.seed(5)
    assert distill("b").history == taught.history
    assert distill("a").history == taught.history


# --- other inputs ----------------------------------------------------------------------------


class Mails(Dataset):
    """Token ids with a mask, as transformers models take them; a word tells the class."""

    def __init__(self, count: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(5, 40, (count, 8), generator=random)
        self.labels = torch.arange(count) % 2
        self.ids[:, 1] = 3 + self.labels
        self.ids[::3, 6:] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        return {
            "input_ids": self.ids[i], "attention_mask": self.ids[i].ne(0).long(),
            "labels": self.labels[i],
        }  # fmt: skip


class Bag(nn.Module):
    """A student that reads ids alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(40, 8)
        self.layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.words(ids)).mean(1))


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16,
        )
    )  # fmt: skip


def test_the_example_of_the_readme_teaches_a_student_of_ids_from_bert(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = [block for block in test_readme.blocks("python") if "held_out" in block]
    names: dict[str, Any] = {
        "bert": bert(), "student": Bag(), "mails": Mails(64, 0), "held_out": Mails(20, 1),
    }  # fmt: skip
    exec(code.replace("    losses=", "    epochs=4, threads=1, losses="), names)
    taught = names["taught"]
    assert capsys.readouterr().out.startswith("accuracy_validation 0.")
    assert taught.pairing["teacher_taps"] == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert taught.validation.n == 20
    assert set(taught.weights) == {"dist", "trajectory", "features"}


def test_a_forward_may_be_one_for_both_and_a_tuple_goes_in_as_arguments(teacher: Layers) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Layers(8)

        def forward(self, one: Tensor, two: Tensor) -> Any:
            return None, {"scores": self.inner(one + two)}

    pairs = [((x / 2, x / 2), int(y)) for x, y in zip(X, Y, strict=True)]
    taught = tutelage.distill(
        teacher, Sum(), pairs, epochs=1, forward=(lambda net, x: net(x[0] + x[1]), None), **QUICK
    )
    assert taught.pairing is not None
    assert taught.pairing["student_taps"] == ["inner.early.1", "inner.late.1"]
    doubled = [({"twice": 2 * x}, int(y)) for x, y in zip(X, Y, strict=True)]

    def halve(network: nn.Module, inputs: Any) -> Any:
        return network(inputs["twice"] / 2)

    teacher.seen.clear()
    tutelage.distill(teacher, Layers(4), doubled, epochs=1, forward=halve, **QUICK)
    assert all({tuple(row) for row in batch.tolist()} <= {tuple(row) for row in X.tolist()}
               for batch in teacher.seen)  # fmt: skip


def test_float_images_are_left_alone_and_give_maps() -> None:
    def network(width: int) -> nn.Module:
        torch.manual_seed(width)
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
                  for a, b in ((3, width), (width, 2 * width))]  # fmt: skip
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4)
        )

    images = TensorDataset(torch.randn(40, 3, 12, 12) * 100)
    losses = {"attention": 1, "features": "auto", "trajectory": "auto"}
    taught = tutelage.distill(network(8), network(4), images, losses=losses, epochs=1, **QUICK)
    assert set(taught.weights) == set(losses)


# --- arrays and texts ------------------------------------------------------------------------


def test_fit_takes_float_series(quick: None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(90) % 2
    waves = np.sin(np.arange(24) * (0.3 + 0.5 * labels[:, None])) * 50 + 500
    series = (waves + random.standard_normal((90, 24)))[:, None].astype(np.float32)
    result = tutelage.fit(
        "fit", (series, labels), task="series", device="nucleo-l4r5", run=tmp_path / "run",
        teacher={"epochs": 6, "width": 4}, distill={"epochs": 12, "batch": 16},
        student={"spec": {"family": "convnet1d", "widths": [8, 8], "depths": [1, 1]}},
        augment={"views": 2}, data={"rate": 10.0}, threads=1,
    )  # fmt: skip
    assert result.met
    assert result.to_json()["task"] == "series"
    assert result.figure("student", "accuracy_test").value > 0.8
    taught = tutelage.distill(
        tutelage.load(tmp_path / "run/teacher"), tutelage.load(tmp_path / "run/student"),
        (torch.from_numpy(series), labels), task="series", epochs=1, **QUICK,
    )  # fmt: skip
    assert taught.validation.name == "accuracy_validation"
    with pytest.raises(DataError, match="the series given has 90 series but 3 labels"):
        tutelage.fit("fit", (series, labels[:3]), task="series", run=tmp_path / "other")


def test_fit_takes_texts(quick: None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import test_text_run

    test_text_run.encoder(tmp_path / "encoder")
    mails = list(test_text_run.mails(count=120))
    given = ([mail["text"] for mail in mails], [mail["label"] for mail in mails])
    result = tutelage.fit(
        tmp_path / "encoder", given, task="text", run=tmp_path / "run",
        data={"tokenizer": str(tmp_path / "encoder")}, teacher={"fit": "all", "epochs": 3},
        student={"spec": {"family": "textconv", "embedding": 8, "depth": 1}},
        distill={"epochs": 2, "batch": 16}, export={"precision": "float32"}, threads=1,
    )  # fmt: skip
    assert result.to_json()["task"] == "text"
    assert (tmp_path / "run/artifacts/tokenizer.json").is_file()
    for texts, labels, said in (
        (given[0], given[1][:5], "120 texts have 5 labels"),
        ("one text", [1], "the texts given are a str: give a list"),
        ([*given[0], 3], [*given[1], "ham"], "the texts given, text 120: '3' is no text"),
    ):
        with pytest.raises(DataError, match=said):
            tutelage.distill("fit", Bag(), (texts, labels), task="text",
                             data={"tokenizer": str(tmp_path / "encoder")})  # fmt: skip


# --- refusals --------------------------------------------------------------------------------


def no_logits(network: nn.Module, inputs: Tensor) -> Any:
    return {"answer": "yes"}


def tokens(network: nn.Module, inputs: Tensor) -> Tensor:
    return network(inputs)[:, None].expand(-1, 5, -1)


REFUSED: dict[str, tuple[dict[str, Any], type[TutelageError], str]] = {
    "classes": ({"student": Layers(4, 5)}, TeacherError, "among 3 classes and the student among 5"),
    "no logits": ({"forward": (None, no_logits)}, StudentError, "student's forward.*no logits"),
    "teacher's": ({"forward": (no_logits, None)}, TeacherError, "teacher's forward.*no logits"),
    "tokens": ({"forward": (None, tokens)}, StudentError, "2 examples with 2 x 5 x 3"),
    "classes, not logits": (
        {"forward": (None, lambda net, x: net(x).argmax(1))}, StudentError, "int64 numbers and no",
    ),
    "one output": ({"student": Layers(4, 1)}, StudentError, "student has one output"),
    "shape": ({"student": nn.Linear(7, 3)}, StudentError, "input of 6.*say how it reads.*forward="),
    "forward": ({"forward": "logits"}, RecipeError, "forward= is a function"),
    "three": ({"forward": (None, None, None)}, RecipeError, "forward= is a function"),
    "augment": ({"augment": {"flip": True}}, RecipeError, "augment.flip: a loader's inputs"),
    "views": ({"augment": {"views": 2}}, RecipeError, "augment.views: a loader's inputs"),
    "task": ({"task": "series"}, RecipeError, "task=: a loader's examples are taken as they come"),
    "option": ({"data": {"length": 9}}, RecipeError, "data.length is nothing that the task"),
    "test": ({"data": {"test": "x.npz"}}, RecipeError, "nothing is tested here"),
    "mean": ({"teacher": {"mean": [0.5], "std": [1.0]}}, RecipeError, "teacher.mean"),
    "not fitted": ({"who": "fit"}, RecipeError, "not fitted on a loader"),
    "label": ({"loader": TensorDataset(X, Y + 1)}, DataError, "has the label 3 and the networks"),
    "loader": ({"loader": 7}, DataError, "the data is a int: give a path"),
    "triple": ({"loader": (X, Y, Y)}, DataError, "a tuple of 3"),
    "validation": (
        {"loader": tiny.images(30), "validation": ALL}, RecipeError, "validation= goes with a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(teacher: Layers, case: str) -> None:
    options, error, said = REFUSED[case]
    options = {**options}
    who, student = options.pop("who", teacher), options.pop("student", None) or Layers(4)
    loader = options.pop("loader", ALL)
    with pytest.raises(error, match=said) as raised:
        tutelage.distill(who, student, loader, **options)
    assert "\n" not in str(raised.value)


def test_a_generator_cannot_be_both_and_fit_names_distill(teacher: Layers, tmp_path: Path) -> None:
    stream = iter([(X, Y)])
    with pytest.raises(RecipeError, match="same generator as the data"):
        tutelage.distill(teacher, Layers(4), stream, validation=stream)
    with pytest.raises(DataError, match="is a DataLoader: tutelage.distill teaches"):
        tutelage.fit(teacher, DataLoader(ALL), run=tmp_path / "run")  # pyright: ignore
