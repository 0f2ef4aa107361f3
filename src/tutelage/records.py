"""Facts that travel between stages and into the report. No torch here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["measured", "predicted", "estimated"]
Metric = Literal["latency_s", "ram_bytes", "storage_bytes", "energy_j", "accuracy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure: SI value and unit, how it was come by, from how many readings, how sure, where.

    `spread` is a 95 % interval (low, high) in the same unit. `where` names the machine and
    runtime, or the source of an estimate. Units: `s`, `B`, `J`, `W`, `MAC`, `1` (a ratio or count).
    """

    name: str
    value: float
    unit: str
    kind: Kind
    n: int = 1
    spread: tuple[float, float] | None = None
    where: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """Rebuild from `to_json`."""
        spread = data.get("spread")
        return cls(**{**data, "spread": None if spread is None else (spread[0], spread[1])})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCost:
    """What one operator of an exported graph costs.

    `op` is the operator class (`conv`, `depthwise`, `linear`, `pool`, `add`, `other`), `bits` the
    width of its arithmetic (8 or 32). Bytes count weights and activations that it reads and
    activations that it writes. For a cost model that tells more apart: `kind` is the ONNX operator,
    `weight_bits` the width in which its weights are stored (0: none), `steps` how often a recurrent
    one runs in turn, `channels` how many it reads and writes at each position (of its group), and
    `views` how many operators behind it only pass on what it wrote, in another shape or clipped.
    """

    name: str
    op: str
    bits: int
    macs: int
    weight_bytes: int
    read_bytes: int
    write_bytes: int
    output_elements: int
    kind: str = ""
    weight_bits: int = 0
    steps: int = 1
    channels: tuple[int, int] = (1, 1)
    views: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One line of the budget: at most `value` (at least, for `accuracy`), in SI units.

    `source` says who set it: `recipe`, or the device profile's own limit.
    """

    metric: Metric
    value: float
    hard: bool = True
    source: str = "recipe"

    def met_by(self, value: float) -> bool:
        """Say whether `value` keeps the limit; NaN never does."""
        if math.isnan(value):
            return False
        return value >= self.value if self.metric == "accuracy" else value <= self.value

    def margin(self, value: float) -> float:
        """Return the room left as a share of the limit; negative when it is missed."""
        room = value - self.value if self.metric == "accuracy" else self.value - value
        return room / self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A limit beside the figure held against it."""

    limit: Limit
    figure: Measurement

    @property
    def met(self) -> bool:
        """Whether the figure keeps the limit."""
        return self.limit.met_by(self.figure.value)

    def to_json(self) -> dict[str, Any]:
        """Return the flat form used by `--json`, proof.json and the report."""
        limit, figure = self.limit, self.figure
        return {
            "metric": limit.metric,
            "limit": limit.value,
            "hard": limit.hard,
            "source": limit.source,
            "value": figure.value,
            "kind": figure.kind,
            "where": figure.where,
            "margin": limit.margin(figure.value),
            "met": self.met,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A file that must lie beside an artifact, such as a tokenizer, and counts in its storage."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WouldDo:
    """What a missed budget would be met by: a known device, or these limits in place of its own.

    `device` is None where no known one would do, `limits` empty where no limit of the recipe helps.
    """

    device: str | None
    limits: tuple[Limit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the form used by `--json` and proof.json."""
        return {"device": self.device, "limit": {x.metric: x.value for x in self.limits}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WouldDo:
        """Rebuild from `to_json`."""
        limits = tuple(Limit(metric=k, value=v) for k, v in data["limit"].items())
        return cls(device=data["device"], limits=limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """The student that comes nearest to a budget that none can meet, and what would do."""

    parameters: int
    verdicts: tuple[Verdict, ...]
    would_do: WouldDo


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An exported file for one runtime; `path` is relative to the run directory."""

    path: str
    runtime: str
    precision: str
    bytes: int
    sha256: str
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Artifact:
        """Rebuild from `to_json`."""
        return cls(**{**data, "notes": tuple(data["notes"])})
