"""A teacher that is also asked what is inside it: token states, attention scores, relations."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TeacherError
from tutelage.files import hash_json
from tutelage.passes import Inputs
from tutelage.students.inside import Inside
from tutelage.students.taps import TapReader
from tutelage.types import Reading


class Insider:
    """Wraps a torch teacher; its readings hold what `inside` names besides.

    The fingerprint follows both, so that signals of different insides are never mixed up.
    """

    def __init__(self, teacher: Any, inside: Inside) -> None:
        self.teacher, self.inside = teacher, inside
        module = module_of(teacher)
        assert module is not None
        self.module = module
        self.fingerprint: str = hash_json([teacher.fingerprint, asdict(inside)])

    def read(
        self, inputs: Inputs, *, features: bool, maps: bool, keep: Tensor | None = None
    ) -> Reading:
        """Return the teacher's reading of a batch, with what is inside it."""
        said: list[Reading] = []

        def ask(batch: Inputs) -> Tensor:
            said.append(self.teacher.read(batch, features=features, maps=maps, keep=keep))
            return said[-1].decision

        paths = self.inside.paths
        with TapReader(self.module, paths, reduce=torch.clone, error=TeacherError) as reader:
            _, outputs = reader.read(ask, inputs)  # pyright: ignore[reportArgumentType]
        found = self.inside.of(dict(zip(paths, outputs, strict=True)))
        # Clones made outside inference mode may be saved for a student's backward pass.
        fields = {name: tuple(x.clone() for x in tensors) for name, tensors in found.items()}
        return replace(said[-1], **fields)


def module_of(teacher: Any) -> nn.Module | None:
    """Return the torch module behind a teacher and what wraps it; None for another kind."""
    while hasattr(teacher, "teacher"):
        teacher = teacher.teacher
    return getattr(teacher, "module", None)
