"""A student learns from its own words: which batches, which prompts, what is asked, resuming."""

import numpy as np
import pytest
import torch
from decoders import decoder

from tutelage.errors import RecipeError
from tutelage.progress import Silent
from tutelage.tasks.causal_lm.packing import FILLED, Tokens
from tutelage.teach.token_signals import Speaker, TokenSignals
from tutelage.train import block_rounding
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.on_policy import Mixing, OnPolicy, cut, padded
from tutelage.train.schedule import Schedule

LENGTH, STEPS, EPOCHS = 16, 3, 2
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 4, "head_dim": 4,
         "num_key_value_heads": 2}  # fmt: skip


def tokens(count=6, seed=0):
    """Two documents a row: a chat (a prompt of three, an answer of four) and a text; two pads."""
    ids = np.random.default_rng(seed).integers(4, 61, (count, LENGTH)).astype(np.int32)
    owner = np.array([0] * 7 + [1] * 7 + [FILLED] * 2, np.int32) + np.zeros((count, 1), np.int32)
    learned = np.array([0, 0, 0, 1, 1, 1, 1, 0] + [1] * 6 + [0, 0], np.bool_) | np.zeros(
        (count, 1), np.bool_
    )
    return Tokens(ids=ids, learned=learned, owner=owner, fingerprint=str(seed), documents=2 * count)


def student():
    return decoder(seed=3, **SMALL)


@pytest.fixture(scope="module")
def teacher():
    return Speaker(decoder(seed=9, **SMALL))


@pytest.fixture(scope="module")
def signals(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("signals")
    return TokenSignals.fill(folder, "teacher", teacher, tokens(), progress=Silent())


def own(teacher, **changes):
    given = {"mixing": Mixing(share=0.5), "losses": {"reverse_kl": 1.0}, "ends": {2}, "longest": 5,
             "seed": 4, **changes}  # fmt: skip
    return OnPolicy(teacher, tokens(), tokens(3, seed=1), **given)


def lesson(signals, words, network=None):
    made = LanguageLesson(
        network or student(), tokens(), tokens(3, seed=1), losses={"forward_kl": 1.0},
        signals=signals, batch=2, seed=4,
    )  # fmt: skip
    made.write_own(words)
    return made


@pytest.mark.parametrize(
    ("mixing", "taken"),
    [
        (Mixing(share=0.5), [1, 3, 5, 7, 9]),
        (Mixing(share=0.3), [3, 6, 9]),
        (Mixing(share=1.0, first=7), [7, 8, 9]),
        (Mixing(share=0.5, first=6), [7, 9]),
        (Mixing(share=0.0), []),
    ],
)
def test_own_steps_are_evenly_spread_by_hand(mixing, taken):
    assert [step for step in range(10) if mixing.takes(step)] == taken


def test_a_share_is_kept_exactly():
    for share in (0.1, 0.25, 0.7, 1.0):
        assert sum(Mixing(share=share).takes(step) for step in range(1000)) == 1000 * share


def test_prompts_stand_before_answers_or_are_a_text_s_beginning():
    row, found = tokens(1), set()
    for seed in range(60):
        found.add(cut(row.learned[0], row.owner[0], np.random.default_rng(seed)))
    assert (0, 3) in found  # all that stands before the answer
    texts = sorted(found - {(0, 3)})  # the text has 6 learned tokens from 8 on; 1/8 to 1/2 of them
    assert texts == [(7, 8), (7, 9), (7, 10)]


def test_continuations_are_filled_up_behind_by_hand():
    ids, learned = padded([([5, 6], [7]), ([8], [9, 10, 2])])
    assert ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 2]]
    assert learned.tolist() == [[False, False, True, False], [False, True, True, True]]


def test_what_is_written_hangs_on_seed_step_and_weights_alone(teacher):
    network, index = student(), np.array([0, 1])

    def write(step=0, network=network, **changes):
        words = own(teacher, **changes)
        torch.manual_seed(step)
        return [p[0].tolist() for p in words.written(network, words.beginnings(index, step))]

    assert write() == write()
    others = [write(step=1), write(seed=5), write(network=decoder(seed=8, **SMALL))]
    assert all(other != write() for other in others)
    assert write(longest=3) != write()


def test_weights_that_feel_rounding_are_rounded_once_a_batch(teacher, monkeypatch):
    network, felt, words = decoder(seed=3, hidden_size=32), [], own(teacher)
    rounded = block_rounding.rounded
    monkeypatch.setattr(block_rounding, "rounded", lambda *x: felt.append(x[1]) or rounded(*x))
    with block_rounding.block_rounded(network, "q4_1"):
        layers = sum("original" in name for name in network.state_dict())
        felt.clear()
        words.written(network, words.beginnings(np.array([0, 1]), 0))
        assert layers and len(felt) == layers


def test_equal_prompts_are_gone_on_with_differently(teacher):
    words = own(teacher)
    given = words.beginnings(np.array([0, 0]), 0)
    given.prompts[1] = given.prompts[0]
    ((ids, _),) = words.written(student(), given)
    assert ids[0].tolist() != ids[1].tolist()


NAIVE = {
    "forward_kl": lambda p, q: (p.exp() * (p - q)).sum(-1),
    "reverse_kl": lambda p, q: (q.exp() * (q - p)).sum(-1),
    "generalised_jsd": lambda p, q: 0.5 * sum(
        (x.exp() * (x - (0.5 * (p.exp() + q.exp())).log())).sum(-1) for x in (p, q)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("together", [1, 2])
def test_the_loss_is_the_divergence_at_each_token_that_the_student_wrote(
    teacher, signals, name, together
):
    network, words = student(), own(teacher, losses={name: 2.0})
    words.together = together
    taught, given = lesson(signals, words, network), words.beginnings(np.array([2, 4]), 1)
    total, parts = taught.loss(given)
    total.backward()
    got = {key: p.grad.clone() for key, p in network.named_parameters()}
    network.zero_grad()
    values = []
    for ids, learned in words.written(network, given):
        for row, at in zip(ids, learned, strict=True):
            last = int(at.nonzero().max())
            p, q = (
                net(row[None, :last])[0][at[1 : last + 1]].log_softmax(-1)
                for net in (teacher.network, network)
            )
            values.append(NAIVE[name](p.detach(), q))
    assert sum(map(len, values)) <= 2 * 5
    want = 2 * torch.cat(values).mean()
    want.backward()
    torch.testing.assert_close(total.detach(), want.detach(), rtol=1e-4, atol=1e-6)
    assert list(parts) == [f"own_{name}"]
    torch.testing.assert_close(parts[f"own_{name}"], want.detach() / 2, rtol=1e-4, atol=1e-6)
    for key, parameter in network.named_parameters():
        torch.testing.assert_close(got[key], parameter.grad, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in teacher.network.parameters())


def everything(trainer):
    return {**trainer.lesson.student.state_dict(), **trainer._position()["average"][0]}


def test_a_stop_after_any_step_changes_no_bit(tmp_path, teacher, signals):
    schedule = Schedule(epochs=EPOCHS, rate=0.02, seed=4, checkpoint_s=0.0, precision="float32")
    whole = Trainer(lesson(signals, own(teacher)), schedule)
    history = whole.train()
    assert set(history.parts[0]) == {"forward_kl", "own_reverse_kl"}
    want = everything(whole)
    for after in (1, 2, 4):
        path, stopped = tmp_path / f"{after}.safetensors", lesson(signals, own(teacher))
        loss_of, calls = stopped.loss, iter(range(after))

        def stop(batch, loss_of=loss_of, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return loss_of(batch)

        stopped.loss = stop
        with pytest.raises(KeyboardInterrupt):
            Trainer(stopped, schedule, checkpoint=path).train()
        again = Trainer(lesson(signals, own(teacher)), schedule, checkpoint=path)
        assert again.train() == history
        got = everything(again)
        assert [name for name in want if not torch.equal(got[name], want[name])] == []


def test_parts_are_means_over_the_steps_that_had_them(teacher, signals):
    taught, seen = lesson(signals, own(teacher)), []
    loss_of = taught.loss

    def remember(batch):
        total, parts = loss_of(batch)
        seen.append({name: float(value) for name, value in parts.items()})
        return total, parts

    taught.loss = remember
    parts = Trainer(taught, Schedule(epochs=1, rate=0.02, precision="float32")).train().parts[0]
    assert len(seen) == STEPS and len([s for s in seen if "own_reverse_kl" in s]) == 1
    data = [s["forward_kl"] for s in seen if "forward_kl" in s]
    assert parts["forward_kl"] == pytest.approx(np.mean(data), rel=1e-6)


def test_a_student_comes_nearer_to_its_teacher_in_its_own_words(teacher, signals):
    taught = lesson(signals, own(teacher, mixing=Mixing(share=1.0)))
    history = Trainer(taught, Schedule(epochs=10, rate=0.03, precision="float32")).train()
    found = [part["own_reverse_kl"] for part in history.parts]
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3])


def test_validation_weighs_own_words_by_their_share(teacher, signals):
    network, index = student(), np.arange(3)
    texts = lesson(signals, None).evaluate((network,))
    words = own(teacher, mixing=Mixing(share=0.25))
    ((ids, learned),) = words.written(network, words.held_out(index))
    again = words.written(network, words.held_out(index))
    assert torch.equal(again[0][0], ids)
    with torch.inference_mode():
        p, q = (net(ids[:, :-1]).log_softmax(-1)[learned[:, 1:]] for net in
                (teacher.network, network))  # fmt: skip
        apart = float(NAIVE["reverse_kl"](p, q).mean())
        got = lesson(signals, words).evaluate((network,))
    assert got == pytest.approx(0.75 * texts - 0.25 * apart, rel=1e-4)


CHANGES = [
    {"mixing": Mixing(share=0.4)}, {"mixing": Mixing(share=0.5, first=1)}, {"seed": 5},
    {"losses": {"forward_kl": 1.0}}, {"longest": 4}, {"temperature": 0.5}, {"ends": {2, 3}},
]  # fmt: skip


def test_the_key_names_all_that_it_hangs_on(teacher, signals):
    keys = {lesson(signals, own(teacher, **change)).key for change in [{}, *CHANGES]}
    assert len({*keys, lesson(signals, None).key}) == 2 + len(CHANGES)


def test_what_cannot_be_is_refused(teacher):
    with pytest.raises(RecipeError, match="would teach the student its own words"):
        own(teacher, losses={"token_cross_entropy": 1.0})
    with pytest.raises(RecipeError, match="Did you mean 'reverse_kl'"):
        own(teacher, losses={"revers_kl": 1.0})
    with pytest.raises(RecipeError, match="longest is 9 and sequences have 16 tokens; give 8"):
        own(teacher, longest=9)
