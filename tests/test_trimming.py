"""Texts without pads that no text of a batch needs, in batches of like length."""

import numpy as np
import pytest
import tiny
import torch
from test_text_run import encoder, mails
from text_samples import write_jsonl

from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.material import read_material
from tutelage.pipeline.trimming import needed, trimmed
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.teach.hf_teacher import from_hf_folder
from tutelage.teach.signals import SignalCache
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.train.distill import Distillation, by_size

pytest.importorskip("transformers")


def test_lengths_are_multiples_of_16():
    assert [needed(n) for n in (1, 16, 17, 128)] == [16, 16, 32, 128]


def test_batches_are_of_like_size_and_hold_the_order_s_examples_once():
    sizes = np.random.default_rng(0).integers(1, 100, 1_000)
    order = np.random.default_rng(1).permutation(1_000)
    made = by_size(order, sizes, 8, np.random.default_rng(2))
    assert sorted(made) == list(range(1_000))
    spread = np.ptp(sizes[made].reshape(-1, 8), axis=1).mean()
    assert spread < 0.2 * np.ptp(sizes[order].reshape(-1, 8), axis=1).mean()
    means = sizes[made].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.5  # batches come in any order
    assert np.array_equal(made, by_size(order, sizes, 8, np.random.default_rng(2)))
    other = by_size(order[::-1].copy(), sizes, 8, np.random.default_rng(2))
    assert not np.array_equal(made, other)


@pytest.mark.parametrize(("count", "batch"), [(7, 8), (8, 8), (131, 8), (17, 1)])
def test_what_fills_no_batch_is_left_out(count, batch):
    if count < batch:
        with pytest.raises(ValueError, match="concatenate"):
            by_size(np.arange(count), np.ones(count), batch, np.random.default_rng(0))
        return
    made = by_size(np.arange(count), np.ones(count), batch, np.random.default_rng(0))
    assert len(made) == count // batch * batch == len(set(made.tolist()))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Return material of texts of 6 to 45 tokens, and an untrained encoder of them."""
    folder = tmp_path_factory.mktemp("trimming")
    encoder(folder / "encoder")
    random = np.random.default_rng(0)
    rows = [(row["text"].split() * 4, row["label"]) for row in mails(120)]
    cut = [(" ".join(words[: random.integers(4, 44)]), label) for words, label in rows]
    write_jsonl(folder / "train.jsonl", *zip(*cut, strict=True))
    data = {"train": str(folder / "train.jsonl"), "validation": 0.2}
    recipe = Recipe.parse(
        tiny.recipe({"task": "text", "data": data, "augment": {}, "student": {},
                     "teacher": {"source": str(folder / "encoder"), "fit": "all"}})
    )  # fmt: skip
    material = read_material(recipe)
    kept, pad = material.task.tokens(material.data.train)
    torch.manual_seed(0)
    return material, from_hf_folder(folder / "encoder", 2, kept=kept, pad=pad, fresh_head=True)


def test_a_trimmed_batch_says_what_the_whole_one_does(texts):
    material, network = texts
    split = trimmed(material.validation, material.data.validation)
    sizes = np.diff(material.data.validation.offsets)
    index = torch.from_numpy(np.argsort(sizes)[:5])
    short, whole = split.batch(index, 0), material.validation.batch(index, 0)
    assert short.inputs.shape == short.keep.shape == (5, needed(int(sizes[index[-1]])))
    assert short.inputs.shape[1] < whole.inputs.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(network(short.inputs), network(whole.inputs))


def test_signals_are_the_same_and_in_their_order_when_asked_by_length(texts, tmp_path):
    material, network = texts
    teacher = TorchTeacher(
        network, classes=2, image_shape=material.shape,
        example=material.train.batch(torch.arange(2), 0).inputs,
    )  # fmt: skip
    said, widths, forward = {}, [], network.forward

    def watched(ids):
        widths.append(ids.shape[1])
        return forward(ids)

    network.forward = watched
    for name, split in (("whole", material.train),
                        ("trimmed", trimmed(material.train, material.data.train))):  # fmt: skip
        cache = SignalCache(
            tmp_path / name, split, views=1, features=True, maps=False, teacher=teacher
        )
        widths.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tutelage.teach.signals._BATCH", 16)
            cache.fill(Silent())
        said[name] = cache.key, sum(widths), cache.read(torch.arange(split.count), 0)
    del network.forward
    assert said["whole"][0] == said["trimmed"][0]
    assert said["trimmed"][1] < 0.8 * said["whole"][1]
    torch.testing.assert_close(said["trimmed"][2].decision, said["whole"][2].decision)
    for one, other in zip(said["trimmed"][2].features, said["whole"][2].features, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)  # they are stored in half


def test_a_lesson_draws_by_length_from_its_seed_and_another_checkpoint_is_its(texts):
    material, network = texts

    def lesson(split, seed=0):
        return Distillation(
            network, Objective((Term(name="cross_entropy", weight=1.0),)), split,
            material.validation, classes=2, views=1, batch=8, seed=seed,
        )  # fmt: skip

    split = trimmed(material.train, material.data.train)
    first, again, other = (
        [batch.index.tolist() for batch, _ in lesson(split, seed).batches(1, 0)]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    rest = [batch.index.tolist() for batch, _ in lesson(split).batches(1, 3)]
    assert rest == first[3:]  # where a killed run goes on
    assert lesson(split).key != lesson(material.train).key
    widths = {batch.inputs.shape[1] for batch, _ in lesson(split).batches(0, 0)}
    assert len(widths) > 1 and max(widths) <= material.shape[0]


def test_examples_of_another_kind_are_left_alone(texts):
    material, _ = texts
    assert trimmed(material.train, object()) is material.train
