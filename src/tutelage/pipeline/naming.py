"""Students named in a few words, for tables."""

from __future__ import annotations

from tutelage.students.spec import StudentSpec


def name_spec(spec: StudentSpec) -> str:
    """Name a student in a few words."""
    knobs = spec.to_json()
    if "widths" in knobs:
        widths, depths = "-".join(map(str, knobs["widths"])), knobs["depths"]
        deep = f"x{depths[0]}" if len(set(depths)) == 1 else "x" + "-".join(map(str, depths))
        small = f", shrink {knobs['shrink']}" if "shrink" in knobs else ""
        return f"{knobs['block']} {widths} {deep}{small}"
    if spec.family == "graph":
        widths = [n["out"] for n in knobs["nodes"] if "out" in n]
        said = f"widths {min(widths)} to {max(widths)}, {sum(widths)} in all"
        return f"graph of {len(widths)} layers, {said}"
    sizes = ("hidden", "embedding", "layers", "blocks", "window")
    said = ", ".join(f"{k} {knobs[k]}" for k in sizes if knobs.get(k))
    return f"{spec.family} {said}"
