"""Graphs that cannot be counted: named, never a foreign error."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from test_graph_costs import Net, _qdq, _small, autoencoder

from tutelage.errors import CorruptFileError, ExportError, TutelageError
from tutelage.export.graph import GraphCosts, graph_costs


def test_symbolic_batch_counts_as_one_and_other_symbols_are_refused():
    net = Net("n", 3, 8, 8)
    dynamic = graph_costs(net.model(net.classify(net.conv("x", 3, 4, 3), 4, 2)))
    net = Net(1, 3, 8, 8)
    assert dynamic.ops == graph_costs(net.model(net.classify(net.conv("x", 3, 4, 3), 4, 2))).ops
    net = Net(1, 3, "h", 8)
    with pytest.raises(ExportError, match="input 'x'.*static shapes"):
        graph_costs(net.model(net.classify(net.conv("x", 3, 4, 3), 4, 2)))


def test_an_operator_that_cannot_be_counted_is_named():
    net = Net(1, 3, 8, 8)
    with pytest.raises(ExportError, match="Einsum 't0'"):
        graph_costs(net.model(net.op("Einsum", "x", equation="abcd->acbd")))
    net = Net(1, 3, 8, 8)
    with pytest.raises(ExportError, match="shape of BiasGelu 't0'"):
        y = net.op("BiasGelu", "x", net.weight(8), domain="com.microsoft")
        graph_costs(net.model(net.op("Relu", y)))


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(ExportError, match="no ONNX file"):
        graph_costs(tmp_path / "none.onnx")
    net, out = _small()
    data = net.model(out).SerializeToString()
    path = tmp_path / "cut.onnx"
    for keep in (0, 1, len(data) // 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(CorruptFileError) as caught:
            graph_costs(path)
        assert "\n" not in str(caught.value) and "cut.onnx" in str(caught.value)


def test_flipped_bytes_never_escape_as_anything_but_our_own_error(tmp_path):
    data = _qdq().SerializeToString()
    path, refused = tmp_path / "flip.onnx", 0
    for position in np.linspace(0, len(data) - 1, 300).astype(int):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            assert isinstance(graph_costs(path), GraphCosts)
        except TutelageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_an_element_type_that_does_not_exist_is_refused():
    net, out = _small()
    model = net.model(out)
    model.graph.initializer[0].data_type = 33
    with pytest.raises(CorruptFileError, match="not a whole ONNX file"):
        graph_costs(model)


def test_external_data_is_counted_and_checked(tmp_path):
    path = tmp_path / "big.onnx"
    onnx.save(
        autoencoder(), path, save_as_external_data=True, location="big.data", size_threshold=0
    )
    data = tmp_path / "big.data"
    costs = graph_costs(path)
    assert costs.file_bytes == path.stat().st_size + data.stat().st_size
    assert costs.parameter_bytes == pytest.approx(4 * 264_192, rel=0.01)
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match=r"big\.data"):
        graph_costs(path)
    data.unlink()
    with pytest.raises(CorruptFileError, match=r"big\.data"):
        graph_costs(path)
