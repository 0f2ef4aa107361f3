"""Teachers of timm and torchvision, without downloads."""

import sys

import pytest
from safetensors.torch import save_file
from test_teachers import fake_libraries, load, network, refused

from tutelage.errors import MissingExtra


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_names_its_extra(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    said = refused(f"{library}:resnet18", MissingExtra)
    assert f"pip install 'tutelage[{library}]'" in said


def test_library_models_come_without_downloads(tmp_path, monkeypatch):
    calls = []
    fake_libraries(monkeypatch, calls)
    save_file(dict(network(3).state_dict()), tmp_path / "three.safetensors")
    save_file(dict(network().state_dict()), tmp_path / "one.safetensors")
    load("timm:resnet18", weights=tmp_path / "three.safetensors", channels="repeat")
    load("timm:resnet18", weights=tmp_path / "one.safetensors")
    load("torchvision:resnet18", weights=tmp_path / "one.safetensors")
    assert calls == [
        {"pretrained": False, "num_classes": 10, "in_chans": 3},
        {"pretrained": False, "num_classes": 10, "in_chans": 1},
        {"weights": None, "num_classes": 10},
    ]
    for library in ("timm", "torchvision"):
        assert "nothing is downloaded" in refused(f"{library}:resnet18")
        assert "Did you mean 'resnet18'" in refused(f"{library}:resnet81")
    assert "no model 'hf-hub:some/one'" in refused("timm:hf-hub:some/one")
    assert len(calls) == 3
