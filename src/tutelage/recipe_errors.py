"""What pydantic found wrong with a recipe, as one line that names the place and the cure."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from tutelage.plain_yaml import line_of
from tutelage.registry import near_matches

_WORDS = {  # of pydantic's kinds of error, what a writer of YAML understands
    "dict_type": "wants keys of its own below it, as in docs/recipe.md",
    "model_type": "wants keys of its own below it, as in docs/recipe.md",
    "string_too_short": "is empty",
    "tuple_type": "wants a list, such as [8, 8]",
}


def explain(
    error: ValidationError,
    data: Any,
    where: str,
    text: str | None,
    root: type[BaseModel],
    arm: type[BaseModel],
) -> str:
    """Write the first problem as one line: where, which key, what is wrong, what is right.

    `root` is the model that was asked for, `arm` the model that a key of its `budget` may hold.
    """
    problems = [(_keys(p["loc"], data, p["type"]), p) for p in error.errors(include_url=False)]
    unknown = [p for p in problems if p[1]["type"] == "extra_forbidden"]
    top = (unknown or problems)[0][0][:2]
    # Each arm of a union complains; the one that read deepest was meant.
    keys, first = max(
        (p for p in unknown or problems if p[0][:2] == top),
        key=lambda p: (len(p[0]), p[1]["type"] == "value_error"),
    )
    key = ".".join(str(part) for part in keys) if keys else "recipe"
    line = line_of(text, keys) if text else None
    place = f"{where}:{line}" if line else where
    message = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    message = message.split(" or instance of ")[0].replace("Input should", "should")
    given = first.get("input")
    if isinstance(given, (str, int, float, bool)) and not message.startswith("'"):
        message += f" (given: {given!r:.60})"
    if first["type"] == "extra_forbidden":
        message = f"unknown key '{key}'. {_near_key(keys, root, arm)}"
    elif first["type"] == "missing":
        message = f"the key '{key}' is missing; add it (see: tutelage init --help)"
    else:
        message = f"{key}: {message}"
    return " ".join(f"{place}: {message}".split())


def _keys(loc: tuple[int | str, ...], data: Any, kind: str) -> tuple[int | str, ...]:
    """Return the keys in `loc` without the tags that pydantic adds for the arms of a union."""
    keys: list[int | str] = []
    for i, part in enumerate(loc):
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        ):
            keys.append(part)
            data = data[part]  # type: ignore[index]
        elif kind == "missing" and i == len(loc) - 1:
            keys.append(part)
    return tuple(keys)


def _near_key(loc: tuple[Any, ...], root: type[BaseModel], arm: type[BaseModel]) -> str:
    model: Any = root
    for part in loc[:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = arm if "budget" in loc else root
    return near_matches(str(loc[-1]), list(model.model_fields))
