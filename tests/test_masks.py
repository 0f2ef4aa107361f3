"""What a pad says counts nowhere: in features, signals, lessons, branches and pairing."""

from __future__ import annotations

import pytest
import torch

from tutelage.losses import Objective, Term
from tutelage.progress import Silent
from tutelage.students.branches import Branch
from tutelage.students.families import encoder, textconv
from tutelage.students.taps import find_taps, reading
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.teach.torch_teacher import Reordered, TorchTeacher
from tutelage.train.distill import Distillation
from tutelage.types import Batch, pooled

LENGTH, PAD, COUNT = 12, 1, 20
GIVEN = {"vocabulary": 50, "length": LENGTH, "pad": PAD, "classes": 3}
FAMILIES = {
    "encoder": lambda: encoder.Encoder(
        encoder.EncoderSpec(**GIVEN, layers=2, hidden=8, heads=2, inner=8)
    ),
    "textconv": lambda: textconv.TextConv(textconv.TextConvSpec(**GIVEN, embedding=6, depth=2)),
}


def network(family="encoder", seed=0):
    torch.manual_seed(seed)
    return FAMILIES[family]().eval()


def texts(width=LENGTH, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 50, (COUNT, width), generator=draw)
    for row in range(COUNT):
        ids[row, 1 + row % 7 :] = PAD
    return ids


def split(ids, *, masked=True):
    def batch(index, view):
        keep = ids[index].ne(PAD) if masked else None
        labels = index % 3
        return Batch(inputs=ids[index], labels=labels, index=index, view=view, keep=keep)

    return Split(name="train", count=len(ids), content="texts", batch=batch)


def test_the_mean_by_hand():
    keep = torch.tensor([[True, True, False], [False, False, False]])
    tokens = torch.tensor([[[1.0], [3.0], [100.0]], [[7.0], [7.0], [7.0]]])
    assert pooled(tokens, keep).tolist() == [[2.0], [0.0]]
    steps = tokens.transpose(1, 2).unsqueeze(2)  # the same as [b, c, 1, t]
    assert pooled(steps, keep).tolist() == [[2.0], [0.0]]
    assert pooled(tokens).tolist() == [[pytest.approx(104 / 3)], [7.0]]
    # What does not lie over these positions is pooled as ever.
    for other in (torch.rand(2, 5, 4), torch.rand(2, 4, 3, 3), torch.rand(2, 4)):
        assert torch.equal(pooled(other, keep), pooled(other))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_hang_on_how_many_pads_there_are(family):
    net, ids = network(family), texts()
    taps = find_taps(net, ids[:2])

    def features(seen, *, masked=True):
        keep = seen.ne(PAD) if masked else None
        with torch.no_grad():
            return reading(net, seen, taps, features=True, maps=False, keep=keep).features

    whole, short = features(ids), features(ids[:, :7])
    assert len(whole) == 2
    for one, other in zip(whole, short, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    blind = features(ids, masked=False)
    assert not any(torch.allclose(a, b) for a, b in zip(whole, blind, strict=True))


@pytest.mark.parametrize("shape", [(LENGTH, 6), (6, 1, LENGTH)])
def test_a_branch_leaves_pads_out(shape):
    torch.manual_seed(0)
    branch = Branch(shape, 3).eval()
    keep = texts().ne(PAD)
    where = keep[:, :, None] if len(shape) == 2 else keep[:, None, None, :]
    output = torch.randn(COUNT, *shape)
    wild = output.masked_fill(~where, 1e3)
    torch.testing.assert_close(branch(wild, keep), branch(output, keep))
    assert not torch.allclose(branch(wild), branch(output))
    full = torch.ones_like(keep)
    torch.testing.assert_close(branch(output, full), branch(output), rtol=0, atol=1e-5)


def test_signals_are_means_over_tokens_and_have_a_key_of_their_own(tmp_path):
    ids = texts()
    net = network()
    teacher = TorchTeacher(net, classes=3, image_shape=(LENGTH,), example=ids)

    def cache(made, *, features=True):
        options = {"features": features, "maps": False, "teacher": teacher}
        return SignalCache(tmp_path, made, views=1, **options)

    masked, blind = cache(split(ids)), cache(split(ids, masked=False))
    assert masked.key != blind.key
    # A decision is the same with and without.
    assert (
        cache(split(ids), features=False).key == cache(split(ids, masked=False), features=False).key
    )
    masked.fill(Silent())
    index = torch.tensor([3, 11, 6])
    keep = ids[index].ne(PAD)
    live = LiveSignals(teacher, features=True, maps=False)
    for said in (masked.read(index, 0), live.read(ids[index], keep)):
        for i, row in enumerate(index.tolist()):
            alone = ids[row : row + 1, : 1 + row % 7]  # the text by itself, without a pad
            want = teacher.read(alone, features=True).features
            for mine, theirs in zip(said.features, want, strict=True):
                torch.testing.assert_close(mine[i].float(), theirs[0], rtol=2e-3, atol=2e-3)
    turned = Reordered(teacher, [2, 0, 1]).read(ids[index], features=True, keep=keep)
    assert torch.equal(turned.features[0], live.read(ids[index], keep).features[0])


def test_a_lesson_reads_the_student_without_pads():
    ids, student = texts(), network(seed=3)
    lesson = Distillation(
        student,
        Objective((Term(name="features", weight=1.0),), pairs=((0, 0),), student_widths=(8, 8),
                  teacher_widths=(8,)),
        split(ids),
        split(ids),
        signals=LiveSignals(
            TorchTeacher(network(), classes=3, image_shape=(LENGTH,), example=ids),
            features=True, maps=False,
        ),
        taps=find_taps(student, ids[:2]),
        classes=3, views=1, batch=8, seed=0,
    )  # fmt: skip
    batch, said = next(lesson.batches(0, 0))
    value = lesson.loss((batch, said))[0]
    shorter = Batch(
        inputs=batch.inputs[:, :7], labels=batch.labels, index=batch.index, keep=batch.keep[:, :7]
    )
    torch.testing.assert_close(lesson.loss((shorter, said))[0], value)
