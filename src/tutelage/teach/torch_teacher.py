"""A torch module as the teacher, and what stands between it and data of another make."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TeacherError, TutelageError
from tutelage.passes import (
    ALIKE,
    Forward,
    Inputs,
    call,
    count_of,
    mapped,
    native_bf16,
    reason,
    share_moved,
    shown,
    source_of,
)
from tutelage.students.ensemble import Ensemble
from tutelage.students.taps import describe_taps, find_taps, reading
from tutelage.tasks.values import Target
from tutelage.teach.checks import (
    Channels,
    ImageShape,
    as_decision,
    as_logits,
    channels_error,
    check_classes,
    check_finite,
    notes,
    probe,
    repeats,
    says_probabilities,
)
from tutelage.types import Reading, Tap

BF16_NOTE = "the teacher is asked in bfloat16: its decisions move by {:.1%} of their spread"


class TorchTeacher:
    """A frozen torch module in evaluation mode, asked for decisions, features and maps.

    The module is changed in place: evaluation mode, no gradients, moved to `device`. `image_shape`
    is one example's shape. `channels='repeat'` copies images of 1 channel to 3.
    `bf16` runs it under bfloat16 autocast; what it says is float32 either way. None: where the
    machine has it, and what it says of `example` moves by at most 2 % of its spread. `taps` are
    module paths; found by themselves when None. `code` is source text that the fingerprint must
    follow. `example` is a batch of 2 or more for the first look, where noise would be no input.
    `forward` is how the module is called; given one, inputs keep their type. `classes` None takes
    as many as the module has outputs; `names` are its attribute `labels`, if it has one with as
    many. Raises `TeacherError` when the module cannot read such inputs or has another class count.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        classes: int | None,
        image_shape: ImageShape,
        taps: Sequence[str] | None = None,
        channels: Channels = "keep",
        bf16: bool | None = False,
        device: str | torch.device = "cpu",
        code: bytes = b"",
        example: Inputs | None = None,
        forward: Forward = call,
    ) -> None:
        self.module = module.to(device).eval().requires_grad_(False)
        self.bf16 = bool(bf16)
        self.device, self.forward = torch.device(device), forward
        floats = (p.dtype for p in module.parameters() if p.is_floating_point())
        self._dtype = next(floats, torch.float32)
        self.repeats = repeats(channels, image_shape)
        self._probabilities = False
        self._batch = 0
        seen = probe(image_shape) if example is None else mapped(example, lambda x: x[:2])
        self._take_channels_last(seen)
        self.taps: tuple[Tap, ...] = self._find_taps(seen, taps, image_shape)
        first = self._ask(seen, False, False, "the first look")
        decision = as_decision(first.decision, count_of(seen))
        self.classes = decision.shape[1] if classes is None else classes
        check_classes(decision, self.classes)
        self.names = _names(module, self.classes)
        self._probabilities = says_probabilities(decision)
        self.notes = notes(self.repeats, self._probabilities)
        if isinstance(module, Ensemble):
            self.notes += (module.describe(),)
        if bf16 is None:
            self._take_bf16(seen if example is None else example)
        options = f"{channels} {self.bf16} {self._probabilities} {[tap.path for tap in self.taps]}"
        if forward is not call:
            options += f" {source_of(forward)}"
        self.fingerprint: str = fingerprint(module, options.encode(), code)
        self.parameters = sum(p.numel() for p in module.parameters())

    def read(
        self, inputs: Inputs, *, features: bool = False, maps: bool = False,
        keep: Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """Return decision (logits, float32) and, if asked, pooled features and maps at the taps.

        Features leave out what `keep` does. Raises `TeacherError` when the module fails, or says
        NaN or infinity, naming the batch (counted from 0 over the life of this teacher).
        """
        batch, self._batch = self._batch, self._batch + 1
        found = self._ask(inputs, features, maps, f"batch {batch} (counted from 0)", keep)
        decision = as_decision(found.decision, count_of(inputs))
        check_classes(decision, self.classes)
        check_finite(decision, batch, " or run it without bf16" if self.bf16 else "")
        # Clones made outside inference mode may be saved for a student's backward pass.
        return Reading(
            decision=as_logits(decision.clone(), self._probabilities),
            features=tuple(feature.clone() for feature in found.features),
            maps=tuple(energy.clone() for energy in found.maps),
        )

    def _take_channels_last(self, inputs: Inputs) -> None:
        """Lay filters out as processors read them, where the module's own code bears it."""
        if not any(parameter.ndim == 4 for parameter in self.module.parameters()):
            return
        try:
            with torch.no_grad():
                self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                self.forward(self.module, self._fit(inputs))
        except Exception:  # foreign code may say `view` where only `reshape` would do
            self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def _take_bf16(self, inputs: Inputs) -> None:
        """Ask under bfloat16 from now on, where the machine has it and decisions stay alike."""
        if not native_bf16(self.device) or self._dtype != torch.float32:
            return
        if any(getattr(part, "full_precision", False) for part in self.module.modules()):
            return
        plain = self._ask(inputs, False, False, "the first look").decision
        self.bf16 = True
        try:
            half = self._ask(inputs, False, False, "the first look").decision
        except TeacherError:  # an operator of its own has no bfloat16
            self.bf16 = False
            return
        moved = share_moved(half, plain)
        self.bf16 = moved <= ALIKE  # not where NaN
        if self.bf16:
            self.notes += (BF16_NOTE.format(moved),)

    def _ask(
        self, inputs: Inputs, features: bool, maps: bool, when: str, keep: Tensor | None = None
    ) -> Reading:
        if self.module.training:
            self.module.eval()
        try:
            with torch.inference_mode(), self._autocast():
                return reading(
                    self.module,
                    self._fit(inputs),
                    self.taps,
                    features=features,
                    maps=maps,
                    keep=None if keep is None else keep.to(self.device),
                    error=TeacherError,
                    forward=self.forward,
                )
        except TutelageError:
            raise
        except Exception as cause:  # the module's code is foreign: it may raise anything
            shape = f"{count_of(inputs)} x {shown(inputs)}"
            raise TeacherError(
                f"the teacher fails at {when}, inputs of {shape}: {reason(cause)}. Give it inputs "
                "of the size and channels it was trained on"
            ) from cause

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _fit(self, inputs: Inputs) -> Any:
        def fit(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or self.forward is not call:
                return tensor.to(self.device)
            tensor = tensor.to(self.device, self._dtype)
            grey = self.repeats and tensor.shape[1] == 1
            return tensor.repeat(1, 3, 1, 1) if grey else tensor

        return mapped(inputs, fit)

    def _find_taps(
        self, example: Inputs, paths: Sequence[str] | None, image_shape: ImageShape
    ) -> tuple[Tap, ...]:
        options: dict[str, Any] = {"error": TeacherError, "forward": self.forward}
        try:
            with self._autocast():
                if paths is None:
                    return find_taps(self.module, self._fit(example), **options)
                return describe_taps(self.module, self._fit(example), paths, **options)
        except TeacherError as error:
            grey = len(image_shape) == 3 and image_shape[0] == 1 and isinstance(example, Tensor)
            if self.repeats or not grey or not self._reads_three(example):
                raise
            raise channels_error() from error

    def _reads_three(self, example: Inputs) -> bool:
        try:
            with torch.no_grad(), self._autocast():
                self.module(self._fit(example).repeat(1, 3, 1, 1))
        except Exception:  # a question, not a fallback: the first error is raised
            return False
        return True


class Reordered:
    """A teacher whose classes stand in another order than the data's; decisions are rearranged.

    `order[i]` is the teacher's number of the data's class `i`.
    """

    def __init__(self, teacher: Any, order: Sequence[int]) -> None:
        self.teacher, self.taps, self.classes = teacher, teacher.taps, teacher.classes
        self.names = tuple(teacher.names[i] for i in order) if teacher.names else ()
        self.parameters = teacher.parameters
        self.notes: tuple[str, ...] = (
            *teacher.notes,
            "its classes are rearranged to the data's order",
        )
        self.order = tuple(order)
        text = f"{teacher.fingerprint} {list(order)}"
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()

    def read(
        self, inputs: Inputs, *, features: bool = False, maps: bool = False,
        keep: Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """Return what the teacher says, its decision in the data's order."""
        found = self.teacher.read(inputs, features=features, maps=maps, keep=keep)
        return replace(found, decision=found.decision[:, list(self.order)])


class Renormalised:
    """A teacher that was trained on another normalisation than the data's; inputs are converted.

    `own` has the data's `mean` and `std` per channel, `mean` and `std` are the teacher's. It reads
    images times `scale` plus `shift`, [1, c, 1, 1] each.
    """

    def __init__(self, teacher: Any, own: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        self.teacher, self.taps, self.classes = teacher, teacher.taps, teacher.classes
        self.names, self.parameters = teacher.names, teacher.parameters
        self.notes = (*teacher.notes, f"inputs are normalised by its own mean {list(mean)}")
        self.fingerprint: str = hashlib.sha256(
            f"{teacher.fingerprint} {list(mean)} {list(std)}".encode()
        ).hexdigest()
        theirs = torch.tensor([list(mean), list(std)], dtype=torch.float32)
        ours = torch.tensor([list(own.mean), list(own.std)], dtype=torch.float32)
        if theirs.shape[1] not in (1, ours.shape[1]):
            raise TeacherError(
                f"teacher.mean has {theirs.shape[1]} values and the data {ours.shape[1]} channels; "
                "give one value a channel"
            )
        self.scale = (ours[1] / theirs[1]).view(1, -1, 1, 1)
        self.shift = ((ours[0] - theirs[0]) / theirs[1]).view(1, -1, 1, 1)

    def read(
        self, inputs: Inputs, *, features: bool = False, maps: bool = False,
        keep: Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """Return what the teacher says of the converted inputs."""
        converted = mapped(inputs, self._convert)
        return self.teacher.read(converted, features=features, maps=maps, keep=keep)

    def _convert(self, images: Tensor) -> Tensor:
        return images * self.scale.to(images.device) + self.shift.to(images.device)


def _names(module: nn.Module, classes: int) -> tuple[str, ...]:
    found = getattr(module, "labels", ())
    named = isinstance(found, tuple) and all(isinstance(name, str) for name in found)
    return found if named and len(found) == classes else ()


class Rescaled:
    """A teacher of values; what it says is brought into the unit in which students learn.

    It answers in the user's unit, or, with `own`, in units of the spread of the labels that it was
    trained on itself. `target` is that of the data at hand.
    """

    def __init__(self, teacher: Any, target: Target, own: Target | None = None) -> None:
        self.teacher, self.taps, self.classes = teacher, teacher.taps, teacher.classes
        self.parameters, self.notes = teacher.parameters, teacher.notes
        self.names: tuple[str, ...] = ()
        unit = own or Target(mean=0.0, std=1.0)
        self._scale, self._shift = unit.std / target.std, (unit.mean - target.mean) / target.std
        text = f"{teacher.fingerprint} {self._scale} {self._shift}"
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()

    def read(
        self, inputs: Inputs, *, features: bool = False, maps: bool = False,
        keep: Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """Return what the teacher says, its value in units of the data's spread."""
        found = self.teacher.read(inputs, features=features, maps=maps, keep=keep)
        decision = (found.decision.double() * self._scale + self._shift).float()
        return replace(found, decision=decision)


def fingerprint(module: nn.Module, *parts: bytes) -> str:
    """Return the SHA-256 over a module's tensors (name, type, shape, bytes), repr and source.

    The source of each class that is not torch's own is followed, and `parts`; what else a forward
    pass calls is not.
    """
    digest = hashlib.sha256()
    shown = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))  # addresses differ in each process
    for part in (*parts, shown.encode(), _sources(module)):
        digest.update(len(part).to_bytes(8, "little") + part)
    tensors = {**dict(module.named_buffers()), **module.state_dict()}
    for name, value in sorted(tensors.items()):
        if not isinstance(value, Tensor):  # a module's own extra state
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sources(module: nn.Module) -> bytes:
    kinds = {type(m) for m in module.modules()}
    texts = []
    for kind in kinds:
        if kind.__module__.split(".")[0] != "torch":
            try:
                texts.append(f"{kind.__qualname__}\n{inspect.getsource(kind)}")
            except (OSError, TypeError):  # made in a shell: there is no source to follow
                texts.append(kind.__qualname__)
    return "\n".join(sorted(texts)).encode()
