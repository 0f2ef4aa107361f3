"""Altair charts to lean, static SVG: themed by the page's style sheet, with hover texts."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

_SPACE = "http://www.w3.org/2000/svg"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_DROP = {"class", "role", "pointer-events", "font-family", "aria-hidden"}


def render(spec: dict[str, Any]) -> str:
    """Turn a Vega-Lite spec into an `<svg>` element; its size is left to the page.

    The page recolours by attribute (`[fill="#0b66a8"]`), so the charts follow light and dark.
    """
    import vl_convert

    # control characters, which a name may hold, are not XML
    drawn = _CONTROL.sub("\ufffd", vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
    tree = ElementTree.fromstring(drawn)
    for group in tree.iter(f"{{{_SPACE}}}g"):
        if "role-mark" in group.get("class", ""):
            for mark in group:
                _add_title(mark)
    _remove_empty(tree)
    for element in tree.iter():
        for name in list(element.attrib):
            plain = name == "opacity" and element.get(name) == "1"
            if plain or name in _DROP or name.startswith("aria-"):
                del element.attrib[name]
    for name in ("width", "height", "version"):
        tree.attrib.pop(name, None)
    # presentation only: the figure around it carries the name and the description
    tree.set("aria-hidden", "true")
    ElementTree.register_namespace("", _SPACE)
    return ElementTree.tostring(tree, encoding="unicode")


def _add_title(mark: ElementTree.Element) -> None:
    text = mark.get("aria-label")
    if text:
        title = ElementTree.SubElement(mark, f"{{{_SPACE}}}title")
        title.text = text


def _remove_empty(parent: ElementTree.Element) -> None:
    for child in list(parent):
        _remove_empty(child)
        path = child.tag == f"{{{_SPACE}}}path"
        group = child.tag == f"{{{_SPACE}}}g"
        if (path and child.get("d", "") in ("", "M0,0h0v0h0Z")) or (group and len(child) == 0):
            parent.remove(child)
