"""What an untrained network's file weighs is what a trained one's does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tutelage.devices import load_device
from tutelage.export.artifact import ArtifactMeta
from tutelage.plan.candidate import shaken, stand_in
from tutelage.plan.costs import Costing, as_shipped
from tutelage.students.spec import StudentSpec

TEXT = {"vocabulary": 40, "length": 12, "pad": 1, "classes": 3}
IMAGE = {"image": [1, 8, 8], "classes": 3}
SERIES = {"channels": 2, "length": 16, "classes": 3}
SPECS = {
    "encoder, post": {"family": "encoder", **TEXT, "layers": 2, "hidden": 16, "heads": 2,
                      "inner": 16, "norm": "post"},
    "encoder, pre": {"family": "encoder", **TEXT, "layers": 2, "hidden": 16, "heads": 2,
                     "inner": 16},
    "textconv": {"family": "textconv", **TEXT, "embedding": 8, "depth": 2},
    "vit": {"family": "vit", **IMAGE, "patch": 2, "layers": 2, "hidden": 16, "heads": 2,
            "inner": 16},
    "convnet": {"family": "convnet", **IMAGE, "widths": [8, 8], "depths": [2, 2]},
    "convnet1d": {"family": "convnet1d", **SERIES, "widths": [8, 8], "depths": [2, 2]},
    "gru": {"family": "gru", **SERIES, "hidden": 8},
}  # fmt: skip


def costing(spec, precision):
    text = "vocabulary" in spec
    shape = (12,) if text else (1, 8, 8) if "image" in spec else (2, 16)
    meta = ArtifactMeta(
        task="x", classes=("a", "b", "c"), shape=shape, version="0", mean=(0.0,), std=(1.0,),
        **({"dtype": "int64"} if text else {}),
    )  # fmt: skip
    return Costing(device=load_device("host"), limits=(), precision=precision, meta=meta)


def trained(network: nn.Module) -> nn.Module:
    """Move every number, as training does."""
    torch.manual_seed(1)
    made = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.eval()


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", list(SPECS))
def test_bytes_are_those_of_the_trained_network(name, precision):
    asked, spec = costing(SPECS[name], precision), StudentSpec.from_json(SPECS[name])
    sizes = []
    for network in (stand_in(spec), shaken(spec.build().eval()), trained(spec.build())):
        with as_shipped(network.eval(), asked) as path:
            sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1] == pytest.approx(sizes[2], abs=16)
