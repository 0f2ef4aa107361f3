"""One training loop on Accelerate; it knows no task and no method."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tutelage.errors import TrainingError
from tutelage.progress import Progress, Silent
from tutelage.students.strided import sliced_strides
from tutelage.train import sharded, together
from tutelage.train.checkpoint import digest, load_state, save_state
from tutelage.train.schedule import Schedule, autocast_dtype, build_optimizer

_SKIPS_BEFORE_ROLLBACK = 3
_ROLLBACKS_BEFORE_STOP = 3
_SLOW_S, _PAUSE = 0.5, 20  # of a checkpoint, and how many times its seconds pass before the next


class Lesson(Protocol):
    """What is learned: batches as a pure function of the epoch, a loss, a validation figure.

    `modules` hold everything that is trained; the first is the network that ships, the others
    (branches, projectors) help it. `key` names everything else that the outcome hangs on: data,
    signals, objective. `evaluate` is given the averaged copies in the same order, and higher is
    better.
    """

    modules: tuple[nn.Module, ...]
    key: str

    def steps(self) -> int:
        """Return the steps of one epoch."""
        ...

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """Yield the epoch's batches from step `first` on."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts."""
        ...

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return the validation figure of `modules`."""
        ...

    def doubt(self, figure: float) -> float:
        """Return the standard error of a validation figure; 0 where it is not known."""
        ...


@dataclass(slots=True, kw_only=True)
class History:
    """What a training left behind, epoch by epoch; goes into the report.

    `best_epoch` is the last whose figure lies within one standard error of the best until then: its
    weights are kept. On a few dozen validation examples the highest figure of hundreds of epochs is
    chance, and later weights were taught longer (the one-standard-error rule, Breiman 1984).
    """

    loss: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    figure: list[float] = field(default_factory=list)
    best_epoch: int = -1
    skipped: int = 0
    rolled_back: int = 0
    stopped_early: bool = False
    precision: str = "float32"


class _Averaging:
    """Moves averaged copies towards the trained modules, many tensors at once."""

    def __init__(self, averages: Sequence[nn.Module], modules: Sequence[nn.Module]) -> None:
        self.mean = [sharded.local(p.data) for a in averages for p in a.parameters()]
        self.now = [sharded.local(p.data) for m in modules for p in m.parameters()]
        pairs = [
            (target, source)
            for average, module in zip(averages, modules, strict=True)
            for target, source in zip(average.buffers(), module.buffers(), strict=True)
        ]
        self.mean += [target for target, _ in pairs if target.is_floating_point()]
        self.now += [source for target, source in pairs if target.is_floating_point()]
        self.copied = [(t, s) for t, s in pairs if not t.is_floating_point()]

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Move by `share` of the difference; counts are copied."""
        torch._foreach_lerp_(self.mean, self.now, share)  # pyright: ignore[reportPrivateImportUsage]
        for target, source in self.copied:
            target.copy_(source)


Tracker = Callable[[dict[str, float], int], None]


class Trainer:
    """Trains the modules of a lesson; resumes from `checkpoint` to the very same bits.

    A checkpoint of another training (lesson, schedule or first weights differ) is not used. A step
    without a finite loss changes nothing. After three in a row, or an epoch of them, the loop goes
    back to the start of the epoch at half the rate: a point that no clock decides, so that a
    resumed run goes back to the same. After three such returns it stops.
    """

    def __init__(
        self,
        lesson: Lesson,
        schedule: Schedule,
        *,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        label: str = "Training",
        tracker: Tracker | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.lesson, self.schedule, self.label = lesson, schedule, label
        self.checkpoint, self.tracker = checkpoint, tracker
        self.progress = progress or Silent()
        self.accelerator = Accelerator(mixed_precision="no")
        self.shares = sharded.plugin_of(self.accelerator)
        self.device = self.accelerator.device
        self._given = lesson.modules
        self._came_from = [_device_of(module) for module in lesson.modules]
        if not any(p.requires_grad for p in lesson.modules[0].parameters()):
            raise TrainingError("the student has no parameter that can be trained; unfreeze some")
        self.dtype = autocast_dtype(lesson.modules[0], schedule, self.device)
        self.key = self._identity()
        self.average = self._place()
        self.parameters = [p for m in lesson.modules for p in m.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.parameters, schedule)
        self._averaging = _Averaging(self.average, lesson.modules)
        self.history = History(precision=str(self.dtype).removeprefix("torch."))
        self.step, self.rate_scale, self.skips_in_a_row = 0, 1.0, 0
        self.running: dict[str, Tensor] = {}
        self.met: dict[str, int] = {}  # in how many steps each came: not all have every loss
        self.counted = 0
        self.best: list[dict[str, Tensor]] = []
        self._buffers = [b for module in lesson.modules for b in module.buffers()]
        self._before = [torch.empty_like(b) for b in self._buffers]
        self._epoch_start = copy.deepcopy(self._position())

    def _place(self) -> list[nn.Module]:
        """Put the modules where they are trained; return copies of them, to be averaged."""
        if self.shares is not None:
            return sharded.share_out(self.lesson, self.shares)
        for module in self.lesson.modules:
            module.to(self.device)
            if any(p.ndim == 4 for p in module.parameters()):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return [copy.deepcopy(module) for module in self.lesson.modules]

    def train(self) -> History:
        """Train to the end, leave the best averaged weights in the modules, return the history.

        The modules are back on the device that they came from. Raises `TrainingError` when the loss
        stays without a finite value.
        """
        steps = self.lesson.steps()
        total = steps * self.schedule.epochs
        if self.checkpoint is not None and self.checkpoint.exists():
            self._restore(self.checkpoint)
        start = {"weights or data": int(self.key[:12], 16), "checkpoints": self.step}
        together.check_alike(start, self.device)
        for module in self.lesson.modules:
            module.train()
        self.progress.start(self.label, total, self.step)
        with sliced_strides(self.lesson.modules):
            self._run(steps, total)
        self.progress.finish()
        self._save()
        self.accelerator.wait_for_everyone()
        for module, best in zip(self._given, self.best, strict=True):
            module.load_state_dict({k: sharded.whole(v) for k, v in best.items()})
            module.eval()
        for module, device in zip(self._given, self._came_from, strict=True):
            module.to(device)
        if self.shares is not None:
            self.lesson.exchange(self._given)  # type: ignore[attr-defined]
        return self.history

    def _run(self, steps: int, total: int) -> None:
        last_saved, wait = time.monotonic(), self.schedule.checkpoint_s
        while self.step < total and not self.history.stopped_early:
            epoch, first = divmod(self.step, steps)
            for batch in self.lesson.batches(epoch, first):
                if not self._one_step(batch, total):
                    self._go_back(total)
                    break
                self.progress.advance()
                if self.step % steps == 0:
                    self._end_epoch()
                if self._agreed(time.monotonic() - last_saved > wait):
                    began = time.monotonic()
                    self._save()
                    last_saved = time.monotonic()
                    wait = pause_after(last_saved - began, self.schedule.checkpoint_s)

    def _agreed(self, due: bool) -> bool:
        """Say whether a checkpoint is due: all that hold parts must save at the same step."""
        return due if self.shares is None else sharded.first_says(due, self.device)

    def _one_step(self, batch: Any, total: int) -> bool:
        """Take one step; return False when there were too many without a finite loss."""
        rate = self.schedule.rate_at(self.step, total) * self.rate_scale
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._seed_step()
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, parts = self.lesson.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip or float("inf"))
        if not bool(torch.isfinite(loss.detach() + sharded.whole(norm))):
            return self._skip()
        self.optimizer.step()
        self.step += 1
        self.skips_in_a_row = 0
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        self._averaging.update(1 - decay)
        self._count(loss, parts)
        return True

    def _seed_step(self) -> None:
        """Make dropout and the like a pure function of seed and step, so that resuming is exact."""
        seed = (self.schedule.seed * 1_000_003 + self.step) % 2**63
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack every call
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _skip(self) -> bool:
        """Leave out a step without a finite loss; return False when there were too many."""
        self.history.skipped += 1
        self.skips_in_a_row += 1
        self.step += 1
        if self._buffers:  # what a batch norm saw may have been NaN
            torch._foreach_copy_(self._buffers, self._before)  # pyright: ignore[reportPrivateImportUsage]
        barren = self.step % self.lesson.steps() == 0 and self.counted == 0
        return self.skips_in_a_row < _SKIPS_BEFORE_ROLLBACK and not barren

    def _go_back(self, total: int) -> None:
        """Return to the start of the epoch at half the rate, or raise when that did not help."""
        history = self.history
        if history.rolled_back == _ROLLBACKS_BEFORE_STOP:
            raise TrainingError(
                f"{self.label}: the loss was not finite at step {self.step} ({history.skipped} "
                f"steps skipped, rolled back {history.rolled_back} times); lower distill.rate or "
                "look at the data"
            )
        self.progress.say(
            f"{self.label}: the loss was not finite at step {self.step}; back to the start of the "
            "epoch at half the rate"
        )
        history.rolled_back += 1
        self.rate_scale, self.skips_in_a_row = self.rate_scale * 0.5, 0
        self.running, self.met, self.counted = {}, {}, 0
        self._move_to(self._epoch_start)
        self.progress.start(self.label, total, self.step)

    def _count(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        for name, value in {"loss": loss, **parts}.items():
            value = value.detach().float()
            self.running[name] = self.running[name] + value if name in self.running else value
            self.met[name] = self.met.get(name, 0) + 1
        self.counted += 1

    def _end_epoch(self) -> None:
        means = {name: float(value) / self.met[name] for name, value in self.running.items()}
        self.running, self.met, self.counted = {}, {}, 0
        for average in self.average:
            average.eval()
        with torch.inference_mode(), parametrize.cached():
            figure = float(self.lesson.evaluate(tuple(self.average)))
            if self.shares is not None:
                sharded.settle(self.average)
        history = self.history
        history.loss.append(means.pop("loss", float("nan")))
        history.parts.append(means)
        history.figure.append(figure)
        best = max(history.figure)
        if history.best_epoch < 0 or figure >= best - self.lesson.doubt(best):
            history.best_epoch = len(history.figure) - 1
            self.best = [copy.deepcopy(m.state_dict()) for m in self.average]
        waited = history.figure[::-1].index(best)
        history.stopped_early = bool(self.schedule.patience) and waited >= self.schedule.patience
        if self.tracker is not None:
            self.tracker({"loss": history.loss[-1], "validation": figure, **means}, self.step)
        self.progress.advance(0, f"validation {figure:.4f}")
        self._epoch_start = copy.deepcopy(self._position())

    def _identity(self) -> str:
        """Name this training by lesson, schedule, precision and first weights."""
        schedule = {**asdict(self.schedule), "checkpoint_s": None}
        modules = enumerate(self.lesson.modules)
        tensors = {f"{i} {k}": v for i, m in modules for k, v in m.state_dict().items()}
        return digest(tensors, self.lesson.key, json.dumps(schedule), str(self.dtype))

    def _position(self) -> dict[str, Any]:
        """Return what a step changes for good, by reference."""
        return {
            "modules": [m.state_dict() for m in self.lesson.modules],
            "average": [m.state_dict() for m in self.average],
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def _move_to(self, position: dict[str, Any]) -> None:
        modules = (*self.lesson.modules, *self.average)
        for module, saved in zip(
            modules, (*position["modules"], *position["average"]), strict=True
        ):
            module.load_state_dict(sharded.parts(saved, module.state_dict()))
        optimizer = copy.deepcopy(position["optimizer"])
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in optimizer["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == held[number].shape:
                    moments[name] = sharded.part(value, held[number])
        self.optimizer.load_state_dict(optimizer)
        # Fused optimizers walk raw memory: moments must lie as their parameter does.
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.step = position["step"]

    def _save(self) -> None:
        first = self.accelerator.is_main_process
        if self.checkpoint is None or not (first or self.shares is not None):
            return
        state = {
            "key": self.key,
            "now": self._position(),
            "epoch_start": self._epoch_start,
            "best": self.best,
            "running": self.running,
            "met": self.met,
            "counted": self.counted,
            "rate_scale": self.rate_scale,
            "skips": self.skips_in_a_row,
            "history": asdict(self.history),
        }
        if self.shares is not None:
            state = sharded.gathered(state, keep=first)
        if first:
            save_state(self.checkpoint, state)

    def _restore(self, path: Path) -> None:
        state = load_state(path)
        if state.get("key") != self.key:
            self.progress.say(
                f"{self.label}: {path} is of another training (recipe, data or first weights "
                "differ); starting anew"
            )
            return
        self._move_to(state["epoch_start"])
        self._epoch_start = copy.deepcopy(self._position())
        self._move_to(state["now"])
        own = [m.state_dict() for m in self.average]
        self.best = [sharded.parts(b, o) for b, o in zip(state["best"], own, strict=False)]
        self.running, self.counted = state["running"], state["counted"]
        self.met = state.get("met", dict.fromkeys(self.running, self.counted))
        self.rate_scale, self.skips_in_a_row = state["rate_scale"], state["skips"]
        self.history = History(**state["history"])


def pause_after(spent_s: float, wanted_s: float) -> float:
    """Return the seconds to the next checkpoint: a slow one is not to take over 5 % of the time."""
    return max(wanted_s, _PAUSE * spent_s) if spent_s >= _SLOW_S else wanted_s


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))
