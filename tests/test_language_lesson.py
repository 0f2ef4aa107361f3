"""Language models in the common loop: exact resuming, micro-batches, orders, refusals."""

import numpy as np
import pytest
import torch
from language_samples import LENGTH, VOCABULARY, Rows, Speech, rows

from tutelage.errors import DataError, RecipeError, StudentError, TeacherError
from tutelage.progress import Silent
from tutelage.teach.token_signals import Speaker, TokenSignals
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

TRAIN, VALIDATION = rows(11, silent=(3,)), rows(5, seed=1)
BOTH = {"forward_kl": 1.0, "token_cross_entropy": 0.5}
STEPS, EPOCHS = 2, 2


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    asked = Speaker(Speech(seed=9))

    def fill(tokens, kind="topk"):
        return TokenSignals.fill(
            folder, "teacher", asked, tokens, kind=kind, kept=4, progress=Silent()
        )

    return fill


def lesson(told, *, student=None, losses=BOTH, kind="topk", tokens=TRAIN, **options):
    given = {"batch": 4, "micro_batch": 3, "seed": 5, "signals": told(tokens, kind), **options}
    return LanguageLesson(student or Speech(), tokens, VALIDATION, losses=losses, **given)


def schedule(**options):
    given = {"epochs": EPOCHS, "rate": 0.02, "seed": 5, "checkpoint_s": 0.0, **options}
    return Schedule(precision="float32", **given)


def everything(trainer):
    state = trainer.lesson.student.state_dict(), trainer._position(), trainer.best
    return dict(_flat(state))


def _flat(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{name}.{key}")


@pytest.mark.parametrize("recompute", [False, True])
def test_a_stop_after_any_step_changes_no_bit(tmp_path, told, recompute):
    whole = Trainer(lesson(told, recompute=recompute), schedule())
    history = whole.train()
    want = everything(whole)
    for after in range(EPOCHS * STEPS):
        path = tmp_path / f"{after}.safetensors"
        stopped, calls = lesson(told, recompute=recompute), 0
        loss_of = stopped.loss

        def stop(batch, loss_of=loss_of, after=after):
            nonlocal calls
            if calls == after:
                raise KeyboardInterrupt
            calls += 1
            return loss_of(batch)

        stopped.loss = stop
        with pytest.raises(KeyboardInterrupt):
            Trainer(stopped, schedule(), checkpoint=path).train()
        again = Trainer(lesson(told, recompute=recompute), schedule(), checkpoint=path)
        assert again.train() == history
        got = everything(again)
        assert got.keys() == want.keys()
        assert [name for name in want if not torch.equal(got[name], want[name])] == []


def grads(network):
    found = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is not None for g in found.values())
    return found


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_give_the_loss_and_gradients_of_the_whole(told, micro, recompute):
    one = lesson(told, student=Speech(dropout=0.0), micro_batch=4, kind="dense")
    batch = next(one.batches(0, 0))
    assert len(batch) == 1
    many = lesson(told, student=Speech(dropout=0.0), micro_batch=micro, kind="dense",
                  recompute=recompute)  # fmt: skip
    parts = next(many.batches(0, 0))
    assert len(parts) == -(-4 // micro) and len({p.count for p in parts}) > (micro != 4)
    network = one.student
    ids, seen = batch[0].ids, batch[0].learned[:, 1:]
    logits = (network.states(ids) @ network.head.T)[:, :-1][seen]
    log_p = batch[0].teacher.log_probs.float().log_softmax(1)
    kl = torch.nn.functional.kl_div(
        logits.log_softmax(1), log_p, log_target=True, reduction="batchmean"
    )  # fmt: skip
    ce = torch.nn.functional.cross_entropy(logits, ids[:, 1:][seen])
    (kl + 0.5 * ce).backward()
    want = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    total, found = many.loss(parts)
    (2 * total).backward()
    torch.testing.assert_close(total.detach(), (kl + 0.5 * ce).detach())
    torch.testing.assert_close(found["forward_kl"], kl.detach())
    torch.testing.assert_close(found["token_cross_entropy"], ce.detach())
    for name, grad in grads(many.student).items():
        torch.testing.assert_close(grad, 2 * want[name])


def test_recomputing_computes_layers_twice_and_leaves_the_network_as_it_was(told):
    for recompute, calls in ((False, 1), (True, 2)):
        taught = lesson(told, micro_batch=4, recompute=recompute)
        total, _ = taught.loss(next(taught.batches(0, 0)))
        total.backward()
        layer = taught.student.layers[0]
        assert layer.calls == calls and "forward" not in vars(layer)


def test_a_frozen_part_gets_no_gradient(told):
    taught = lesson(told)
    taught.student.layers[0].requires_grad_(False)
    taught.loss(next(taught.batches(0, 0)))[0].backward()
    assert taught.student.layers[0].inner.weight.grad is None
    assert taught.student.layers[1].inner.weight.grad is not None


def _pairs(tokens):
    return zip(tokens.ids, tokens.learned & (np.arange(LENGTH) > 0), strict=True)


def _seen(part):
    return *part.ids[0].tolist(), *part.learned[0].tolist()


def test_every_epoch_has_its_own_order_of_all_that_teaches(told):
    taught = lesson(told, batch=2, micro_batch=1)
    assert taught.steps() == 5  # ten of eleven: nothing is learned of number 3
    where = {(*a.tolist(), *b.tolist()): i for i, (a, b) in enumerate(_pairs(TRAIN))}
    orders = []
    for epoch in range(3):
        parts = [part for batch in taught.batches(epoch, 0) for part in batch]
        orders.append([where[_seen(part)] for part in parts])
        assert sorted(orders[-1]) == [i for i in range(11) if i != 3]
    assert orders[0] != orders[1] != orders[2]
    late = [part for batch in taught.batches(2, 3) for part in batch]
    assert [where[_seen(p)] for p in late] == orders[2][6:]


def test_pieces_are_parts_of_the_order_of_a_whole_pass(told):
    whole = lesson(told, batch=2)
    cut = [lesson(told, batch=2, pieces=2, first_piece=first) for first in (0, 1)]

    def taken(lesson, epoch):
        ids = [part.ids for batch in lesson.batches(epoch, 0) for part in batch]
        return [row.tolist() for x in ids for row in x]

    assert cut[0].steps() == len(whole.chosen) // 2 // 2
    for epoch in (0, 1):
        passed, half = taken(whole, epoch), len(whole.chosen) // 2
        first, second = taken(cut[0], 2 * epoch), taken(cut[0], 2 * epoch + 1)
        assert first == passed[: len(first)]
        assert second[: len(passed) - half] == passed[half : half + len(second)]
        assert taken(cut[1], 2 * epoch) == second
    assert cut[0].key != cut[1].key != whole.key
    parts = [part for batch in cut[0].batches(1, 0) for part in batch]
    assert cut[0].taught_in(1) == sum(part.count for part in parts) > 0


def test_validation_is_in_the_precision_of_training(told):
    taught = lesson(told)
    batch = next(taught.batches(0, 0))
    with torch.no_grad():
        plain = taught.evaluate((taught.student,))
    with torch.autocast("cpu", torch.bfloat16):
        taught.loss(batch)
    with torch.no_grad():
        half = taught.evaluate((taught.student,))
    assert half == pytest.approx(plain, abs=0.1)
    assert half != plain


def test_fewer_examples_are_the_first_of_a_fixed_order(told):
    few, more = (set(lesson(told, examples=n).chosen) for n in (3, 7))
    assert len(few) == 3 and few < more and len(more) == 7


def test_validation_is_minus_the_mean_over_its_tokens(told):
    network = Speech().eval()
    ids, learned = torch.from_numpy(VALIDATION.ids).long(), torch.from_numpy(VALIDATION.learned)
    logits = (network.states(ids) @ network.head.T)[:, :-1][learned[:, 1:]].detach()
    ce = torch.nn.functional.cross_entropy(logits, ids[:, 1:][learned[:, 1:]])
    with torch.inference_mode():
        got = lesson(told, micro_batch=2).evaluate((network,))
        assert got == pytest.approx(-float(ce), rel=1e-6)
        signals = told(VALIDATION, "dense")
        got = lesson(told, kind="dense", validation_signals=signals).evaluate((network,))
    log_p = signals.read(torch.arange(5)).log_probs.float().log_softmax(1)
    kl = (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1).mean()
    assert got == pytest.approx(-float(kl + 0.5 * ce), rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "topk", "sampled"])
def test_a_student_comes_nearer_to_its_teacher(told, kind):
    signals = told(VALIDATION, "dense")

    def distance(student):
        judge = lesson(told, kind="dense", losses={"forward_kl": 1.0}, validation_signals=signals)
        with torch.inference_mode():
            return -judge.evaluate((student.eval(),))

    before = distance(Speech())
    taught = lesson(told, losses={"forward_kl": 1.0}, kind=kind)
    history = Trainer(taught, schedule(epochs=20, rate=0.03)).train()
    assert history.loss[-1] < history.loss[0]
    assert distance(taught.student) < 0.5 * before


def test_text_alone_teaches_without_a_teacher(told):
    taught = lesson(told, losses={"token_cross_entropy": 1.0}, signals=None)
    figure = Trainer(taught, schedule(epochs=20)).train().figure
    assert max(figure) > figure[0] + 0.1


CHANGES = [
    {"losses": {"forward_kl": 1.0}}, {"losses": {"forward_kl": 1.0, "token_cross_entropy": 0.4}},
    {"kind": "dense"}, {"temperature": 2.0}, {"batch": 5}, {"micro_batch": 2}, {"seed": 6},
    {"examples": 9}, {"recompute": True}, {"tokens": rows(12)},
    {"losses": {"skew_kl": 1.0}},
    {"losses": {"skew_kl": 1.0}, "options": {"skew_kl": {"alpha": 0.2}}},
]  # fmt: skip


def test_the_key_names_all_that_the_outcome_hangs_on(told):
    keys = {lesson(told, **change).key for change in [{}, *CHANGES]}
    assert len(keys) == 1 + len(CHANGES)
    assert lesson(told).key == lesson(told, student=Speech(seed=4)).key


def unlearned(count):
    return Rows(
        ids=np.zeros((count, LENGTH), np.int32), learned=np.arange(LENGTH) < np.ones((count, 1))
    )  # fmt: skip


def test_what_cannot_teach_is_refused(told):
    with pytest.raises(DataError, match="no token of the training texts"):
        lesson(told, tokens=unlearned(3))
    with pytest.raises(DataError, match="no token of the validation texts"):
        LanguageLesson(Speech(), TRAIN, unlearned(2), losses={"token_cross_entropy": 1.0},
                       batch=2, seed=0)  # fmt: skip
    with pytest.raises(RecipeError, match="no signals are given"):
        lesson(told, signals=None)
    with pytest.raises(RecipeError, match="Did you mean 'forward_kl'"):
        lesson(told, losses={"forward_lk": 1.0})
    with pytest.raises(TeacherError, match="of other texts"):
        lesson(told, signals=told(VALIDATION))
    small = Speech()
    small.embedding = torch.nn.Embedding(VOCABULARY - 3, 6)
    with pytest.raises(DataError, match="hold token 12 and the student knows 10"):
        lesson(told, student=small)
    large = Speech()
    large.embedding = torch.nn.Embedding(VOCABULARY + 3, 6)
    with pytest.raises(TeacherError, match="among 13 tokens and the student among 16"):
        lesson(told, student=large)
    flat = Speech()
    flat.layers = torch.nn.Sequential(*flat.layers)
    taught = lesson(told, student=flat, recompute=True)
    with pytest.raises(StudentError, match="leave recompute out"):
        taught.loss(next(taught.batches(0, 0)))
