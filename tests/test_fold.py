"""Constant integer arithmetic that an exporter leaves in a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.export.artifact import ArtifactMeta, run_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx

META = ArtifactMeta(
    task="text", classes=("a", "b"), shape=(6,), mean=(), std=(), version="0", input="tokens",
    layout="NL", dtype="int64",
)  # fmt: skip


class Positions(nn.Module):
    """Adds positions whose ids are expanded, as Hugging Face's encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(6, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("ids", torch.arange(6)[None])

    def forward(self, tokens: Tensor) -> Tensor:
        where = torch.gather(self.ids.expand(len(tokens), -1), 1, self.ids)
        return self.head((self.tokens(tokens) + self.positions(where)).mean(1))


def test_position_ids_are_computed_at_export_and_shapes_are_known(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Positions().eval()
    path = export_onnx(network, (6,), tmp_path / "m.onnx", meta=META)
    import onnx

    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not kinds & {"Expand", "ConstantOfShape", "Where", "GatherElements"}
    assert graph_costs(path).peak_activation_bytes > 0
    tokens = torch.tensor([[1, 2, 3, 4, 5, 8]])
    with torch.no_grad():
        wanted = network(tokens).numpy()
    np.testing.assert_allclose(run_onnx(path, tokens.numpy()), wanted, atol=1e-5)
