"""A student as plain JSON plus safetensors: what rebuilds it, anywhere, without foreign code."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tutelage.errors import CorruptFileError, RecipeError, StudentError
from tutelage.files import read_json, read_tensors, write_json, write_tensors
from tutelage.registry import Registry, near_matches
from tutelage.students.decoders import network as decoder
from tutelage.students.ensemble import MOST_MEMBERS, Ensemble, networks_of
from tutelage.students.families import (
    convnet,
    convnet1d,
    encoder,
    graph,
    graph_net,
    gru,
    minirocket,
    textconv,
    vit,
)
from tutelage.students.slices import convnet as slice_convnet
from tutelage.students.slices import encoder as slice_encoder
from tutelage.students.slices import graph as slice_graph
from tutelage.students.slices import vit as slice_vit
from tutelage.students.slices.channels import Slicing


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A student family: the dataclass of its knobs and the function that builds a network.

    `tokens`: between its layers there is a vector a token, to compare token by token. `attends`: it
    is a transformer, which is taught gently where it begins with weights that were taught before.
    `structures` are its shapes but for the width, and `sized(structure, width, given)` the knobs of
    one of them: `given` holds what the data decides, and cost grows with the width.
    `drawn(random)` is a structure drawn at random, for wider searches, where the family has many.
    `slicing` is how its networks are cut to smaller ones, where they can be.
    """

    spec: type[Any]
    build: Callable[[Any], nn.Module]
    structures: tuple[Any, ...] = ()
    sized: Callable[[Any, int, dict[str, Any]], Any] | None = None
    tokens: bool = False
    attends: bool = False
    drawn: Callable[[Any], Any] | None = None
    slicing: Slicing | None = None


_SLICINGS = {
    "convnet": slice_convnet.SLICING,
    "convnet1d": slice_convnet.SLICING,
    "encoder": slice_encoder.SLICING,
}
FAMILIES: Registry[Family] = Registry("student family")
for _name, _module, _spec, _build in (
    ("convnet", convnet, convnet.ConvNetSpec, convnet.ConvNet),
    ("convnet1d", convnet1d, convnet1d.ConvNet1dSpec, convnet1d.ConvNet1d),
    ("gru", gru, gru.GruSpec, gru.Gru),
    ("encoder", encoder, encoder.EncoderSpec, encoder.Encoder),
    ("textconv", textconv, textconv.TextConvSpec, textconv.TextConv),
):
    FAMILIES.add(
        _name,
        Family(
            spec=_spec,
            build=_build,
            structures=_module.STRUCTURES,
            sized=_module.sized,
            tokens=_name == "encoder",
            attends=_name == "encoder",
            drawn=getattr(_module, "drawn", None),
            slicing=_SLICINGS.get(_name),
        ),
    )
# By its spec, or as a slice: the planner ranks by operations, which say little across kinds.
FAMILIES.add(
    "vit", Family(spec=vit.ViTSpec, build=vit.ViT, attends=True, slicing=slice_vit.SLICING)
)
# Traced from a foreign teacher, or sliced from what was (see `slices.graph`).
FAMILIES.add(
    "graph",
    Family(spec=graph.GraphSpec, build=graph_net.GraphNet, slicing=slice_graph.SLICING),
)
# A teacher alone: its features are too many for a student.
FAMILIES.add("minirocket", Family(spec=minirocket.MiniRocketSpec, build=minirocket.MiniRocket))
# Sliced from a language model alone (see `decoders.slicing`).
FAMILIES.add("decoder", Family(spec=decoder.DecoderSpec, build=decoder.Decoder))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """A family's name and its knobs."""

    family: str
    knobs: Any

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; a `shrink` of 1 says nothing and is left out."""
        own = getattr(self.knobs, "to_json", None)
        data = {"family": self.family, **(own() if own else dataclasses.asdict(self.knobs))}
        return {k: v for k, v in data.items() if (k, v) != ("shrink", 1)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StudentSpec:
        """Rebuild from `to_json`; raises `RecipeError` naming a knob that does not exist."""
        if not isinstance(data, dict) or "family" not in data:
            raise RecipeError("a student spec needs the key 'family', for instance family: convnet")
        knobs = dict(data)
        family = str(knobs.pop("family"))
        kind = FAMILIES[family].spec
        known = {field.name: field for field in dataclasses.fields(kind)}
        for name in knobs:
            if name not in known:
                hint = near_matches(name, list(known))
                raise RecipeError(f"student family '{family}' has no knob '{name}'. {hint}")
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items()}
        try:
            return cls(family=family, knobs=kind(**lists))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"student family '{family}': {error}") from None

    def build(self) -> nn.Module:
        """Build the network with fresh weights; raises `StudentError` when the knobs clash."""
        try:
            return FAMILIES[self.family].build(self.knobs)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise StudentError(f"student '{self.family}' cannot be built: {error}") from None


def sliced_from(network: nn.Module, spec: StudentSpec, inputs: Tensor) -> nn.Module:
    """Return a network of `spec` with the weights of one of its family that it is part of.

    `inputs` are some hundreds of examples: they choose what stays, and layers are fitted on them to
    the network's, unless all stays. Raises `StudentError` where the network cannot be sliced.
    """
    slicing = FAMILIES[spec.family].slicing
    if slicing is None:
        raise StudentError(f"students of family '{spec.family}' cannot be sliced")
    whole = spec.knobs == getattr(network, "spec", None)
    return slicing.cut(network, spec.knobs, inputs, fitted=not whole)


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of a network's names and numbers."""
    return tensors_hash(network.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, spec: StudentSpec, network: nn.Module, note: Any = None) -> list[Path]:
    """Write `spec.json` and `model.safetensors` into `folder`; return both paths.

    Of an ensemble, `spec` is that of each member.
    """
    paths = [folder / "spec.json", folder / "model.safetensors"]
    more = {"members": len(networks_of(network))} if isinstance(network, Ensemble) else {}
    write_json(paths[0], {**spec.to_json(), **more, **({"note": note} if note else {})})
    write_tensors(paths[1], network.state_dict())
    return paths


def note(folder: str | Path) -> dict[str, Any]:
    """Return what `save` noted beside the spec; empty where there is no such file, or no note."""
    path = Path(folder) / "spec.json"
    return (read_json(path).get("note") or {}) if path.is_file() else {}


def load(folder: str | Path) -> nn.Module:
    """Rebuild a student (or built-in teacher, or several as one) from its folder, to be asked.

    Raises `StudentError` when a file is missing and `CorruptFileError` when one is damaged.
    """
    folder = Path(folder)
    for name in ("spec.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise StudentError(f"{folder} has no {name}; name a run's student folder")
    data = read_json(folder / "spec.json")
    if not isinstance(data, dict):
        raise CorruptFileError(f"{folder / 'spec.json'} is damaged (it holds no keys)")
    data.pop("note", None)
    members = data.pop("members", 1)
    if type(members) is not int or not 1 <= members <= MOST_MEMBERS:
        raise CorruptFileError(f"{folder / 'spec.json'} is damaged (members holds {members!r})")
    spec = StudentSpec.from_json(data)
    network = spec.build() if members == 1 else Ensemble([spec.build() for _ in range(members)])
    tensors, _ = read_tensors(folder / "model.safetensors")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise CorruptFileError(f"{folder}: weights do not fit spec.json ({first})") from None
    return network.eval()
