"""An ONNX file as the teacher: it gives decisions only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.passes import Inputs, reason
from tutelage.teach import checks
from tutelage.types import Reading, Tap

_FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxTeacher:
    """A classifier in an ONNX file, run by onnxruntime on the CPU; its taps are ().

    `image_shape` is (channels, height, width) of the data; a fixed batch size in the file is kept
    by cutting and filling up. `classes` None takes those of the file, and `names` are those that
    its metadata lists. Raises `TeacherError` when the file cannot be read, does not take one
    batch of such images, or has another class count.
    """

    def __init__(
        self,
        path: Path,
        *,
        classes: int | None,
        image_shape: checks.ImageShape,
        channels: checks.Channels = "keep",
    ) -> None:
        self.path, self.classes = path, classes or 0
        self.taps: tuple[Tap, ...] = ()
        self._session = _open(path)
        self._repeat = checks.repeats(channels, image_shape)
        self._probabilities = False
        self._batch = 0
        self._input, self._dtype, self._fixed = self._check_input(image_shape)
        self._output = self._choose_output()
        decision = self._decide(checks.probe(image_shape), "the first look")
        self.classes = decision.shape[1] if classes is None else classes
        checks.check_classes(decision, self.classes)
        self.names = _names(self._session, self.classes)
        self._probabilities = checks.says_probabilities(decision)
        self.notes = checks.notes(self._repeat, self._probabilities)
        self.fingerprint: str = _fingerprint(path, f"{channels} {self._probabilities}")
        self.parameters = _count_parameters(path)

    def read(
        self, inputs: Inputs, *, features: bool = False, maps: bool = False,
        keep: Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """Return the decision (logits, float32).

        Raises `TeacherError` when features or maps are asked for, when the file fails, and when it
        says NaN or infinity, naming the batch (counted from 0 over the life of this teacher).
        """
        if features or maps:
            raise TeacherError(
                f"'{self.path.name}' is an ONNX teacher and gives decisions only. Use losses that "
                "need no taps (kl, dkd, dist), or give the teacher as a torch module"
            )
        batch, self._batch = self._batch, self._batch + 1
        assert isinstance(inputs, Tensor)
        decision = self._decide(inputs, f"batch {batch} (counted from 0)")
        checks.check_classes(decision, self.classes)
        checks.check_finite(decision, batch)
        return Reading(decision=checks.as_logits(decision, self._probabilities))

    def _check_input(self, image_shape: checks.ImageShape) -> tuple[str, torch.dtype, int | None]:
        inputs = self._session.get_inputs()
        where = f"the ONNX teacher '{self.path}'"
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _FLOATS:
            said = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
            raise TeacherError(
                f"{where} takes {said}; wanted is one float batch x channels x height x width. "
                "Export it with that single input"
            )
        wants = inputs[0].shape[1:]
        shape = (3, *image_shape[1:]) if self._repeat else image_shape
        fits = [not isinstance(w, int) or w == s for w, s in zip(wants, shape, strict=True)]
        if fits == [False, True, True] and (wants[0], shape[0]) == (3, 1):
            raise checks.channels_error()
        if not all(fits):
            raise TeacherError(
                f"{where} reads images of {_by(wants)} (channels x height x width) and the data "
                f"has {_by(shape)}. Resize the images, or export the teacher for this size"
            )
        batch = inputs[0].shape[0]
        return inputs[0].name, _FLOATS[inputs[0].type], batch if isinstance(batch, int) else None

    def _choose_output(self) -> str:
        """Return the first float output that ends in the classes, else the first one."""
        outputs = self._session.get_outputs()
        floats = [o for o in outputs if o.type in _FLOATS]
        fitting = [o for o in floats if len(o.shape) == 2 and self.classes in (0, o.shape[-1])]
        if not floats:
            raise TeacherError(
                f"the ONNX teacher '{self.path}' has no float output. Export its logits"
            )
        return (fitting or floats)[0].name

    def _decide(self, inputs: Tensor, when: str) -> Float[Tensor, "batch classes"]:
        images = inputs.detach().to("cpu", self._dtype)
        images = images.repeat(1, 3, 1, 1) if self._repeat and images.shape[1] == 1 else images
        size = self._fixed or max(1, len(images))
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
            answer = self._run(filled, when)
            parts.append(checks.as_decision(torch.from_numpy(answer), size)[: len(part)])
        return torch.cat(parts)

    def _run(self, images: Tensor, when: str) -> Any:
        try:
            return self._session.run([self._output], {self._input: images.numpy()})[0]
        except Exception as cause:  # onnxruntime's errors share no narrower base
            raise TeacherError(
                f"the ONNX teacher '{self.path}' fails at {when}, inputs of "
                f"{_by(images.shape)}: {reason(cause)}. Give it images of the size it was made for"
            ) from cause


def _names(session: Any, classes: int) -> tuple[str, ...]:
    """Return the classes that the file's metadata lists, as our own artifacts do, else ()."""
    try:
        found = json.loads(session.get_modelmeta().custom_metadata_map.get("classes", ""))
    except ValueError:
        return ()
    whole = isinstance(found, list) and len(found) == classes
    return tuple(found) if whole and all(isinstance(name, str) for name in found) else ()


def _count_parameters(path: Path) -> int:
    """Count the numbers stored in the file's initializers, at least 1."""
    import math

    from tutelage.export.artifact import load_onnx

    return max(1, sum(math.prod(tensor.dims) for tensor in load_onnx(path).graph.initializer))


def _open(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's errors share no narrower base
        raise TeacherError(
            f"the ONNX teacher '{path}' cannot be opened: {reason(cause)}. Export it again"
        ) from cause


def _fingerprint(path: Path, options: str) -> str:
    """Return the SHA-256 over the file, the files its weights lie in, and the options."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    digest = hashlib.sha256(options.encode())
    for file in (path, *(path.parent / name for name in sorted(names))):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape))
