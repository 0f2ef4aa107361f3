"""The loop: it resumes to the very same bits, equals a bare loop, and survives losses of NaN."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from tutelage.errors import TrainingError
from tutelage.progress import Silent
from tutelage.train.loop import Trainer, pause_after
from tutelage.train.schedule import Schedule

STEPS, CLASSES = 4, 3


class Net(nn.Module):
    """Every kind of state there is: wide and depthwise kernels, batch norm, dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Dropout(0.3),
        )  # fmt: skip
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Lesson:
    """Noise with a pattern; `losses` may replace the loss of a call, `stop_after` ends the process.

    Calls of `loss` are counted from 1 over the life of the lesson.
    """

    def __init__(
        self, *, stop_after=None, bad=lambda lesson, batch: False, figures=None, seed=3, noise=0.0
    ):
        torch.manual_seed(seed)
        self.modules = (Net(), nn.Linear(CLASSES, CLASSES))
        self.key, self.noise = "noise", noise
        self.stop_after, self.bad, self.figures = stop_after, bad, figures
        self.calls, self.seen, self.evaluated = 0, [], []

    def steps(self):
        return STEPS

    def doubt(self, figure):
        return self.noise

    def batches(self, epoch, first):
        for step in range(first, STEPS):
            draw = torch.Generator().manual_seed(100 * epoch + step)
            inputs = torch.randn(6, 2, 7, 7, generator=draw)
            inputs = inputs.to(memory_format=torch.channels_last)
            yield (epoch, step), inputs, torch.randint(CLASSES, (6,), generator=draw)

    def loss(self, batch):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.seen.append(batch[0])
        if self.bad(self, batch):
            batch = (batch[0], batch[1] * torch.nan, batch[2])
        logits = self.modules[0](batch[1])
        loss = nn.functional.cross_entropy(logits + self.modules[1](logits), batch[2])
        return loss, {"half": loss.detach() / 2}

    def evaluate(self, modules):
        assert not any(m.training for module in modules for m in module.modules())
        self.evaluated.append([copy.deepcopy(m.state_dict()) for m in modules])
        epoch = self.seen[-1][0]
        return self.figures[epoch] if self.figures else epoch + 1.0


def schedule(**options):
    given = {"epochs": 3, "batch": 6, "rate": 0.02, "seed": 5, "checkpoint_s": 0.0}
    return Schedule(**{**given, "precision": "float32", **options})


def flat(value, name=""):
    """Yield every tensor of a nested state with its place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from flat(item, f"{name}.{number}")


def everything(trainer):
    lesson = trainer.lesson
    state = [[m.state_dict() for m in lesson.modules], trainer._position(), trainer.best]
    return dict(flat(state))


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@cache
def uninterrupted(optimizer):
    trainer = Trainer(Lesson(), schedule(optimizer=optimizer))
    history = trainer.train()
    return everything(trainer), history


def stopped(path, options, **lesson):
    with pytest.raises(KeyboardInterrupt):
        Trainer(Lesson(**lesson), schedule(**options), checkpoint=path).train()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("after", range(0, 3 * STEPS))
def test_a_stop_after_any_step_changes_no_bit(tmp_path, optimizer, after):
    options = {"optimizer": optimizer}
    tensors, history = uninterrupted(optimizer)
    path = tmp_path / "state.safetensors"
    stopped(path, options, stop_after=after)
    assert path.exists() == (after > 0)
    again = Trainer(Lesson(), schedule(**options), checkpoint=path)
    assert again.train() == history
    assert again.lesson.calls == 3 * STEPS - after
    same(everything(again), tensors)


def test_resuming_from_an_old_checkpoint_and_twice_changes_no_bit(tmp_path):
    whole = Trainer(Lesson(), schedule())
    whole.train()
    path, kept = tmp_path / "state.safetensors", tmp_path / "kept.safetensors"
    stopped(path, {}, stop_after=2)
    kept.write_bytes(path.read_bytes())
    stopped(path, {}, stop_after=5)  # counted from the second life: step 7
    for source in (path, kept):
        resumed = Trainer(Lesson(), schedule(), checkpoint=source)
        resumed.train()
        same(everything(resumed), everything(whole))


def test_a_finished_training_is_not_taught_again(tmp_path):
    path = tmp_path / "state.safetensors"
    first = Trainer(Lesson(), schedule(), checkpoint=path)
    history = first.train()
    again = Trainer(Lesson(), schedule(), checkpoint=path)
    assert again.train() == history and again.lesson.calls == 0
    same(everything(again), everything(first))


@pytest.mark.parametrize("change", ["key", "weights", "schedule"])
def test_a_checkpoint_of_another_training_is_left_alone(tmp_path, change):
    path = tmp_path / "state.safetensors"
    Trainer(Lesson(), schedule(), checkpoint=path).train()
    lesson = Lesson(seed=4 if change == "weights" else 3)
    lesson.key = "other" if change == "key" else lesson.key
    said = Recorder()
    options = schedule(rate=0.01 if change == "schedule" else 0.02)
    Trainer(lesson, options, checkpoint=path, progress=said).train()
    assert lesson.calls == 3 * STEPS
    assert len(said.lines) == 1 and "another training" in said.lines[0]


@pytest.mark.parametrize(
    ("spent", "pause"), [(0.01, 30.0), (0.49, 30.0), (1.0, 30.0), (2.0, 40.0), (10.0, 200.0)]
)
def test_slow_checkpoints_come_less_often(spent, pause):
    assert pause_after(spent, 30.0) == pause
    assert pause_after(spent, 0.0) == (0.0 if spent < 0.5 else 20 * spent)


def test_a_slow_disk_is_written_to_once_and_at_the_end(tmp_path, monkeypatch):
    now, written = [0.0], []
    trainer = Trainer(Lesson(), schedule(checkpoint_s=0.0), checkpoint=tmp_path / "state")
    monkeypatch.setattr("tutelage.train.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tutelage.train.loop.pause_after", pause_after)  # conftest.py has another

    def save():
        written.append(trainer.step)
        now[0] += 1.0

    def advance(steps=1, note=""):
        now[0] += 0.001

    monkeypatch.setattr(trainer, "_save", save)
    monkeypatch.setattr(trainer.progress, "advance", advance)
    trainer.train()
    assert written == [1, 3 * STEPS]


def test_the_pace_of_checkpoints_is_no_part_of_the_training(tmp_path):
    path = tmp_path / "state.safetensors"
    stopped(path, {}, stop_after=5)
    again = Trainer(Lesson(), schedule(checkpoint_s=1e9), checkpoint=path)
    again.train()
    assert again.lesson.calls == 3 * STEPS - 5


class Recorder(Silent):
    def __init__(self):
        self.lines, self.starts, self.done = [], [], 0

    def start(self, label, total, done=0):
        self.starts.append((total, done))
        self.done = done

    def advance(self, steps=1, note=""):
        self.done += steps

    def say(self, line):
        self.lines.append(line)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_loop_equals_a_bare_one(optimizer):
    """A bare loop with unfused optimizers walks every tensor by its indices, not by its memory."""
    options = schedule(optimizer=optimizer, ema=0.0, clip=0.5)
    trainer = Trainer(Lesson(), options)
    trainer.train()
    bare = Lesson()
    modules = nn.ModuleList(bare.modules).to(memory_format=torch.channels_last)
    matrices = [p for p in modules.parameters() if p.ndim > 1]
    vectors = [p for p in modules.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 1e-2}, {"params": vectors, "weight_decay": 0.0}]
    if optimizer == "sgd":
        plain = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, fused=True)
    else:
        plain = torch.optim.AdamW(groups, lr=1.0, fused=True)
    clipped = 0
    for step in range(3 * STEPS):
        epoch, first = divmod(step, STEPS)
        for group in plain.param_groups:
            group["lr"] = options.rate_at(step, 3 * STEPS)
        torch.manual_seed(5 * 1_000_003 + step)
        loss, _ = bare.loss(next(bare.batches(epoch, first)))
        plain.zero_grad()
        loss.backward()
        parameters = [p for m in bare.modules for p in m.parameters()]
        clipped += bool(nn.utils.clip_grad_norm_(parameters, 0.5) > 0.5)
        plain.step()
    assert 0 < clipped < 3 * STEPS
    for mine, theirs in zip(trainer.lesson.modules, bare.modules, strict=True):
        same(mine.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fused_optimizers_equal_plain_ones(optimizer, monkeypatch):
    """They walk raw memory, where kernels lie channels-last."""
    from tutelage.train import loop

    fused = Trainer(Lesson(), schedule(optimizer=optimizer))
    fused.train()
    build = loop.build_optimizer

    def plain(*given):
        made = build(*given)
        for group in made.param_groups:
            group["fused"], group["foreach"] = False, False
        return made

    monkeypatch.setattr(loop, "build_optimizer", plain)
    naive = Trainer(Lesson(), schedule(optimizer=optimizer))
    naive.train()
    for mine, theirs in zip(fused.lesson.modules, naive.lesson.modules, strict=True):
        for name, tensor in mine.state_dict().items():
            torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_the_average_equals_a_naive_one():
    lesson = Lesson()
    trainer = Trainer(lesson, schedule(ema=0.9))
    want = copy.deepcopy(lesson.modules[0].state_dict())
    one_step, step = trainer._one_step, 0

    def watched(batch, total):
        nonlocal step
        done, step = one_step(batch, total), step + 1
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in lesson.modules[0].state_dict().items():
            if value.is_floating_point():
                want[name] = decay * want[name] + (1 - decay) * value
            else:
                want[name] = value.clone()
        return done

    trainer._one_step = watched
    trainer.train()
    got = trainer.average[0].state_dict()
    assert int(got["body.1.num_batches_tracked"]) == step == int(want["body.1.num_batches_tracked"])
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


def test_means_of_loss_and_parts_go_into_the_history_and_the_tracker():
    sent = []
    lesson = Lesson()
    losses, loss_of = [], lesson.loss

    def watched(batch):
        loss, parts = loss_of(batch)
        losses.append(float(loss.detach()))
        return loss, parts

    lesson.loss = watched
    history = Trainer(lesson, schedule(), tracker=lambda v, step: sent.append((v, step))).train()
    for epoch in range(3):
        mean = sum(losses[epoch * STEPS : (epoch + 1) * STEPS]) / STEPS
        assert history.loss[epoch] == pytest.approx(mean, rel=1e-5)
        assert history.parts[epoch] == {"half": pytest.approx(mean / 2, rel=1e-5)}
        values, step = sent[epoch]
        assert step == (epoch + 1) * STEPS
        assert values == {
            "loss": history.loss[epoch], "half": history.parts[epoch]["half"],
            "validation": epoch + 1.0,
        }  # fmt: skip


def test_the_best_epoch_is_kept():
    lesson = Lesson(figures=[0.2, 0.9, 0.5])
    history = Trainer(lesson, schedule()).train()
    assert history.best_epoch == 1 and history.figure == [0.2, 0.9, 0.5]
    for module, best in zip(lesson.modules, lesson.evaluated[1], strict=True):
        same(module.state_dict(), best)
        assert not module.training


def test_of_equal_epochs_the_last_is_kept():
    assert Trainer(Lesson(figures=[0.5, 0.5, 0.5]), schedule()).train().best_epoch == 2


@pytest.mark.parametrize(
    ("figures", "noise", "kept"),
    [
        ([0.2, 0.9, 0.5], 0.1, 1),  # far below the best
        ([0.2, 0.6, 0.5], 0.1, 2),
        ([0.6, 0.5, 0.7], 0.1, 2),
        ([0.6, 0.5, 0.3], 0.1, 1),  # near the best until then, and taught longer
    ],
)
def test_epochs_within_a_standard_error_of_the_best_are_as_good(figures, noise, kept):
    lesson = Lesson(figures=figures, noise=noise)
    assert Trainer(lesson, schedule()).train().best_epoch == kept
    for module, taken in zip(lesson.modules, lesson.evaluated[kept], strict=True):
        same(module.state_dict(), taken)


def test_patience_waits_for_better_not_for_as_good(tmp_path):
    lesson = Lesson(figures=[0.1, 0.5, 0.45, 0.45, 0.9], noise=0.1)
    history = Trainer(lesson, schedule(epochs=5, patience=2)).train()
    assert history.stopped_early and history.best_epoch == 3


def test_patience_ends_the_training(tmp_path):
    figures = [0.1, 0.5, 0.4, 0.5, 0.4, 0.3, 0.9]
    path = tmp_path / "state.safetensors"
    lesson = Lesson(figures=figures)
    history = Trainer(lesson, schedule(epochs=7, patience=2), checkpoint=path).train()
    assert history.stopped_early and history.figure == figures[:6] and history.best_epoch == 3
    again = Lesson(figures=figures)
    assert Trainer(again, schedule(epochs=7, patience=2), checkpoint=path).train() == history
    assert again.calls == 0
    assert not Trainer(Lesson(figures=figures), schedule(epochs=7)).train().stopped_early


def test_a_frozen_student_is_refused_even_with_helpers_to_train():
    lesson = Lesson()
    lesson.modules[0].requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter that can be trained"):
        Trainer(lesson, schedule())


def test_frozen_parts_of_a_student_stay_as_they_are():
    lesson = Lesson()
    lesson.modules[0].head.requires_grad_(False)
    before = lesson.modules[0].head.weight.clone()
    Trainer(lesson, schedule()).train()
    assert torch.equal(lesson.modules[0].head.weight, before)
