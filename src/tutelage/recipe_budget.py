"""The recipe's part about what the artifact may take."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tutelage.errors import RecipeError
from tutelage.recipe_data import Part
from tutelage.records import Limit, Metric
from tutelage.units import parse_quantity, parse_rate, parse_share

_BUDGET: dict[str, tuple[Metric, str]] = {
    "latency": ("latency_s", "s"),
    "memory": ("ram_bytes", "B"),
    "storage": ("storage_bytes", "B"),
    "energy": ("energy_j", "J"),
    "accuracy": ("accuracy", "1"),
    "speed": ("latency_s", "token/s"),  # kept as the time of one token
}


class BudgetLimit(Part):
    """One limit, with its softness."""

    limit: float | str
    hard: bool = True


class BudgetPart(Part):
    """Limits on the artifact. Each is a quantity, or `{limit: 100 kB, hard: false}`."""

    latency: float | str | BudgetLimit | None = Field(None, description="for instance 2 ms")
    memory: float | str | BudgetLimit | None = Field(None, description="for instance 64 kB")
    storage: float | str | BudgetLimit | None = Field(None, description="for instance 100 kB")
    energy: float | str | BudgetLimit | None = Field(None, description="for instance 5 mJ")
    accuracy: float | str | BudgetLimit | None = Field(None, description="at least, 0.95 or 95 %")
    speed: float | str | BudgetLimit | None = Field(
        None, description="of language models: at least, for instance 20 token/s"
    )

    @field_validator(*_BUDGET)
    @classmethod
    def _quantity(cls, given: Any, info: ValidationInfo) -> Any:
        if given is not None:
            _limit(str(info.field_name), given)
        return given

    @model_validator(mode="after")
    def _one_time(self) -> BudgetPart:
        if self.speed is not None and self.latency is not None:
            raise ValueError("'speed' is one over the 'latency' of a token; give one of them")
        return self

    def limits(self) -> tuple[Limit, ...]:
        """Return the limits in SI units; a speed as the time of one token, its inverse."""
        given = {name: getattr(self, name) for name in _BUDGET}
        return tuple(_limit(name, value) for name, value in given.items() if value is not None)


def _limit(name: str, given: Any) -> Limit:
    """Return one limit in SI units; raises `ValueError`, as validators must."""
    metric, unit = _BUDGET[name]
    part = given if isinstance(given, BudgetLimit) else BudgetLimit(limit=given)
    try:
        if name == "speed":
            rate = parse_rate(part.limit)
            source = f"recipe: at least {rate:g} tokens a second"
            return Limit(metric=metric, value=1 / rate, hard=part.hard, source=source)
        share = metric == "accuracy"
        value = parse_share(part.limit) if share else parse_quantity(part.limit, unit)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return Limit(metric=metric, value=value, hard=part.hard, source="recipe")
