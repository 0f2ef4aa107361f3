"""Lessons from layer to layer of language models: by hand, naively, resumed, in micro-batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from decoders import decoder, some_ids
from language_samples import Rows

from tutelage.errors import RecipeError
from tutelage.losses.language_inside import (
    apart_inside,
    hidden,
    relations,
    relations_by_sequence,
)
from tutelage.students.decoders.sizes import with_sizes
from tutelage.students.decoders.slicing import slice_decoder
from tutelage.train.inside import InsideLesson
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

BOTH = {"hidden": 0.5, "relations": 2.0}
TWO = {"relations": {"heads": 2}}


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(student, teacher, heads):
    """Token by token, with probabilities, over what came before alone."""
    count = student.shape[0]
    found = torch.zeros(count, dtype=student.dtype)
    for head in range(heads):
        s, t = (x.chunk(heads, dim=1)[head] for x in (student, teacher))
        for row in range(count):
            q, p = ((x[: row + 1] @ x[row] / x.shape[1] ** 0.5).softmax(0) for x in (s, t))
            found[row] += (p * (p / q).log()).sum() / heads
    return found


def test_relations_are_those_to_what_came_before():
    student, teacher = drawn(5, 6), drawn(5, 8, seed=1)
    got = relations(student, teacher, heads=2)
    torch.testing.assert_close(got, naive(student, teacher, 2))
    later = student.clone()
    later[3:] += 5.0  # tokens to come change nothing before them
    assert torch.equal(relations(later, teacher, heads=2)[:3], got[:3]) and got[0] == 0
    assert relations(student, torch.cat([student] * 2, 1) / 2**0.25, heads=1).abs().max() > 0
    torch.testing.assert_close(relations(student, student, heads=3), torch.zeros_like(got))
    assert relations(1e4 * student.float(), -1e4 * teacher.float(), heads=2).isfinite().all()


def test_relations_by_hand():
    """Student's products are 0, so it says (1/2, 1/2) where the teacher says (1/4, 3/4)."""
    teacher = torch.tensor([[0.0], [math.sqrt(math.log(3))]])
    got = relations(torch.zeros(2, 1), teacher, heads=1)
    want = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert got.tolist() == pytest.approx([0.0, want])


def test_sequence_by_sequence_is_all_at_once():
    student, teacher, counts = drawn(3, 5, 6), drawn(3, 5, 8, seed=1), drawn(3, 5, seed=2).abs()
    mine, plain = (student.clone().requires_grad_() for _ in range(2))
    got = relations_by_sequence(mine, teacher, counts, heads=2)
    want = (relations.function(plain, teacher, heads=2) * counts).sum()
    (3 * got).backward(), (3 * want).backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mine.grad, plain.grad)
    assert not relations_by_sequence(student, teacher, counts, heads=2).requires_grad


def test_hidden_by_hand():
    student, teacher = (
        torch.tensor([[3.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[3.0, 4.0], [2.0, 2.0]]),
    )
    assert hidden(student, teacher).tolist() == pytest.approx([16 / 25, 2 / 8])
    assert hidden(student, teacher, by="cosine").tolist() == pytest.approx([1 - 3 / 5, 0], abs=1e-6)
    assert hidden(1e4 * student, -teacher).isfinite().all()


def test_heads_that_do_not_divide_and_wrong_options_are_refused():
    with pytest.raises(RecipeError, match=r"4 heads do not divide 6 .* \{heads: 3\}"):
        relations(drawn(2, 6), drawn(2, 8), heads=4)
    with pytest.raises(RecipeError, match="'mse', 'cosine'"):
        hidden.checked({"by": "mean"})
    with pytest.raises(RecipeError, match="heads"):
        relations.checked({"heads": 1.5})
    assert apart_inside({"forward_kl": 1.0, **BOTH}) == ({"forward_kl": 1.0}, BOTH)


def pair(**sizes):
    """Return a slice and the network it is of: two of four layers, 20 of 32 numbers, 2 groups."""
    whole = decoder("qwen3")
    sizes = sizes or {"layers": 2, "hidden": 20, "groups": 2}
    return slice_decoder(whole, with_sizes(whole.spec, **sizes), some_ids()), whole


def inside_of(student, whole, losses=BOTH, **given):
    return InsideLesson(student, whole, losses=losses, options={
        name: TWO[name] for name in TWO if name in losses}, **given)  # fmt: skip


def test_pairs_and_projectors_follow_the_slice():
    student, whole = pair()
    lesson = inside_of(student, whole)
    assert lesson.pairs == tuple(enumerate(student.origin.layers)) and len(lesson.projectors) == 2
    state = drawn(3, 20, dtype=torch.float32)
    placed = lesson.projectors[1](state).detach()
    assert torch.equal(placed[:, list(student.origin.numbers)], state)
    assert int((placed != 0).sum()) == state.numel()
    assert "asked in every step" in lesson.describe(student, 10**6)
    equal, _ = pair(layers=3)
    assert inside_of(equal, whole).modules == ()
    assert inside_of(student, whole, {"relations": 1.0}).modules == ()
    with pytest.raises(RecipeError, match="the teacher has no layer 4; name 0 to 3"):
        inside_of(student, whole, pairs=[(0, 4)])
    with pytest.raises(RecipeError, match="the student has no layer 2"):
        inside_of(student, whole, pairs=[(2, 1)])


def test_the_value_is_the_mean_over_learned_tokens_and_pairs():
    student, whole = pair()
    lesson, ids = inside_of(student, whole), some_ids(3, 9)
    learned = torch.rand(3, 9, generator=torch.Generator().manual_seed(4)) < 0.6
    with lesson.listening(student) as heard:
        student.states(ids)
    total, parts = lesson.value(heard, ids, learned)
    want_h, want_r = [], []
    seen = [n.network(ids, output_hidden_states=True).hidden_states for n in (student, whole)]
    for place, (mine, theirs) in enumerate(lesson.pairs):
        if mine == 0:  # of a last layer transformers gives what its norm made of it
            said = lesson.projectors[place](seen[0][mine + 1][learned])
            torch.testing.assert_close(heard.states[mine], seen[0][mine + 1])
        else:
            said = lesson.projectors[place](heard.states[mine][learned])
        wanted = seen[1][theirs + 1][learned] if theirs < 3 else None
        if wanted is None:
            with lesson.listening(whole, 1) as told:
                whole.states(ids)
            wanted = told.states[theirs][learned]
        want_h.append(((said - wanted).square().sum(1) / wanted.square().sum(1)).mean())
        for name in ("q_proj", "k_proj", "v_proj"):
            with lesson.listening(whole, 1) as told:
                whole.states(ids)
            a, b = heard.relations[mine, name], told.relations[theirs, name]
            each = torch.stack([naive(x, y, 2) for x, y in zip(a, b, strict=True)])
            want_r.append(each[learned].mean())
    torch.testing.assert_close(parts["hidden"], torch.stack(want_h).mean().detach())
    torch.testing.assert_close(parts["relations"], torch.stack(want_r).mean().detach())
    torch.testing.assert_close(total, 0.5 * parts["hidden"] + 2 * parts["relations"])
    assert all(not p.requires_grad for p in parts.values()) and total.requires_grad


def rows(count=6, seed=0):
    ids = some_ids(count, 9, seed=seed).numpy().astype(np.int32)
    learned = np.random.default_rng(seed).random(ids.shape) < 0.6
    learned[:, 1] = True
    return Rows(ids=ids, learned=learned)


def lesson(student, whole, **given):
    given = {"micro_batch": 2, "inside": inside_of(student, whole), **given}
    return LanguageLesson(
        student, rows(), rows(3, 1), losses={"token_cross_entropy": 1.0}, batch=4, seed=5, **given
    )


def schedule(epochs=3):
    return Schedule(precision="float32", epochs=epochs, rate=0.01, seed=5, checkpoint_s=0.0)


@pytest.mark.parametrize(("micro", "recompute"), [(1, False), (3, False), (2, True)])
def test_micro_batches_and_recomputing_give_the_same_gradients(micro, recompute):
    found = []
    for size, again in ((4, False), (micro, recompute)):
        taught = lesson(*pair(), micro_batch=size, recompute=again)
        total, parts = taught.loss(next(taught.batches(0, 0)))
        total.backward()
        assert set(parts) == {"token_cross_entropy", *BOTH}
        grads = [p.grad for m in taught.modules for p in m.parameters()]
        assert all(g is not None and g.abs().max() > 0 for g in grads)
        found.append([total.detach(), *grads])
    torch.testing.assert_close(found[0], found[1])


def test_a_stop_changes_no_bit_of_student_or_projectors(tmp_path):
    def end(trainer):
        return [p.detach().clone() for m in trainer.lesson.modules for p in m.parameters()]

    whole = Trainer(lesson(*pair()), schedule())
    history = whole.train()
    path, stopped = tmp_path / "state.safetensors", lesson(*pair())
    loss_of, calls = stopped.loss, []

    def stop(batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss_of(batch)

    stopped.loss = stop
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, schedule(), checkpoint=path).train()
    again = Trainer(lesson(*pair()), schedule(), checkpoint=path)
    assert again.train() == history and again.step > 2
    assert all(map(torch.equal, end(again), end(whole)))


@pytest.mark.parametrize("name", BOTH)
def test_layers_come_nearer_to_their_teachers(name):
    student, whole = pair()
    taught = lesson(student, whole, inside=inside_of(student, whole, {name: 5.0}))
    parts = Trainer(taught, schedule(25)).train().parts
    assert parts[-1][name] < 0.9 * parts[0][name]


def test_the_key_names_losses_options_and_pairs():
    student, whole = pair()
    keys = {
        inside_of(student, whole, losses, **given).key
        for losses, given in (
            (BOTH, {}), ({"hidden": 1.0}, {}), ({"hidden": 0.5}, {}), (BOTH, {"pairs": [(0, 1)]}),
        )
    }  # fmt: skip
    assert len(keys) == 4
    assert lesson(student, whole).key != lesson(student, whole, inside=None).key
