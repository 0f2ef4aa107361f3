"""What is inside transformers is found by itself, in foreign encoders and in our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tutelage.errors import StudentError, TeacherError
from tutelage.progress import Silent
from tutelage.students.families import encoder, textconv
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.inside import Inside, find_attention, look_inside
from tutelage.students.taps import TapReader, find_taps
from tutelage.teach.hf_teacher import HfEncoder
from tutelage.teach.inside import Insider, module_of
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.teach.torch_teacher import Reordered, TorchTeacher
from tutelage.types import Batch, Tap

transformers: Any = pytest.importorskip("transformers")

ALL = frozenset({"states", "scores", "relations"})
SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 40, "intermediate_size": 24,
        "max_position_embeddings": 40}  # fmt: skip
KINDS = {
    "Bert": SIZE,
    "Roberta": {**SIZE, "max_position_embeddings": 42},
    "Electra": {**SIZE, "embedding_size": 16},
    "DistilBert": {"dim": 16, "n_layers": 3, "hidden_dim": 24, "vocab_size": 40,
                   "max_position_embeddings": 40},
    "ModernBert": {**SIZE, "pad_token_id": 1, "global_attn_every_n_layers": 2,
                   "local_attention": 8, "bos_token_id": 1, "eos_token_id": 2,
                   "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip


def foreign(kind, heads=2, **options):
    names = {"DistilBert": "n_heads"}
    config = {**KINDS[kind], names.get(kind, "num_attention_heads"): heads, **options}
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**config)
    body = getattr(transformers, f"{kind}Model")(made)
    return HfEncoder(body, pad=1, head=nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 3))).eval()


def own(layers=2, heads=2, hidden=8):
    torch.manual_seed(1)
    knobs = encoder.EncoderSpec(
        vocabulary=40, length=12, pad=1, classes=3, layers=layers, hidden=hidden, heads=heads,
        inner=8,
    )  # fmt: skip
    return encoder.Encoder(knobs).eval()


def texts(count=6):
    ids = torch.randint(2, 40, (count, 12), generator=torch.Generator().manual_seed(1))
    for row in range(count):
        ids[row, 4 + row :] = 1
    return ids


def seen(network, inside: Inside):
    with torch.no_grad(), TapReader(network, inside.paths) as reader:
        _, outputs = reader.read(network, texts())
    return inside.of(dict(zip(inside.paths, outputs, strict=True)))


def looked(network, reads=ALL):
    return look_inside(network, find_taps(network, texts()[:2]), reads, who="teacher")


@pytest.mark.parametrize("kind", KINDS)
def test_every_layers_attention_is_found(kind):
    network = foreign(kind)
    found, inside = find_attention(network), looked(network)
    assert len(found) == 3 and {a.size for a in found} == {8}
    assert inside.scores == found and inside.relations == found[-1:]
    said = seen(network, inside)
    assert [x.shape for x in said["states"]] == [(6, 12, 16)] * 3
    assert [x.shape for x in said["scores"]] == [(6, 12, 12)] * 3
    assert [x.shape for x in said["relations"]] == [(6, 3, 12, 16)]


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
def test_scores_are_those_the_layer_attends_by(kind):
    """With one head, their softmax over the tokens is what transformers itself returns."""
    network = foreign(kind, heads=1, attn_implementation="eager")
    ids = texts()
    with torch.no_grad():
        output = network.body(
            input_ids=ids, attention_mask=ids.ne(1).long(), output_attentions=True
        )
    said = seen(network, looked(network))
    for scores, want in zip(said["scores"], output.attentions, strict=True):
        got = scores.masked_fill(ids.eq(1)[:, None], -1e9).softmax(-1)
        torch.testing.assert_close(got, want[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("heads", "size"), [(1, 8), (2, 4), (4, 2)])
def test_our_own_layer_is_read_head_by_head(heads, size):
    network = own(heads=heads)
    layer = network.stages[-1]
    inputs: list[torch.Tensor] = []
    layer.qkv.register_forward_hook(lambda module, given, output: inputs.append(output))
    said = seen(network, looked(network))
    parts = inputs[-1].reshape(6, 12, heads, 3 * size).transpose(1, 2)
    query, key, value = parts.split([size] * 3, dim=-1)  # as the layer itself cuts them
    want = (query @ key.transpose(2, 3) * size**-0.5).mean(dim=1)
    torch.testing.assert_close(said["scores"][-1], want)
    for got, part in zip(said["relations"][0].unbind(1), (query, key, value), strict=True):
        assert torch.equal(got, part.transpose(1, 2).flatten(2))


def test_a_fused_layer_of_thirds_is_read():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.qkv = 2, nn.Linear(8, 24)

        def forward(self, x):
            return self.qkv(x)[..., :8]

    block = Block()
    (found,) = find_attention(block)
    x = torch.randn(2, 5, 8)
    q, k, v = block.qkv(x).chunk(3, dim=-1)  # as timm lays it out
    assert found.paths == ("qkv",) and found.size == 4
    assert torch.equal(found.of({"qkv": block.qkv(x)}), torch.stack([q, k, v], dim=1))


def one_line(kind, says, call, /, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert "use features or trajectory" in str(caught.value)


def test_networks_without_tokens_are_refused():
    conv = ConvNet(ConvNetSpec(image=(1, 8, 8), classes=3, widths=(4, 6), depths=(1, 1)))
    taps = find_taps(conv, torch.zeros(2, 1, 8, 8))
    for reads, says in (
        ({"states"}, "tap 'stages.0' of the student gives 4 x 8 x 8 an example"),
        ({"scores"}, "'attention_scores' reads query, key and value, and none are found"),
        ({"relations"}, "none are found in the student's ConvNet"),
    ):
        one_line(StudentError, says, look_inside, conv, taps, frozenset(reads), who="student")
    text = textconv.TextConv(
        textconv.TextConvSpec(vocabulary=40, length=12, pad=1, classes=3, embedding=4, depth=2)
    )
    one_line(
        TeacherError, "tap 'stages.0' of the teacher gives 4 x 1 x 12", look_inside, text,
        find_taps(text, texts()[:2]), ALL, who="teacher", error=TeacherError,
    )  # fmt: skip
    one_line(
        StudentError, "tap 'norm' of the student holds none", look_inside, own(),
        [Tap(path="norm", shape=(12, 8))], frozenset({"scores"}), who="student",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Bert", "ModernBert"])
def test_token_signals_come_back_from_the_disk(tmp_path, kind):
    ids = texts()
    network = foreign(kind)
    plain = TorchTeacher(network, classes=3, image_shape=(12,), example=ids)
    teacher = Insider(Reordered(plain, [2, 0, 1]), looked(network))
    assert module_of(teacher) is network

    def batch(index, view):
        return Batch(inputs=ids[index], labels=None, index=index, keep=ids[index].ne(1))

    made = Split(name="train", count=6, content="texts", batch=batch)
    held = SignalCache(tmp_path, made, views=1, features=True, maps=False, teacher=teacher)
    states, scores, relations = 3 * 12 * 16, 3 * 12 * 12, 3 * 12 * 16
    assert held.bytes_per_example == 3 * 4 + 2 * (3 * 16 + states + scores + relations)
    held.fill(Silent())
    index = torch.tensor([4, 0, 2])
    live = LiveSignals(teacher, features=True, maps=False).read(ids[index], ids[index].ne(1))
    stored = held.read(index, 0)
    assert torch.equal(live.decision, plain.read(ids[index]).decision[:, [2, 0, 1]])
    for name in ("states", "scores", "relations", "features"):
        pairs = list(zip(getattr(stored, name), getattr(live, name), strict=True))
        assert pairs
        for one, other in pairs:
            assert one.dtype == torch.float16
            torch.testing.assert_close(one.float(), other, rtol=2e-3, atol=2e-3)
    keys = {held.key}
    for reads in ({"states"}, {"relations"}):
        other = Insider(plain, looked(network, frozenset(reads)))
        keys.add(
            SignalCache(
                tmp_path, made, views=1, features=True, maps=False, teacher=other
            ).key
        )  # fmt: skip
    assert len(keys) == 3
    # What is asked live may stand in a student's backward pass.
    live.states[0].mul(torch.ones(1, requires_grad=True)).sum().backward()
