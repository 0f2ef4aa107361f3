"""The methods that are compared: losses, start, and the one option that is searched for each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

_KD = {"kl": {"weight": 0.5, "temperature": 4.0}, "cross_entropy": 0.5}
_LABELS = {"cross_entropy": 0.5}
_DIST = {"dist": {"weight": 1.0, "temperature": 1.0}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to teach.

    `option` is `loss.option`, `loss.weight` or `distill.rate` (times the domain's own); `settings`
    are the values that the search tries, the first of them the default. `asks` is what is asked of
    the teacher: nothing, its `decision`, or `features` or `maps` besides. `sliced`: the student
    starts as a slice of it. `mixup` is the largest share of another example. `tool` teaches in the
    place of this library, in its own environment: `losses` are its classes by name, with options.
    """

    losses: dict[str, Any]
    option: str = ""
    settings: tuple[Any, ...] = field(default=(None,))
    asks: str = "decision"
    sliced: bool = False
    mixup: float = 0.0
    tool: str = ""

    def recipe_part(self, setting: int, rate: float) -> dict[str, Any]:
        """Return the recipe's losses and rate with setting number `setting`; `rate` is usual."""
        losses = copy.deepcopy(self.losses)
        part: dict[str, Any] = {"losses": losses, "rate": rate}
        where, _, key = self.option.partition(".")
        if where == "distill":
            part[key] = rate * self.settings[setting]
        elif where:
            given = losses[where]
            own = dict(given) if isinstance(given, dict) else {"weight": given}
            losses[where] = {**own, key: self.settings[setting]}
        return part

    def definition(self) -> dict[str, Any]:
        """Return all that makes the method what it is, for hashes."""
        return {
            "losses": self.losses,
            "option": self.option,
            "settings": list(self.settings),
            "asks": self.asks,
            "sliced": self.sliced,
            **({"mixup": self.mixup} if self.mixup else {}),
            **({"tool": self.tool} if self.tool else {}),
        }


def _inside(name: str, other: str, asks: str, *fixed: float) -> Method:
    """Return what adds a loss on taps, balanced or of a fixed weight, to labels or to DIST."""
    base = _LABELS if other == "labels" else _DIST
    return Method(
        losses={**base, name: "auto"}, option=f"{name}.weight", settings=("auto", *fixed), asks=asks
    )


def _beside_features(base: dict[str, Any], *, sliced: bool = False) -> Method:
    return Method(
        losses={**base, "features": 4.0}, option="features.weight", settings=(4.0, 16.0, 1.0),
        asks="features", sliced=sliced,
    )  # fmt: skip


_BOTH = {**_DIST, "cross_entropy": 0.5}
_RATES = (1.0, 0.3, 3.0)  # times the domain's own
_SLICE_RATES = (1.0, 0.3, 0.1)
METHODS: dict[str, Method] = {
    "no teacher": Method(
        losses={"cross_entropy": 1.0}, option="distill.rate", settings=_RATES, asks=""
    ),
    "label smoothing": Method(
        losses={"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}},
        option="cross_entropy.label_smoothing", settings=(0.1, 0.05, 0.2), asks="",
    ),
    "no teacher, mixup": Method(
        losses={"cross_entropy": 1.0}, option="distill.rate", settings=_RATES, asks="", mixup=0.5
    ),
    "deep supervision": Method(
        losses={"cross_entropy": 1.0, "deep_supervision": "auto"},
        option="deep_supervision.weight", settings=("auto", 0.3, 3.0), asks="",
    ),
    "kd": Method(losses=_KD, option="kl.temperature", settings=(4.0, 2.0, 8.0)),
    "dkd": Method(
        losses={"dkd": {"weight": 0.5, "beta": 8.0}, "cross_entropy": 0.5},
        option="dkd.beta", settings=(8.0, 2.0, 4.0),
    ),
    "dist": Method(losses=_DIST, option="dist.temperature", settings=(1.0, 2.0, 4.0)),
    "logit standardised": Method(
        losses={"logit_standardised": {"weight": 0.5, "temperature": 2.0}, "cross_entropy": 0.5},
        option="logit_standardised.temperature", settings=(2.0, 1.0, 4.0),
    ),
    "default": Method(  # of images
        losses={"dist": 1.0, "features": {"weight": 4.0, "optional": True}}, asks="features"
    ),
    "features": _beside_features(_LABELS),
    "srd": _inside("srd", "labels", "features", 0.03, 0.3),
    "attention": _inside("attention", "labels", "maps", 3.0, 30.0),
    "rkd": _inside("rkd", "labels", "features", 3.0, 30.0),
    "cka": _inside("cka", "labels", "features", 0.3, 3.0),
    "dist, features": _beside_features(_DIST),
    "dist, features, slice": _beside_features(_DIST, sliced=True),
    "dist, features, labels, slice": _beside_features(_BOTH, sliced=True),
    "dist, srd": _inside("srd", "dist", "features", 0.03, 0.3),
    "dist, attention": _inside("attention", "dist", "maps", 3.0, 30.0),
    "dist, rkd": _inside("rkd", "dist", "features", 3.0, 30.0),
    "dist, cka": _inside("cka", "dist", "features", 0.3, 3.0),
    "dist, trajectory": _inside("trajectory", "dist", "features", 0.3, 3.0),
    "kd, trajectory": Method(
        losses={**_KD, "trajectory": "auto"},
        option="trajectory.weight", settings=("auto", 0.3, 3.0), asks="features",
    ),
    "dist, deep supervision": _inside("deep_supervision", "dist", "decision", 0.3, 3.0),
    "dist, decision everywhere": _inside("decision_everywhere", "dist", "decision", 0.3, 3.0),
    "dist, labels": Method(losses=_BOTH, option="cross_entropy.weight", settings=(0.5, 1.0, 0.25)),
    "kl": Method(losses={"kl": 1.0}, option="kl.temperature", settings=(1.0, 2.0, 4.0)),
    "kl, labels": Method(
        losses={"kl": 1.0, "cross_entropy": 0.5}, option="kl.temperature", settings=(1.0, 2.0, 4.0)
    ),
    "kl, features": _beside_features({"kl": 1.0}),
    "dist, kl": Method(
        losses={**_DIST, "kl": 1.0}, option="kl.weight", settings=(1.0, 0.3, 3.0)
    ),
    "dist, kl, features": _beside_features({**_DIST, "kl": 1.0}),
    "kl, mixup": Method(
        losses={"kl": 1.0}, option="kl.temperature", settings=(1.0, 2.0, 4.0), mixup=0.5
    ),
    "dist, slice": Method(
        losses=_DIST, option="distill.rate", settings=_SLICE_RATES, sliced=True
    ),
    "dist, labels, slice": Method(
        losses=_BOTH, option="distill.rate", settings=_SLICE_RATES, sliced=True
    ),
    "no teacher, slice": Method(
        losses={"cross_entropy": 1.0}, option="distill.rate", settings=_SLICE_RATES, asks="",
        sliced=True,
    ),
    "torchdistill: kd": Method(
        losses={"KDLoss": {"temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"}},
        option="KDLoss.temperature", settings=(4.0, 2.0, 8.0), asks="", tool="torchdistill",
    ),
    "torchdistill: dist": Method(
        losses={"DISTLoss": {"tau": 1.0}},
        option="DISTLoss.tau", settings=(1.0, 2.0, 4.0), asks="", tool="torchdistill",
    ),
    "torchdistill: srd": Method(
        losses={
            "CrossEntropyLoss": {},
            "SRDLoss": {"weight": 1.0, "exponent": 4.0, "reduction": "batchmean"},
        },
        option="SRDLoss.weight", settings=(1.0, 0.3, 0.1), asks="", tool="torchdistill",
    ),
    "textbrewer: kd": Method(
        losses={"kd": {"temperature": 4.0}},
        option="kd.temperature", settings=(4.0, 2.0, 8.0), asks="", tool="textbrewer",
    ),
    "textbrewer: tinybert": Method(
        losses={
            "kd": {"temperature": 4.0},
            "hidden_mse": {"weight": 1.0}, "attention_mse_sum": {"weight": 1.0},
        },
        option="hidden_mse.weight", settings=(1.0, 0.1, 10.0), asks="", tool="textbrewer",
    ),
    "sentence-transformers": Method(
        losses={"MSELoss": {}},
        option="distill.rate", settings=_RATES, asks="", tool="sentence-transformers",
    ),
}  # fmt: skip
