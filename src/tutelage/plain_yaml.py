"""YAML as plain data: no tags, no aliases, no repeated keys, and lines for error messages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from tutelage.errors import RecipeError, TutelageError

_DEEPEST = 30
_OPEN = (
    yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken,
)  # fmt: skip
_CLOSE = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_STRING = "tag:yaml.org,2002:str"
_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
# Dates, base 60, octal by a leading zero, `<<` and `=` stay text; `1e-3` is a number.
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (
        "tag:yaml.org,2002:bool",
        re.compile(r"^(?:yes|no|true|false|on|off)$", re.IGNORECASE),
        list("yYnNtTfFoO"),
    ),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,29})$"), list("-+0123456789")),
    _FLOAT,
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or this module would take for something other than text."""


for _scalar in _SCALARS:
    _Loader.add_implicit_resolver(*_scalar)
_Dumper.add_implicit_resolver(*_FLOAT)
_Dumper.add_representer(
    str,  # quoted, unprintable characters are escaped; plain, a line break would be folded away
    lambda dumper, text: dumper.represent_scalar(
        _STRING, text, style=None if text.isprintable() else '"'
    ),
)


def load_yaml(text: str, where: str, error: type[TutelageError] = RecipeError) -> Any:
    """Return the plain data in `text`; raises `error` naming `where` and the line."""
    try:
        _scan(text, where, error)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, where, error)
        return loader.construct_document(node)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = getattr(problem, "problem", None) or "not YAML"
        raise error(f"{where}{line}: {what}; write plain YAML") from None


def dump_yaml(data: Any) -> str:
    """Write plain data so that `load_yaml` reads the same back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def check_plain(data: Any) -> Any:
    """Return `data` as it is; raises `ValueError` for NaN, infinity and what is no plain data."""
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{data} is not a finite number")
    if data is not None and not isinstance(data, (str, int, float, dict, list, tuple)):
        raise ValueError(f"{data} is no text, number, list or mapping")
    for key, part in data.items() if isinstance(data, dict) else ():
        if not isinstance(key, str):
            raise ValueError(f"the key {key} is no word")
        check_plain(part)
    for part in data if isinstance(data, (list, tuple)) else ():
        check_plain(part)
    return data


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line on which the value at `path` (keys and positions) stands, or its parent."""
    node: Any = yaml.compose(text, Loader=_Loader)
    line: int | None = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _scan(text: str, where: str, error: type[TutelageError]) -> None:
    """Refuse aliases, tags and deep nesting before anything is built of them."""
    depth = 0
    for token in yaml.scan(text, Loader=_Loader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.AliasToken):
            raise error(f"{where}:{line}: YAML aliases (*name) are not read; write the values out")
        if isinstance(token, yaml.TagToken):
            raise error(f"{where}:{line}: YAML tags (!name) are not read; write plain values")
        depth += isinstance(token, _OPEN) - isinstance(token, _CLOSE)
        if depth > _DEEPEST:
            raise error(f"{where}:{line}: nested too deeply; write plain YAML")


def _check(node: yaml.Node, where: str, error: type[TutelageError]) -> None:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode) and _UNPRINTABLE.search(node.value):
        raise error(f"{where}:{line}: {node.value!r} has characters that cannot be printed")
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check(value, where, error)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != _STRING:
                shown = f" '{key.value}'" if isinstance(key, yaml.ScalarNode) else ""
                raise error(f"{where}:{line}: the key{shown} is no word; put it in quotes")
            if key.value in seen:
                raise error(f"{where}:{line}: the key '{key.value}' stands twice; keep one")
            seen.add(key.value)
            _check(key, where, error)
            _check(value, where, error)
