"""What our exporter's files cost against the published figures of MLPerf Tiny's references."""

from __future__ import annotations

from pathlib import Path

import mlperf_tiny
import numpy as np
import pytest

from tutelage.export.artifact import ArtifactMeta
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8

# Build, input, published MACs, and parameters worked by hand: every weight and bias, with each
# batch norm folded into the layer before it.
NETS = {
    "kws": (mlperf_tiny.ds_cnn, (1, 49, 10), 2.66e6,
            (40 + 1) * 64 + 4 * ((9 + 1) * 64 + (64 + 1) * 64) + 65 * 12),
    "vww": (mlperf_tiny.mobilenet, (3, 96, 96), 7.49e6,
            28 * 8 + sum(10 * a + (a + 1) * b for a, b in (
                (8, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), *[(128, 128)] * 5,
                (128, 256), (256, 256))) + 257 * 2),
    "ic": (mlperf_tiny.resnet8, (3, 32, 32), 12.5e6,
           28 * 16 + 2 * 145 * 16 + 145 * 32 + 289 * 32 + 17 * 32
           + 289 * 64 + 577 * 64 + 33 * 64 + 65 * 10),
    "ad": (mlperf_tiny.autoencoder, (640,), 0.264e6,
           641 * 128 + 3 * 129 * 128 + 129 * 8 + 9 * 128 + 3 * 129 * 128 + 129 * 640),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_exported_references_cost_what_is_published(name: str, tmp_path: Path) -> None:
    build, shape, macs, parameters = NETS[name]
    meta = ArtifactMeta(task="vision", classes=("a", "b"), shape=shape, mean=(0.0,), std=(1.0,),
                        version="0")  # fmt: skip
    path = export_onnx(build().eval(), shape, tmp_path / "float.onnx", meta=meta)
    costs = graph_costs(path)
    assert costs.macs == pytest.approx(macs, rel=0.01)
    weights = sum(op.weight_bytes for op in costs.ops)
    assert weights == pytest.approx(4 * parameters, rel=0.01)
    assert 4 * parameters * 0.99 < costs.file_bytes < 4 * parameters * 1.01 + 16_000
    if len(shape) == 3:
        example = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
        small = graph_costs(quantize_int8(path, tmp_path / "int8.onnx", example))
        assert small.macs == costs.macs
        assert parameters < small.file_bytes < 1.45 * parameters + 16_000
