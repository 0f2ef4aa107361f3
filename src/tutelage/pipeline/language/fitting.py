"""Which slices of a language model keep every limit, and what to say where none does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tutelage.devices import Device, device_limits
from tutelage.errors import InfeasibleError
from tutelage.pipeline.language.costs import Figures, Price, Terms, figures_on
from tutelage.pipeline.language.pace import Pace
from tutelage.pipeline.proving import verdicts
from tutelage.plan.refusal import infeasible, looser, others
from tutelage.recipe_language import Quantization
from tutelage.records import Limit, Shortfall, Verdict, WouldDo
from tutelage.students.decoders.mixes import plan_mixes
from tutelage.students.decoders.network import DecoderSpec
from tutelage.students.decoders.sizes import parameters, with_sizes

_FULL = 10**9  # a limit that is used up, in the whole numbers that sizes are searched by


def fitting_slices(
    whole: DecoderSpec, price: Price, limits: Sequence[Limit], *, count: int
) -> list[DecoderSpec]:
    """Return up to `count` slices that keep every hard limit, the deepest first, then mixes.

    Raises `InfeasibleError` where none does; `no_slice` says more.
    """
    return plan_mixes(whole, most_bytes=_FULL, bytes_of=use_of(price, limits), count=count)


def fixed(whole: DecoderSpec, price: Price, limits: Sequence[Limit]) -> list[DecoderSpec]:
    """Return a network that is not sliced; raises `InfeasibleError` where it does not fit."""
    if use_of(price, limits)(whole) > _FULL:
        raise InfeasibleError("the student that the recipe names does not fit")
    return [whole]


def use_of(price: Price, limits: Sequence[Limit]) -> Callable[[DecoderSpec], int]:
    """Return how much a spec uses of the hard limit it comes nearest to: grows with its sizes."""

    def used(spec: DecoderSpec) -> int:
        values = {figure.name: figure.value for figure in price(spec)}
        shares = [values[x.metric] / x.value for x in limits if x.hard and x.metric in values]
        return math.ceil(min(max(shares, default=0.0), 1e6) * _FULL - 1e-3)

    return used


def no_slice(
    whole: DecoderSpec, form: Quantization, terms: Terms, limits: tuple[Limit, ...],
    device: Device, pace: Pace | None = None, *, given: bool = False,
) -> InfeasibleError:  # fmt: skip
    """Return the error that names the limits which the smallest slice misses, and what would do.

    With `given` there are no slices: `whole` is a student that the recipe names.
    """
    least = whole if given else smallest(whole)
    held = verdicts(limits, figures_on(least, form, terms, device, pace))
    found = Shortfall(
        parameters=parameters(least), verdicts=held,
        would_do=what_would_do(least, form, terms, held, limits, device),
    )  # fmt: skip
    return infeasible(found, device, given=given)


def smallest(whole: DecoderSpec) -> DecoderSpec:
    """Return the slice of one layer and the fewest units that a file's blocks divide."""
    return with_sizes(whole, layers=1, inner=min(whole.inner, 32 if whole.inner >= 64 else 2))


def what_would_do(
    spec: DecoderSpec, form: Quantization, terms: Terms, judged: Sequence[Verdict],
    limits: Sequence[Limit], device: Device,
) -> WouldDo:  # fmt: skip
    """Return the known device on which a slice would keep all that is asked, and looser limits."""
    missed = [v for v in judged if v.limit.hard and not v.met]
    asked = [x for x in limits if x.hard and x.source != f"device {device.name}"]

    def keeps(other: Device) -> bool:
        return _keeps(figures_on(spec, form, terms, other), [*asked, *device_limits(other)])

    found = next((other.name for other in others(device) if keeps(other)), None)
    return WouldDo(device=found, limits=looser(missed, device))


def _keeps(figures: Figures, limits: Sequence[Limit]) -> bool:
    values = {figure.name: figure.value for figure in figures}
    return all(x.met_by(values.get(x.metric, math.nan)) for x in limits)
