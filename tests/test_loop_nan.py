"""A step without a finite loss changes nothing; many of them lead back, and then to an end."""

import copy
import json

import pytest
import torch
from test_loop import STEPS, Lesson, Recorder, everything, same, schedule, stopped

from tutelage.errors import TrainingError
from tutelage.train.loop import Trainer


def at(*places):
    """Spoil these (epoch, step), every time."""
    return lambda lesson, batch: batch[0] in places


def calls(*numbers):
    """Spoil these calls, whatever they teach."""
    return lambda lesson, batch: lesson.calls in numbers


def test_a_skipped_step_changes_nothing():
    lesson = Lesson(bad=at((1, 1), (1, 3), (2, 0)))
    trainer = Trainer(lesson, schedule())
    one_step, skipped = trainer._one_step, 0

    def watched(batch, total):
        nonlocal skipped
        before = copy.deepcopy(everything(trainer))
        count, at_step = trainer.history.skipped, trainer.step
        done = one_step(batch, total)
        assert trainer.step == at_step + 1
        if trainer.history.skipped > count:
            skipped += 1
            same(everything(trainer), before)
        else:
            with pytest.raises(AssertionError):
                same(everything(trainer), before)
        return done

    trainer._one_step = watched
    history = trainer.train()
    assert skipped == history.skipped == 3 and history.rolled_back == 0
    assert lesson.calls == 3 * STEPS
    assert all(tensor.isfinite().all() for tensor in everything(trainer).values())
    json.dumps(history.loss, allow_nan=False)


def test_a_gradient_that_is_not_finite_is_skipped_too():
    lesson = Lesson()
    weight, hit = lesson.modules[1].weight, []

    def poison(grad):
        hit.append(1)
        return grad * torch.inf if len(hit) == 2 else grad

    weight.register_hook(poison)
    assert Trainer(lesson, schedule()).train().skipped == 1
    assert weight.isfinite().all()


def test_the_mean_loss_leaves_skipped_steps_out():
    clean = Trainer(Lesson(), schedule(epochs=1)).train()
    spoilt = Trainer(Lesson(bad=at((0, 3))), schedule(epochs=1))
    lesson, kept = spoilt.lesson, []
    loss_of = lesson.loss

    def watched(batch):
        loss, parts = loss_of(batch)
        kept.append(float(loss.detach()))
        return loss, parts

    lesson.loss = watched
    history = spoilt.train()
    assert history.loss[0] == pytest.approx(sum(kept[:3]) / 3, rel=1e-5)
    assert clean.loss[0] != history.loss[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_three_in_a_row_lead_back_to_the_start_of_the_epoch_at_half_the_rate(times, optimizer):
    # Calls 6, 7, 8 are steps 1, 2, 3 of epoch 1: back to its step 0, which is call 9; and so on.
    bad = [6 + 4 * time + i for time in range(times) for i in range(3)]
    lesson, said = Lesson(bad=calls(*bad)), Recorder()
    options = schedule(optimizer=optimizer)
    trainer = Trainer(lesson, options, progress=said)
    history = trainer.train()
    assert (history.skipped, history.rolled_back) == (3 * times, times)
    assert lesson.seen[4 : 8 + 4 * times] == [(1, s) for s in (0, 1, 2, 3)] * (1 + times)
    assert trainer.rate_scale == 0.5**times
    assert len(said.lines) == times and "half the rate" in said.lines[0]
    assert said.starts == [(3 * STEPS, 0)] + [(3 * STEPS, STEPS)] * times
    assert said.done == 3 * STEPS
    # A naive loop: the first epoch, then two more at the lower rate.
    plain = Trainer(Lesson(), options)
    end_epoch = plain._end_epoch

    def halved():
        end_epoch()
        plain.rate_scale = 0.5**times

    plain._end_epoch = halved
    plain.train()
    same(everything(trainer), everything(plain))


def test_two_in_a_row_do_not_lead_back():
    history = Trainer(Lesson(bad=calls(2, 3, 5, 6, 8, 9)), schedule()).train()
    assert (history.skipped, history.rolled_back) == (6, 0)


def test_a_loss_that_stays_bad_ends_the_training():
    lesson = Lesson(bad=at((1, 1), (1, 2), (1, 3)))
    trainer = Trainer(lesson, schedule())
    with pytest.raises(TrainingError, match="12 steps skipped, rolled back 3 times"):
        trainer.train()
    assert lesson.calls == STEPS + 4 * STEPS
    assert trainer.rate_scale == 0.125


def test_a_loss_that_is_never_finite_ends_the_training_with_and_without_a_checkpoint(tmp_path):
    for path in (None, tmp_path / "state.safetensors"):
        lesson = Lesson(bad=lambda lesson, batch: True)
        with pytest.raises(TrainingError, match="lower distill.rate or look at the data"):
            Trainer(lesson, schedule(), checkpoint=path).train()
        assert lesson.calls == 12


def test_an_epoch_without_a_finite_step_leads_back_so_that_no_loss_is_nan():
    lesson = Lesson(bad=calls(2))
    lesson.steps = lambda: 1
    lesson.batches = lambda epoch, first: iter(list(Lesson.batches(lesson, epoch, 0))[:1])
    history = Trainer(lesson, schedule()).train()
    assert (history.skipped, history.rolled_back, lesson.calls) == (1, 1, 4)
    json.dumps(history.loss, allow_nan=False)


BAD = ((0, 2), (1, 1), (1, 2), (1, 3), (2, 3))


def heals(lesson, batch):
    """Epoch 1 is bad until the rate was halved, as when training has diverged."""
    rate = lesson.trainer.rate_scale
    return batch[0] in BAD and not (batch[0][0] == 1 and rate < 0.5)


def healing(path, stop_after=None):
    lesson = Lesson(bad=heals, stop_after=stop_after)
    trainer = Trainer(lesson, schedule(), checkpoint=path)
    lesson.trainer = trainer
    return trainer


@pytest.mark.parametrize("pace", [0.0, 1e9])
@pytest.mark.parametrize("after", [3, 5, 7, 8, 9, 12, 16, 17])
def test_a_stop_amid_skips_and_returns_changes_no_bit(tmp_path, after, pace):
    """Where checkpoints fall is chance; where the loop goes back to must not be."""
    whole = healing(None)
    history = whole.train()
    assert (history.skipped, history.rolled_back) == (8, 2)
    path = tmp_path / "state.safetensors"
    first = healing(path, stop_after=after)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = healing(path)
    again.schedule = schedule(checkpoint_s=pace)
    assert again.train() == history
    same(everything(again), everything(whole))


def test_counters_are_stored(tmp_path):
    path = tmp_path / "state.safetensors"
    stopped(path, {}, stop_after=7, bad=at((1, 1), (1, 2)))
    again = Trainer(Lesson(bad=at((1, 3))), schedule(), checkpoint=path)
    history = again.train()
    # Two skips were stored; the third, in the next life, completes the row.
    assert (history.skipped, history.rolled_back) == (4, 1)
