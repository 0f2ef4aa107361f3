"""An ONNX artifact on disk: its metadata, atomic writing, and running it with onnxruntime alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from tutelage.errors import CorruptFileError, DataError, ExportError

if TYPE_CHECKING:
    import onnx

_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactMeta:
    """What a stranger must know to use the file: labels, input layout and normalisation.

    An input pixel `p` (0 to 255) of channel `c` becomes `(p * scale - mean[c]) / std[c]`. `shape`
    is one example's (channels, height, width). Series and texts have their own `layout`, and what
    more there is to know in `details`. Where the decision is a value there are no `classes`, and an
    output `o` means `o * target["std"] + target["mean"]`.
    """

    task: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    version: str
    input: str = "image"
    layout: str = "NCHW"
    scale: float = 1 / 255
    dtype: Literal["float32", "int64"] = "float32"
    details: dict[str, Any] = field(default_factory=dict)
    target: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `target` is left out where there is none."""
        data = asdict(self)
        return data if self.target is not None else {k: data[k] for k in data if k != "target"}


_LATER = {
    "dtype": "float32",
    "details": {},
    "target": None,
}  # left out of the file where they say nothing
META_KEYS = tuple(f.name for f in fields(ArtifactMeta))


def attach_meta(model: onnx.ModelProto, meta: ArtifactMeta) -> None:
    """Write `meta` into the model's metadata, one short JSON string a field."""
    del model.metadata_props[:]
    for key, value in asdict(meta).items():
        if key in _LATER and value == _LATER[key]:
            continue
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        model.metadata_props.add(key=key, value=text)


def read_meta(path: Path | str) -> ArtifactMeta:
    """Read the metadata back; raises `CorruptFileError` when the file or its metadata is broken."""
    stored = {p.key: p.value for p in load_onnx(path).metadata_props}
    missing = [key for key in META_KEYS if key not in stored and key not in _LATER]
    if missing:
        raise CorruptFileError(
            f"{path}: the metadata lacks {', '.join(missing)}, so the file was not written by "
            "tutelage or was altered. Export it again."
        )
    try:
        data: dict[str, Any] = {key: json.loads(stored[key]) for key in META_KEYS if key in stored}
    except ValueError as error:
        raise CorruptFileError(
            f"{path}: the metadata is not JSON ({error}). Export it again."
        ) from error
    for key, value in data.items():
        data[key] = tuple(value) if isinstance(value, list) else value
    return ArtifactMeta(**data)


def load_onnx(path: Path | str) -> onnx.ModelProto:
    """Parse an ONNX file; raises `ExportError` when absent, `CorruptFileError` when broken."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(Path(path).read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except DecodeError as error:
        raise _corrupt(path, "it is not an ONNX model") from error
    if not model.graph.node or not model.graph.output:
        raise _corrupt(path, "its graph is empty")
    return model


class OnnxModel:
    """An artifact loaded in onnxruntime on the processor.

    Raises `ExportError` when the file is absent and `CorruptFileError` when it cannot be loaded.
    """

    def __init__(self, source: Path | str | bytes, *, threads: int = 1) -> None:
        import onnxruntime as ort
        from onnxruntime.capi import _pybind_state as state

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        name = "the model" if isinstance(source, bytes) else str(source)
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
        except OSError as error:
            raise _unreadable(name, error) from error
        names = ("Fail", "InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile",
                 "RuntimeException", "NotImplemented")  # fmt: skip
        broken = (RuntimeError, *(getattr(state, known) for known in names))
        try:
            self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except broken as error:
            raise _corrupt(name, str(error).splitlines()[0][:200]) from error
        self.input = self.session.get_inputs()[0]

    def run(self, inputs: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n classes"]:
        """Return the logits of `inputs`, float32; a static batch of 1 is looped over.

        Raises `DataError` when the shape is not the one the file takes.
        """
        return np.concatenate([outputs[0] for outputs in self.run_each(inputs)])

    def run_each(self, inputs: Float[np.ndarray, "n ..."]) -> Iterator[list[Any]]:
        """Yield every output of the graph, one batch after the other; errors as for `run`."""
        batch, *shape = self.input.shape
        step = batch if isinstance(batch, int) else min(_CHUNK, len(inputs))
        if (
            list(inputs.shape[1:]) != shape
            or not len(inputs)
            or len(inputs) % step
            and step == batch
        ):
            raise DataError(
                f"input of shape {list(inputs.shape)} does not fit the file, which takes "
                f"{self.input.shape}. Resize the input, or export for its size."
            )
        whole = self.input.type == "tensor(int64)"
        inputs = np.ascontiguousarray(inputs, dtype=np.int64 if whole else np.float32)
        for i in range(0, len(inputs), step):
            yield list(self.session.run(None, {self.input.name: inputs[i : i + step]}))


def observe(
    model: onnx.ModelProto, inputs: Float[np.ndarray, "n ..."]
) -> Iterator[tuple[str, np.ndarray]]:
    """Run `model` and yield (tensor name, values) for its input and every float activation."""
    import onnx

    probe = onnx.ModelProto.FromString(model.SerializeToString())
    names = [name for node in model.graph.node for name in node.output if name]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    yield model.graph.input[0].name, inputs
    for outputs in OnnxModel(probe.SerializeToString()).run_each(inputs):
        for name, values in zip(names, outputs, strict=True):
            if values.dtype == np.float32 and values.size:
                yield name, values


def run_onnx(
    path: Path | str, inputs: Float[np.ndarray, "n c h w"], threads: int = 1
) -> Float[np.ndarray, "n classes"]:
    """Run the artifact at `path` over `inputs` and return logits; errors as for `OnnxModel`."""
    return OnnxModel(path, threads=threads).run(inputs)


def _unreadable(path: Path | str, error: OSError) -> ExportError:
    reason = error.strerror or str(error)
    return ExportError(f"{path} cannot be read: {reason}. Check the path, or export again.")


def _corrupt(path: Path | str, why: str) -> CorruptFileError:
    return CorruptFileError(f"{path} cannot be loaded: {why}. Export it again.")
