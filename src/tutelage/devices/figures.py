"""One figure of a device profile: a quantity or a range, with its unit and its source."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tutelage.errors import RecipeError
from tutelage.units import format_quantity, parse_quantity

_AMOUNTS = ("value", "low", "high")


class Strict(BaseModel):
    """What the parts of a device file share: no unknown key, no change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Figure(Strict):
    """One figure of a profile: `value`, or a range `low` to `high`, in SI units of `unit`.

    `prior` marks a figure from memory, to be replaced by a measurement.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str
    source: str = Field(min_length=3)
    prior: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> Figure:
        ends = (self.low is not None) + (self.high is not None)
        if (self.value is None) == (ends == 0) or ends == 1:
            raise ValueError("give either 'value', or both 'low' and 'high'")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("'low' is above 'high'")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest, equal for a single value."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        assert self.value is not None  # by _one_form
        return self.value, self.value

    @property
    def typical(self) -> float:
        """The value, or the geometric mean of the range."""
        low, high = self.bounds
        return low if low == high else math.sqrt(low * high)


def figure_in(unit: str, most: float) -> BeforeValidator:
    """Return the reader of a figure in `unit` that is positive, finite and at most `most`."""
    base = unit.removesuffix("/s")
    per_second = unit != base

    def quantity(raw: Any) -> float:
        text = raw.strip().removesuffix("/s") if per_second and isinstance(raw, str) else raw
        try:
            value = parse_quantity(text, base)
        except RecipeError as error:
            raise ValueError(str(error).replace(f"'{text}'", f"'{raw}'")) from None
        if value > most:
            raise ValueError(
                f"'{raw}' is above {format_quantity(most, base)}, which is absurd here"
            )
        return value

    def read(raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        given = {k: quantity(v) for k, v in raw.items() if k in _AMOUNTS and v is not None}
        if raw.get("unit", unit) != unit:
            raise ValueError(f"this figure is in {unit}, not {raw['unit']}")
        return {**raw, **given, "unit": unit}

    return BeforeValidator(read)
