"""Weights that a student starts with: a slice of the teacher, or of a student taught before.

Every student that was taught in full is kept in `taught/`. Another budget, or a limit that had to
be tightened, asks for another student of the same lesson (data, teacher, losses, seed), which can
start from a slice of the smallest kept one that holds it. Covers the families that can be sliced.
Students of others start fresh, and so does one that nothing holds, as under a looser budget.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TeacherError
from tutelage.files import hash_json, read_tensors, write_atomically, write_tensors
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.naming import name_spec
from tutelage.plan import Candidate
from tutelage.progress import Progress
from tutelage.run import Run
from tutelage.students import exits
from tutelage.students import spec as students
from tutelage.students.families.convnet import ConvNet
from tutelage.students.families.convnet1d import ConvNet1d
from tutelage.students.families.encoder import Encoder
from tutelage.students.families.vit import ViT
from tutelage.students.slices.channels import remembering
from tutelage.students.spec import FAMILIES, StudentSpec, sliced_from
from tutelage.teach.hf_teacher import HfEncoder
from tutelage.teach.starting import as_encoder
from tutelage.teach.teachers import Teacher
from tutelage.teach.torch_teacher import Renormalised, Reordered, TorchTeacher
from tutelage.teach.vits import as_vit, reading

_FITTED = 1_024  # examples that a slice is fitted to
_FILES = ("spec.json", "model.safetensors", *exits.FILES)
_KINDS = {"convnet": ConvNet, "convnet1d": ConvNet1d, "encoder": Encoder, "vit": ViT}


def own_network(teacher: Teacher, shape: Sequence[int]) -> tuple[nn.Module, StudentSpec] | None:
    """Return the teacher as `own_module` does, reading and deciding as the data has it.

    None too where its inputs are normalised or repeated in a way that no weights of it can hold.
    """
    inner: Any = teacher.teacher if isinstance(teacher, Reordered) else teacher
    normal = inner if isinstance(inner, Renormalised) else None
    inner = inner.teacher if normal is not None else inner
    found = own_module(inner.module, shape) if isinstance(inner, TorchTeacher) else None
    if found is not None and (normal is not None or inner.repeats):
        scale, shift = torch.ones(1), torch.zeros(1)
        if normal is not None:
            scale, shift = normal.scale, normal.shift
        found = _as_own(reading(found[0], shape[0], scale, shift))
    if found is not None and isinstance(teacher, Reordered):
        head: Any = found[0].get_submodule("head")
        order = list(teacher.order)
        with torch.no_grad():
            head.weight.copy_(head.weight[order].clone())
            head.bias.copy_(head.bias[order].clone())
    return found


def own_module(module: nn.Module, shape: Sequence[int]) -> tuple[nn.Module, StudentSpec] | None:
    """Return a teacher's module as a network of one of our families, with its spec; a copy.

    Texts are as long as `shape` says, images of its height and width. None where it is another
    network, or cannot be sliced.
    """
    if isinstance(module, ConvNet | ConvNet1d | Encoder | ViT):
        return _as_own(copy.deepcopy(module).cpu())
    if isinstance(module, HfEncoder):
        return _as_own(as_encoder(module, length=shape[0]))
    return _as_own(as_vit(module, (shape[1], shape[2]))) if len(shape) == 3 else None


def _as_own(network: Any) -> tuple[nn.Module, StudentSpec] | None:
    if network is None:
        return None
    family = next(name for name, kind in _KINDS.items() if isinstance(network, kind))
    spec = StudentSpec(family=family, knobs=network.spec)
    return (network, spec) if _holds(spec, spec) else None


def refuse_unlike(teacher: Teacher, shape: Sequence[int]) -> None:
    """Refuse `student.start: teacher` where the teacher cannot be sliced."""
    if own_network(teacher, shape) is None:
        raise TeacherError(
            "student.start: teacher takes over channels of a built-in teacher, heads of a plain "
            "vision transformer or tokens of texts, and this teacher is another network; remove it"
        )


def from_teacher(
    found: tuple[Candidate, ...], teacher: Teacher, material: Material, run: Run, progress: Progress
) -> tuple[Candidate, ...]:
    """Let those candidates that are part of the teacher start from a slice of it.

    None does where the teacher is no network of ours. Of texts those that are narrower do; others
    take over its embedding or whole layers as they are built (`teach.starting`).
    """
    own = own_network(teacher, material.shape)
    cut = found
    if "tokenizer" in material.task.keys:
        cut = tuple(c for c in found if own is not None and _is_narrower(own[1], c.spec))
    started = from_network(cut, own, teacher.fingerprint, material, run, progress) if cut else ()
    made = dict(zip(map(id, cut), started, strict=True))
    return tuple(made.get(id(candidate), candidate) for candidate in found)


def _is_narrower(whole: StudentSpec, spec: StudentSpec) -> bool:
    wide, narrow = (getattr(s.knobs, "hidden", 0) for s in (whole, spec))
    return narrow < wide and _holds(whole, spec)


def from_network(
    found: tuple[Candidate, ...], own: tuple[nn.Module, StudentSpec] | None, fingerprint: str,
    material: Material, run: Run, progress: Progress,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Do what `from_teacher` does, of the teacher as a network with its spec, or of none."""
    if own is None:
        return found
    whole, started, fresh = own[0], [], 0
    with remembering():
        for candidate in found:
            if candidate.weights is None and _holds(own[1], candidate.spec):
                weights = _weights(
                    run, candidate.spec, material, [fingerprint], lambda: whole, progress
                )
                candidate = dataclasses.replace(candidate, weights=weights)
            fresh += candidate.weights is None
            started.append(candidate)
    if fresh:
        progress.say(
            f"student: {fresh} of {len(found)} start fresh; they are no part of the teacher"
        )
    return tuple(started)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The weights that a student starts with, and of which one they are, taught before."""

    weights: dict[str, Tensor]
    name: str
    parameters: int


def from_nearest(
    run: Run, lesson: str, spec: StudentSpec, material: Material, progress: Progress
) -> Nearest | None:
    """Return a slice of the smallest other student that was kept of `lesson` and holds `spec`.

    None where none does. What was found once stays, so that a run that goes on starts as it did.
    """

    def look() -> tuple[Any, list[Path]]:
        best: tuple[int, str] | None = None
        for name, stage in run.manifest["stages"].items():
            kept = stage["result"]
            if not name.startswith("taught-") or kept["lesson"] != lesson:
                continue
            own = StudentSpec.from_json(kept["spec"])
            if own != spec and _is_there(run, name) and _holds(own, spec):
                found = kept["result"]["parameters"], name
                best = found if best is None else min(best, found)
        return None if best is None else best[1], []

    inputs = hash_json([lesson, spec.to_json()])
    name = run.stage(f"nearest-{inputs[:12]}", inputs, look).result
    if name is None:
        return None
    kept = run.manifest["stages"][name]["result"]
    weights = _weights(
        run, spec, material, [name, lesson], lambda: students.load(_kept_in(run, name)), progress
    )
    return Nearest(
        weights=weights, name=name_spec(StudentSpec.from_json(kept["spec"])),
        parameters=kept["result"]["parameters"],
    )  # fmt: skip


def _kept_in(run: Run, name: str) -> Path:
    return run.file(f"taught/{name.removeprefix('taught-')}")


def _is_there(run: Run, name: str) -> bool:
    """Whether a kept student was left in its place: a user may need the room."""
    return (_kept_in(run, name) / "model.safetensors").is_file()


def _holds(whole: StudentSpec, spec: StudentSpec) -> bool:
    slicing = FAMILIES[spec.family].slicing
    return (
        slicing is not None
        and whole.family == spec.family
        and slicing.is_part(spec.knobs, whole.knobs)
    )


def _weights(
    run: Run, spec: StudentSpec, material: Material, of: list[str],
    whole: Callable[[], nn.Module], progress: Progress,
) -> dict[str, Tensor]:  # fmt: skip
    """Return a slice's weights, found once a run."""
    path = run.file(f"starts/{_key(spec)}.safetensors")

    def work() -> tuple[Any, list[Path]]:
        progress.say(f"student: slicing {name_spec(spec)}")
        small = sliced_from(whole(), spec, some_examples(material, _FITTED))
        write_tensors(path, small.state_dict())
        return None, [path]

    inputs = hash_json([spec.to_json(), material.train.content, torch.get_num_threads(), *of])
    run.stage(f"start-{_key(spec)}", inputs, work)
    return read_tensors(path)[0]


def _key(spec: StudentSpec) -> str:
    return hash_json(spec.to_json())[:12]


def keep(run: Run, lesson: str, inputs: str, spec: StudentSpec, result: dict[str, Any]) -> None:
    """Keep what lies in `student/`; `inputs` and `result` are of its distillation."""
    to = run.file(f"taught/{inputs[:12]}")

    def work() -> tuple[Any, list[Path]]:
        found = {"spec": spec.to_json(), "lesson": lesson, "result": result}
        return found, _copy(run.file("student"), to)

    run.stage(f"taught-{inputs[:12]}", inputs, work)


def restore(run: Run, inputs: str) -> tuple[Any, list[Path]] | None:
    """Put the student of this very distillation back into `student/`, where it was kept.

    Returns the distillation's result and files; None where it was not kept.
    """
    kept = run.done(f"taught-{inputs[:12]}", inputs)
    if kept is None:
        return None
    return kept.result["result"], _copy(run.file(f"taught/{inputs[:12]}"), run.file("student"))


def _copy(source: Path, to: Path) -> list[Path]:
    """Copy a student's files, and take away what another one left there."""
    names = [name for name in _FILES if (source / name).is_file()]
    for name in names:
        write_atomically(to / name, (source / name).read_bytes())
    for name in set(_FILES).difference(names):
        (to / name).unlink(missing_ok=True)
    return [to / name for name in names]
