"""An ONNX file, read whole or refused, with the bytes that it stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import CorruptFileError, ExportError

if TYPE_CHECKING:
    from onnx import ModelProto


def load_graph(source: str | Path | ModelProto) -> tuple[ModelProto, int, str]:
    """Return the model with its functions inlined, the bytes of its files, and what to call it.

    Raises `ExportError` for a missing file, `CorruptFileError` for one that is not whole.
    """
    import onnx
    from onnx import inliner

    held = isinstance(source, onnx.ModelProto)
    where = "the model in memory" if held else str(source)
    if not held and not Path(source).is_file():
        raise ExportError(f"no ONNX file at '{where}': check the path, or export the student first")
    try:
        # Protobuf and onnx raise unrelated types for damaged bytes, with no common base.
        model = source if held else onnx.load(source, load_external_data=False)
        size = model.ByteSize() if held else Path(source).stat().st_size
        size += 0 if held else _external_bytes(model, Path(source))
        onnx.checker.check_model(model if held else str(source))
    except CorruptFileError:
        raise
    except Exception as error:
        raise corrupt(where, error) from error
    if not model.graph.node or not model.graph.output:
        raise CorruptFileError(f"'{where}' holds no operators or no output: export it again")
    if model.functions:
        model = inliner.inline_local_functions(model)
    return model, size, where


def corrupt(where: str, error: Exception) -> CorruptFileError:
    """Return the error that says in one line what is wrong with the file `where`."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return CorruptFileError(f"'{where}' is not a whole ONNX file ({first}): export it again")


def _external_bytes(model: ModelProto, path: Path) -> int:
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if "location" in entry:
            end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            ends[entry["location"]] = max(end, ends.get(entry["location"], 0))
    total = 0
    for location, end in ends.items():
        file = (path.parent / location).resolve()
        inside = file.is_relative_to(path.parent.resolve()) and file.is_file()
        if not inside or file.stat().st_size < end:
            raise CorruptFileError(
                f"'{path}' keeps weights in '{location}', which is not whole beside it: "
                "copy both files into one folder, or export again as one file"
            )
        total += file.stat().st_size
    return total
