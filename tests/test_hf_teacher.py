"""Hugging Face encoders from disk: sliced embeddings, pads, positions, heads, refusals."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.errors import CorruptFileError, MissingExtra, TeacherError, TutelageError
from tutelage.students.taps import find_taps
from tutelage.teach.hf_teacher import HfEncoder, from_hf_folder, parameters_to_fit
from tutelage.teach.torch_teacher import TorchTeacher

transformers: Any = pytest.importorskip("transformers")

SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 60,
        "intermediate_size": 24, "max_position_embeddings": 40}  # fmt: skip
KINDS = {
    "bert": ("Bert", SIZE, 0),
    "minilm": ("Bert", {**SIZE, "num_attention_heads": 4}, 0),
    "roberta": ("Roberta", {**SIZE, "pad_token_id": 1, "max_position_embeddings": 42}, 1),
    "distilbert": ("DistilBert", {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24,
                                  "vocab_size": 60, "max_position_embeddings": 40}, 0),
    "modernbert": ("ModernBert", {**SIZE, "pad_token_id": 3, "global_attn_every_n_layers": 2,
                                  "local_attention": 8, "bos_token_id": 1, "eos_token_id": 2,
                                  "cls_token_id": 1, "sep_token_id": 2}, 3),
}  # fmt: skip
FRESH = {"kept": None, "pad": 0, "fresh_head": True}


def write(folder: Path, kind: str, head: str = "Model", **options) -> tuple[Path, Any]:
    name, config, pad = KINDS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(**config, **options)
    model = getattr(transformers, f"{name}{head}")(made).eval()
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A classifier of three classes of each kind."""
    root = tmp_path_factory.mktemp("encoders")
    for kind in KINDS:
        write(root / kind, kind, "ForSequenceClassification", num_labels=3)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def kept_of(kind):
    """Tokens in use: the pad stands second, so that its number differs from the original."""
    pad = KINDS[kind][2]
    rest = np.random.default_rng(0).permutation([i for i in range(60) if i != pad])[:24]
    return np.array([rest[0], pad, *rest[1:]], dtype=np.int64), 1


def some_ids(n=4, length=16, used=(16, 9, 4, 1)):
    ids = torch.randint(2, 25, (n, length), generator=torch.Generator().manual_seed(1))
    for row, count in enumerate(used[:n]):
        ids[row, count:] = 1
    return ids


def said(network, ids):
    with torch.no_grad():
        return network(ids)


def refused(what, call, *args, **options):
    with pytest.raises(TutelageError) as caught:
        call(*args, **options)
    assert what in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    return caught.value


# --- what it says -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_classifier_says_what_the_whole_one_says(folders, kind):
    kept, pad = kept_of(kind)
    network = from_hf_folder(folders[kind], 3, kept=kept, pad=pad)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders[kind]).eval()
    ids = some_ids()
    original = torch.from_numpy(kept)[ids]
    with torch.no_grad():
        want = model(input_ids=original, attention_mask=ids.ne(pad).long()).logits
    torch.testing.assert_close(said(network, ids), want, rtol=0, atol=1e-6)
    assert network.body.config._attn_implementation == "sdpa"  # pyright: ignore
    torch.testing.assert_close(network.embedding, model.get_input_embeddings().weight[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_head_reads_the_mean_of_what_is_no_pad(tmp_path, kind):
    folder, model = write(tmp_path, kind)
    kept, pad = kept_of(kind)
    network = from_hf_folder(folder, 5, kept=kept, pad=pad, fresh_head=True)
    for row, count in enumerate((16, 9, 4, 1)):  # each text alone, without any pad
        ids = some_ids()[row : row + 1, :count]
        with torch.no_grad():
            tokens = model(input_ids=torch.from_numpy(kept)[ids]).last_hidden_state
            want = network.head(tokens.mean(dim=1))  # pyright: ignore
        got = said(network, some_ids())[row : row + 1]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_more_pads_change_nothing(folders, kind):
    kept, pad = kept_of(kind)
    network = from_hf_folder(folders[kind], 3, kept=kept, pad=pad)
    ids = some_ids(used=(5, 9, 4, 1))
    torch.testing.assert_close(said(network, ids[:, :9]), said(network, ids), rtol=0, atol=1e-5)
    assert torch.isfinite(said(network, torch.full((2, 16), pad))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_kept_ids_are_the_originals(folders, kind):
    kept, pad = kept_of(kind)
    cut = from_hf_folder(folders[kind], 3, kept=kept, pad=pad)
    whole = from_hf_folder(folders[kind], 3, pad=KINDS[kind][2])
    ids = some_ids()
    torch.testing.assert_close(said(whole, torch.from_numpy(kept)[ids]), said(cut, ids))
    assert whole.embedding.shape == (60, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_taps_are_one_a_layer_and_it_is_a_teacher(folders, kind):
    kept, pad = kept_of(kind)
    network = from_hf_folder(folders[kind], 3, kept=kept, pad=pad)
    taps = find_taps(network, some_ids(2))
    assert [t.path.rsplit(".", 1)[1] for t in taps] == ["0", "1", "2"]
    assert {t.shape for t in taps} == {(16, 16)}
    ids = some_ids()
    teacher = TorchTeacher(network, classes=3, image_shape=(16,), example=ids)
    reading = teacher.read(ids, features=True)
    assert [f.shape for f in reading.features] == [(4, 16)] * 3
    torch.testing.assert_close(reading.decision, said(network, ids))


def test_the_fingerprint_follows_the_pad(folders):
    marks = set()
    for pad in (1, 2, 2):
        network = from_hf_folder(folders["roberta"], 3, kept=kept_of("roberta")[0], pad=pad)
        made = TorchTeacher(network, classes=3, image_shape=(16,), example=some_ids())
        marks.add(made.fingerprint)
    assert len(marks) == 2


def test_half_precision_weights_become_float32(tmp_path):
    model = write(tmp_path, "bert", "ForSequenceClassification", num_labels=3)[1]
    model.half().save_pretrained(tmp_path)
    network = from_hf_folder(tmp_path, 3)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_shards_are_read(tmp_path):
    model = write(tmp_path / "one", "bert", "ForSequenceClassification", num_labels=3)[1]
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = from_hf_folder(tmp_path / "one", 3), from_hf_folder(tmp_path / "many", 3)
    torch.testing.assert_close(said(one, some_ids()), said(many, some_ids()))
    gone = sorted((tmp_path / "many").glob("*.safetensors"))[1]
    gone.unlink()
    refused(f"has no {gone.name}", from_hf_folder, tmp_path / "many", 3)


def test_labels_are_the_classes_names(tmp_path, folders):
    named = {"id2label": {0: "bad", 1: "so-so", 2: "good"}}
    write(tmp_path, "bert", "ForSequenceClassification", **named)
    assert from_hf_folder(tmp_path, 3).labels == ("bad", "so-so", "good")
    assert from_hf_folder(folders["bert"], 3).labels == ()


def test_nothing_is_printed(folders, tmp_path, capfd):
    write(tmp_path, "bert", "ForMaskedLM")  # weights nobody asked for, and no pooler
    capfd.readouterr()
    from_hf_folder(tmp_path, 3, **FRESH)
    from_hf_folder(folders["bert"], 3)
    assert capfd.readouterr() == ("", "")


# --- heads to fit -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_head_alone_or_everything_is_fitted(folders, kind, whole):
    kept, pad = kept_of(kind)
    classes = 3 if whole else 4
    torch.manual_seed(0)
    network = from_hf_folder(folders[kind], classes, kept=kept, pad=pad, fresh_head=True)
    assert (network.head is None) is whole and not network.training
    before = said(network.encoder, some_ids()).last_hidden_state
    parameters_to_fit(network, "head")
    network.train()
    assert network.training and not network.encoder.training
    network(some_ids()).sum().backward()
    learned = {n for n, p in network.named_parameters() if p.grad is not None}
    head = {n for n, _ in network.named_parameters() if "head." in n or "classifier." in n}
    assert learned == head
    torch.testing.assert_close(said(network.encoder, some_ids()).last_hidden_state, before)
    parameters_to_fit(network, "all")
    assert all(p.requires_grad for p in network.parameters())
    assert network.train().encoder.training


@pytest.mark.parametrize("kind", KINDS)
def test_attention_for_training_says_the_same_and_ends(folders, kind):
    kept, pad = kept_of(kind)
    network = from_hf_folder(folders[kind], 3, kept=kept, pad=pad)
    usual, want = network.body.config._attn_implementation, said(network, some_ids())
    with network.attention_for_training():
        assert network.body.config._attn_implementation == "eager"
        torch.testing.assert_close(said(network, some_ids()), want, rtol=0, atol=1e-5)
    assert network.body.config._attn_implementation == usual == "sdpa"


def test_a_fresh_head_follows_the_seed_alone(folders):
    heads = []
    for seed, kind in ((0, "bert"), (0, "roberta"), (1, "bert")):
        torch.manual_seed(seed)
        heads.append(from_hf_folder(folders[kind], 4, **FRESH).state_dict()["head.1.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_fitted_state_comes_back(folders):
    kept, pad = kept_of("roberta")
    options: Any = {"kept": kept, "pad": pad, "fresh_head": True}
    first, second = (from_hf_folder(folders["roberta"], 4, **options) for _ in range(2))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(said(first, some_ids()), said(second, some_ids()))


def test_an_encoder_needs_a_head(tmp_path, folders):
    folder, _ = write(tmp_path, "bert")
    error = refused("an encoder without a classifier", from_hf_folder, folder, 3)
    assert isinstance(error, TeacherError) and "teacher.fit: head, or fit: all" in str(error)
    refused("decides among 3 classes and the data has 4", from_hf_folder, folders["bert"], 4)


# --- refusals ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, folders) -> Path:
    shutil.copytree(folders["bert"], tmp_path / "bert")
    return tmp_path / "bert"


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_an_incomplete_folder_is_refused(folder):
    refused("is no folder", from_hf_folder, folder / "nowhere", 3)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    refused("'pytorch_model.bin', which is pickle", from_hf_folder, folder, 3)
    (folder / "pytorch_model.bin").unlink()
    refused("has no model.safetensors", from_hf_folder, folder, 3)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused("git lfs pull", from_hf_folder, folder, 3)
    weights.write_bytes(b"\x00" * 100)
    refused("cannot be loaded", from_hf_folder, folder, 3)
    (folder / "config.json").unlink()
    refused("has no config.json", from_hf_folder, folder, 3)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model_type": ""}'])
def test_a_config_without_a_type_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refused("names no model_type", from_hf_folder, folder, 3)


def test_a_damaged_config_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptFileError):
        from_hf_folder(folder, 3)


def test_foreign_code_is_run_only_when_trusted(folder):
    (folder / "own.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own_kind'\n"
        "class Own(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    change(
        folder,
        model_type="own_kind",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"},
    )
    error = refused("means running Python code", from_hf_folder, folder, 3)
    assert "--trust-code" in str(error)


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    change(folder, problem_type="multi_label_classification")
    refused("was made for multi_label_classification", from_hf_folder, folder, 3)
    change(folder, problem_type=None, is_decoder=True)
    refused("no text encoder", from_hf_folder, folder, 3)
    change(folder, is_decoder=False, model_type="zzz")
    refused("cannot be loaded", from_hf_folder, folder, 3)
    decoder = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=60)
    transformers.GPT2Model(decoder).save_pretrained(tmp_path / "gpt")
    refused("of type 'gpt2', which is no text encoder", from_hf_folder, tmp_path / "gpt", 3)


def test_weights_of_another_network_are_refused(folder):
    change(folder, num_hidden_layers=4)
    error = refused("lack 'bert.encoder.layer.3.", from_hf_folder, folder, 3)
    assert "do not fit its config.json" in str(error)
    change(folder, num_hidden_layers=3, intermediate_size=20)
    error = refused("do not fit its config.json: 'bert.encoder", from_hf_folder, folder, 3)
    assert "has another shape" in str(error)


@pytest.mark.parametrize(
    ("kept", "pad", "what"),
    [
        ([0, 60], 0, "goes up to token 60 and the teacher"),
        ([-1, 3], 0, "the teacher"),
        ([], 0, "has no token"),
        ([0, 3], 2, "the pad is token 2 and there are 2 tokens"),
        (None, 60, "the pad is token 60"),
    ],
)
def test_another_tokenizer_is_refused(folder, kept, pad, what):
    kept = None if kept is None else np.array(kept, dtype=np.int64)
    error = refused(what, from_hf_folder, folder, 3, kept=kept, pad=pad)
    assert "data.tokenizer: FOLDER" in str(error)


def test_an_encoder_that_goes_by_original_numbers_is_refused(folder, monkeypatch):
    kind = transformers.models.bert.modeling_bert.BertEmbeddings
    forward = kind.forward

    def by_number(self, input_ids, **given):
        found = forward(self, input_ids, **given)
        return found + torch.sin(input_ids[:, :, None] * torch.arange(found.shape[2]))

    monkeypatch.setattr(kind, "forward", by_number)
    from_hf_folder(folder, 3, kept=np.arange(60))
    refused("cannot be cut", from_hf_folder, folder, 3, kept=np.arange(5, 25))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_text_longer_than_its_positions_is_refused(folders, kind):
    network = from_hf_folder(folders[kind], 3, pad=1)
    assert isinstance(network, HfEncoder) and said(network, torch.full((1, 40), 5)).shape == (1, 3)
    refused("reads at most 40 tokens and these texts have 41", network, torch.full((1, 41), 5))


def test_a_missing_library_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tutelage\[hf\]'"):
        from_hf_folder(folder, 3)


class _Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        if len(x) > 2:  # the first look passes
            raise RuntimeError("no")
        return self.layer(x.float().mean(dim=list(range(1, x.ndim)))[:, None])


@pytest.mark.parametrize("example", [torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 1, 8)])
def test_a_teacher_of_texts_or_series_is_not_told_about_images(example):
    shape: Any = tuple(example.shape[1:])
    teacher = TorchTeacher(_Fails(), classes=3, image_shape=shape, example=example)
    with pytest.raises(TeacherError, match="Give it inputs") as info:
        teacher.read(torch.cat([example, example]), features=False, maps=False)
    assert "image" not in str(info.value)
    with pytest.raises(TeacherError, match="repeat is for images"):
        TorchTeacher(_Fails(), classes=3, image_shape=shape, example=example, channels="repeat")
