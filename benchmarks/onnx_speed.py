"""int8 against float32, and tutelage's int8 form against onnxruntime's own quantizer.

For students of the three budgets, six files of the same network: tutelage's float32, its int8, and
its int8 with the first layer left in float; torch's own export (float32), and that put through
onnxruntime's `quant_pre_process` and `quantize_static` (QDQ) twice: with its defaults, and with
uint8 activations and a scale for each output channel, as suits x86. All are calibrated on the same
training images. Reported: bytes, latency at batch 1 of blocks taken in turn (median, and the
fastest tenth, which other work on the machine disturbs less), each as a ratio to tutelage's
float32, and how often a file decides as the network does.

python benchmarks/onnx_speed.py [--sizes 10k 20k 78k] [--student FOLDER ...] [--threads 1]
python benchmarks/onnx_speed.py --text    # results/onnx_speed_text.json

With `--text` the students are an encoder (2 layers of 128 numbers, 128 tokens) and a textconv, and
the files tutelage's float32, its int8, its int8 with the tables left in float, and onnxruntime's
`quantize_dynamic` with its defaults.

Random students stand in where no trained ones are given: speed and bytes do not depend on the
weights, agreement does.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    FASHION_MNIST,
    HERE,
    STUDENTS,
    command,
    fashion_mnist,
    fresh_student,
    machine,
    print_table,
    ratio_of_medians,
    write_result,
)
from torch import Tensor, nn

from tutelage import __version__
from tutelage.export.artifact import ArtifactMeta, OnnxModel
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import Precision, layer_names, quantize_int8
from tutelage.measure.latency import prepare, time_calls
from tutelage.pipeline.material import Material
from tutelage.students.families.encoder import Encoder, EncoderSpec
from tutelage.students.families.textconv import TextConv, TextConvSpec
from tutelage.students.spec import load

BASE = "tutelage float32"
TEXTS = {"vocabulary": 8_192, "length": 128, "classes": 2}


def main() -> None:
    """Write the files, time them in turn, print a table a student, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=FASHION_MNIST)
    parser.add_argument("--sizes", nargs="*", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--student", nargs="*", type=Path, default=[], help="trained ones instead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=20, help="of every file, in turn")
    parser.add_argument("--calls", type=int, default=100, help="a block")
    parser.add_argument("--calibration", type=int, default=512, help="images")
    parser.add_argument("--examples", type=int, default=2_000, help="test images for agreement")
    parser.add_argument("--text", action="store_true", help="students of texts instead")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "onnx_speed_text.json" if options.text else "onnx_speed.json"
    out = options.out or HERE / "results" / name
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    rows = measure_texts(options) if options.text else measure_images(options)
    write_result(
        out, {"command": command(), "machine": machine(("onnxruntime", "onnx")), "files": rows}
    )


def measure_images(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a file of students of images."""
    material = fashion_mnist(options.data, examples=4_096, flip=False, shift=0, views=1)
    networks = {str(folder): load(folder) for folder in options.student}
    for size in () if networks else options.sizes:
        networks[f"{size}, random weights"] = _settled(fresh_student(size, 0), material)
    rows = []
    for name, network in networks.items():
        rows += measure_student(name, network, material, options)
    return rows


def measure_texts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a file of students of texts, with random weights and random tokens."""
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {
        "encoder, 2 x 128": Encoder(
            EncoderSpec(layers=2, hidden=128, heads=4, inner=256, embedding=64, **TEXTS)
        ),
        "textconv, 2 x 64": TextConv(TextConvSpec(embedding=64, depth=2, **TEXTS)),
    }
    ids = np.random.default_rng(0).integers(1, TEXTS["vocabulary"], (512, TEXTS["length"]))
    rows = []
    for name, network in networks.items():
        with tempfile.TemporaryDirectory() as folder:
            files = write_text_files(network.eval(), ids, Path(folder))
            times = _in_turn(files, options)
            wanted = OnnxModel(files[BASE]).run(ids)
            for kind, path in files.items():
                said = OnnxModel(path).run(ids)
                rows.append(
                    {
                        "student": name,
                        "parameters": sum(p.numel() for p in network.parameters()),
                        "file": kind,
                        "bytes": path.stat().st_size,
                        "median": ratio_of_medians(times[kind], times[BASE]),
                        "fastest": ratio_of_medians(_fastest(times[kind]), _fastest(times[BASE])),
                        "error": float(np.abs(said - wanted).mean() / wanted.std()),
                    }
                )
        here = [row for row in rows if row["student"] == name]
        print(f"\n{name}: {here[0]['parameters']} parameters")
        print_table(
            ("file", "bytes", "median", "ratio", "95 % interval", "fastest", "ratio",
             "95 % interval", "error"),
            [
                (r["file"], r["bytes"], *_cells(r["median"]), *_cells(r["fastest"]),
                 f"{r['error']:.4f}")
                for r in here
            ],
        )  # fmt: skip
    return rows


def write_text_files(network: nn.Module, ids: np.ndarray, folder: Path) -> dict[str, Path]:
    """Write every form of a student of texts; return their paths by name."""
    from onnxruntime.quantization import quantize_dynamic

    meta = ArtifactMeta(
        task="text", classes=("a", "b"), shape=(TEXTS["length"],), mean=(), std=(),
        version=__version__, input="ids", layout="NT", scale=1.0, dtype="int64",
    )  # fmt: skip
    ours = export_onnx(network, (TEXTS["length"],), folder / "ours-float32.onnx", meta=meta)
    tables = tuple(name for name in layer_names(ours) if name in ("embedding", "positions"))
    stock = folder / "stock-int8.onnx"
    quantize_dynamic(str(ours), str(stock))
    return {
        BASE: ours,
        "tutelage int8": quantize_int8(ours, folder / "ours-int8.onnx", ids[:64]),
        "tutelage int8, float tables": quantize_int8(
            ours, folder / "ours-tables.onnx", ids[:64], keep_float=tables
        ),
        "onnxruntime quantize_dynamic": stock,
    }


def measure_student(
    name: str, network: nn.Module, material: Material, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row a file."""
    inputs = material.test.batch(torch.arange(options.examples), 0).inputs
    with torch.inference_mode():
        decided = network(inputs).argmax(1).numpy()
    labels = material.data.test.labels[: options.examples]
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(network, material, Path(folder), options.calibration)
        times = _in_turn(files, options)
        rows = []
        for kind, path in files.items():
            said = OnnxModel(path, threads=options.threads).run(inputs.numpy()).argmax(1)
            rows.append(
                {
                    "student": name,
                    "parameters": sum(p.numel() for p in network.parameters()),
                    "file": kind,
                    "bytes": path.stat().st_size,
                    "median": ratio_of_medians(times[kind], times[BASE]),
                    "fastest": ratio_of_medians(_fastest(times[kind]), _fastest(times[BASE])),
                    "agreement": float((said == decided).mean()),
                    "accuracy": float((said == labels).mean()),
                }
            )
    print(f"\n{name}: {rows[0]['parameters']} parameters")
    print_table(
        ("file", "bytes", "median", "ratio", "95 % interval", "fastest", "ratio", "95 % interval",
         "agrees"),
        [
            (r["file"], r["bytes"], *_cells(r["median"]), *_cells(r["fastest"]),
             f"{r['agreement']:.4f}")
            for r in rows
        ],
    )  # fmt: skip
    return rows


def write_files(
    network: nn.Module, material: Material, folder: Path, calibration: int
) -> dict[str, Path]:
    """Write every form of the network; return their paths by name."""
    channels, height, width = material.shape
    index = torch.linspace(0, material.train.count - 1, calibration).round().long()
    images = material.train.batch(index, 0).inputs
    meta = ArtifactMeta(
        task="vision", classes=material.classes, shape=material.shape,
        mean=material.normalisation.mean, std=material.normalisation.std, version=__version__,
    )  # fmt: skip
    ours = export_onnx(network, (channels, height, width), folder / "ours-float32.onnx", meta=meta)
    stock = folder / "stock-float32.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
        program = torch.onnx.export(network, (images[:1],), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(stock), external_data=False)
    return {
        BASE: ours,
        "tutelage int8": quantize_int8(ours, folder / "ours-int8.onnx", images.numpy()),
        "tutelage int8, float stem": quantize_int8(
            ours, folder / "ours-stem.onnx", images.numpy(), precision=Precision(float_stem=True)
        ),
        "torch float32": stock,
        "onnxruntime QDQ, defaults": _stock_int8(stock, folder / "qdq.onnx", images, {}),
        "onnxruntime QDQ, uint8, per channel": _stock_int8(
            stock, folder / "qdq-best.onnx", images, {"per_channel": True}, unsigned=True
        ),
    }


def _stock_int8(
    source: Path, target: Path, images: Tensor, options: dict[str, Any], *, unsigned: bool = False
) -> Path:
    """Quantize as onnxruntime's documentation advises: pre-process, then `quantize_static`."""
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    if unsigned:
        options = {**options, "activation_type": QuantType.QUInt8}
    quantize_static(str(prepared), str(target), _reader(prepared, images), **options)
    return target


def _reader(path: Path, images: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    name = OnnxModel(path).input.name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images.split(1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {name: image.contiguous().numpy()}

    return Reader()


def _in_turn(files: dict[str, Path], options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Time every file block by block, in an order that changes; return seconds a call."""
    calls: dict[str, Callable[[], object]] = {
        kind: prepare(path, options.threads)[0] for kind, path in files.items()
    }
    times: dict[str, list[list[float]]] = {kind: [] for kind in files}
    random = np.random.default_rng(0)
    for _ in range(options.blocks):
        for position in random.permutation(len(files)):
            kind = list(files)[position]
            times[kind].append(time_calls(calls[kind], 10, options.calls, 60.0))
    return times


def _fastest(blocks: list[list[float]]) -> list[list[float]]:
    """Return the fastest tenth of each block."""
    return [sorted(block)[: max(1, len(block) // 10)] for block in blocks]


def _cells(found: dict[str, Any]) -> tuple[str, str, str]:
    low, high = found["interval"]
    return f"{found['first_s'] * 1e6:.1f} us", f"{found['ratio']:.3f}", f"{low:.3f} to {high:.3f}"


def _settled(network: nn.Module, material: Material) -> nn.Module:
    """Let the batch norms of a random network see data, so that its activations have a scale."""
    network.train()
    with torch.no_grad():
        for start in range(0, 2_048, 128):
            network(material.train.batch(torch.arange(start, start + 128), 0).inputs)
    return network.eval()


if __name__ == "__main__":
    main()
