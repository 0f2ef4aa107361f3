"""Weights of teachers: loaded without pickle, damage and misfits told."""

import pytest
import torch
from safetensors.torch import save_file
from test_teachers import Payload, load, network, refused


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "wrapped", "prefixed"])
def test_weights_are_loaded(tmp_path, kind):
    torch.manual_seed(1)
    state = {
        name: torch.rand_like(t.float()).to(t.dtype) for name, t in network().state_dict().items()
    }
    path = tmp_path / f"w.{'pt' if kind in ('wrapped', 'prefixed') else kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "prefixed":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    asked = load(network(), weights=path)
    assert all(torch.equal(state[k], v) for k, v in asked.module.state_dict().items())


@pytest.mark.parametrize("forced", [False, True])
def test_a_pickled_payload_is_refused_and_never_runs(tmp_path, monkeypatch, forced):
    proof, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"weight": Payload(f"touch {proof}")}, path)
    if forced:  # the switch that turns torch's own guard off
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    said = refused(network(), weights=path)
    assert "need pickle, which runs code: refused" in said and str(path) in said
    assert not proof.exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(network(), tmp_path / "whole.pt")
    assert "refused" in refused(network(), weights=tmp_path / "whole.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights(tmp_path, name):
    path, state = tmp_path / name, network().state_dict()
    save_file(state, path) if name.endswith("s") else torch.save(state, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x00" * 64):
        path.write_bytes(content)
        assert str(path) in refused(network(), weights=path)


def test_weights_that_do_not_fit_name_the_first_keys(tmp_path):
    state = dict(network().state_dict())
    state["fc.weight"] = state.pop("head.weight")
    save_file(state, tmp_path / "w.safetensors")
    said = refused(network(), weights=tmp_path / "w.safetensors")
    assert "1 missing (first 'head.weight'), 1 unexpected (first 'fc.weight')" in said
    save_file(dict(network(classes=7).state_dict()), tmp_path / "w.safetensors")
    said = refused(network(), weights=tmp_path / "w.safetensors")
    assert "'head.weight' is [7, 6] in the file and [10, 6] in the network" in said


@pytest.mark.parametrize("held", [[1, 2], {"epoch": 3}, {}, torch.zeros(2)])
def test_a_file_without_a_state_dict(tmp_path, held):
    torch.save(held, tmp_path / "w.pt")
    assert "no state dict" in refused(network(), weights=tmp_path / "w.pt")
