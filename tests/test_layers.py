"""Imports go down only, heavy libraries load late, nothing is pickled, files stay short."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tutelage

ROOT = Path(tutelage.__file__).parent
TOP = 10  # `tutelage/__init__.py` only re-exports, so it stands above everything
FLOORS = {
    "cli": 9, "api": 8, "pipeline": 7, "plan": 6, "train": 5,
    "teach": 4, "measure": 4, "audit": 4, "report": 4,
    "losses": 3, "pairing": 3, "tasks": 3, "students": 3, "export": 3, "devices": 3, "run": 3,
    "recipe": 2, "records": 2, "types": 2, "registry": 2, "units": 2, "progress": 2, "files": 2,
    "plain_yaml": 2, "recipe_errors": 2, "recipe_data": 2, "recipe_budget": 2,
    "recipe_language": 2, "recipe_student": 2, "passes": 2, "least_squares": 2, "errors": 1,
}  # fmt: skip
ANYONE_MAY = {"__version__"}  # the one name that may be taken from the package itself
LARGEST = 400
PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def modules(root: Path) -> dict[str, ast.Module]:
    """Return every file of the package at `root` as dotted name (below it) and syntax tree."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def imports(name: str, tree: ast.AST, known: set[str], packages: set[str]) -> Iterator[str]:
    """Yield what one file imports of the package: module-level, in functions, for types alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = name.split(".") if name else []
                up = node.level - (1 if name in packages else 0)
                base = ".".join(["tutelage", *inside[: len(inside) - up], *filter(None, [base])])
            wanted = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, member in wanted:
            if base != "tutelage" and not base.startswith("tutelage."):
                continue
            below = base.removeprefix("tutelage").removeprefix(".")
            deeper = f"{below}.{member}".strip(".")
            if deeper in known and member:
                yield deeper
            elif below or member not in ANYONE_MAY:
                yield below


def graph(root: Path) -> dict[str, set[str]]:
    trees = modules(root)
    packages = {n for n in trees if (root.joinpath(*n.split(".")) / "__init__.py").is_file()}
    packages.add("")
    return {n: set(imports(n, t, set(trees), packages)) - {n} for n, t in trees.items()}


def floor(name: str) -> int:
    return TOP if name == "" else FLOORS[name.split(".")[0]]


def violations(root: Path) -> list[str]:
    """Return every upward arrow and every circle, in words."""
    edges = graph(root)
    found = [f"{a} has no floor" for a in edges if a and a.split(".")[0] not in FLOORS]
    if found:
        return found
    for a, targets in edges.items():
        found += [f"{a} imports {b}, a floor up" for b in targets if floor(b) > floor(a)]
    return found + [f"circle: {' > '.join(c)}" for c in circles(edges)]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_go_down_and_never_in_a_circle():
    assert violations(ROOT) == []


def test_every_floor_that_is_named_exists():
    present = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/*.py")}
    assert set(FLOORS) <= present


BAD = {
    "up": ({"errors.py": "from tutelage.recipe import Recipe", "recipe.py": ""}, "a floor up"),
    "up, from the package": (
        {"train/__init__.py": "", "train/loop.py": "from tutelage import api", "api.py": ""},
        "a floor up",
    ),
    "up, a public name": ({"run.py": "from tutelage import fit"}, "a floor up"),
    "up, for types only": (
        {
            "records.py": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from tutelage.api import fit",
            "api.py": "",
        },
        "a floor up",
    ),
    "up, inside a function": (
        {"units.py": "def f():\n    import tutelage.cli", "cli/__init__.py": ""},
        "a floor up",
    ),
    "up, relative": (
        {"plan/__init__.py": "", "plan/costs.py": "from ..api import fit", "api.py": ""},
        "a floor up",
    ),
    "circle of two": (
        {"units.py": "import tutelage.records", "records.py": "from tutelage import units"},
        "circle",
    ),
    "circle through a package": (
        {"losses/__init__.py": "from .a import x", "losses/a.py": "from tutelage.losses import y"},
        "circle",
    ),
    "circle of three": (
        {
            "tasks/__init__.py": "",
            "tasks/a.py": "from tutelage.tasks.b import x",
            "tasks/b.py": "from tutelage.tasks import c",
            "tasks/c.py": "def f():\n    from .a import x",
        },
        "circle",
    ),
    "no floor": ({"helpers.py": ""}, "has no floor"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_checker_can_fail(case, tmp_path):
    files, what = BAD[case]
    found = violations(write_tree(tmp_path, {"__init__.py": "", **files}))
    assert found and what in found[0]


def test_the_checker_lets_good_trees_pass(tmp_path):
    files = {
        "__init__.py": "__version__ = '1'\nfrom tutelage.api import fit",
        "api.py": "from tutelage import __version__\nfrom tutelage.tasks import a",
        "tasks/__init__.py": "",
        "tasks/a.py": "from . import b\nfrom tutelage.errors import E",
        "tasks/b.py": "import os, torch",
        "errors.py": "",
    }
    assert violations(write_tree(tmp_path, files)) == []


@functools.cache
def at_import() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return what each file imports when it is loaded: of the package, and from outside."""
    trees, edges = modules(ROOT), {}
    known = set(trees)
    packages = {n for n in known if any(m.startswith(f"{n}.") for m in known)} | {""}
    outside: dict[str, set[str]] = {}
    for name, tree in trees.items():
        top = ast.Module(body=[n for n in tree.body if not _is_for_types(n)], type_ignores=[])
        for node in ast.walk(top):  # what only runs when a function is called loads nothing now
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                node.body = []
        edges[name] = set(imports(name, top, known, packages)) - {""}
        outside[name] = {
            (alias.name if isinstance(n, ast.Import) else n.module or "").split(".")[0]
            for n in ast.walk(top)
            if isinstance(n, (ast.Import, ast.ImportFrom))
            for alias in n.names
        }
    return edges, outside


def heavy_at_import(start: str) -> set[str]:
    """Return the modules outside the package that importing `start` pulls in, by the source."""
    edges, outside = at_import()
    todo, seen = [start], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
        todo += [*edges.get(name, ()), *parents]
    return set().union(*(outside.get(name, set()) for name in seen))


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


LIGHT = sorted(
    n
    for n in modules(ROOT)
    if n.split(".")[0] in {"devices", "report", "records", "recipe", "files", "run", "units"}
)


@pytest.mark.parametrize("name", LIGHT)
def test_no_torch_can_be_reached_from_the_light_floors(name):
    assert "torch" not in heavy_at_import(name)


def test_the_torch_search_can_fail():
    assert "torch" in heavy_at_import("students.families.convnet")
    assert "torch" in heavy_at_import("pipeline")


@pytest.mark.parametrize("part", ["devices", "report", "records.py"])
def test_no_torch_is_named_at_all(part):
    files = [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torch" for n in names), path


def test_the_light_floors_load_no_torch_when_imported():
    names = ", ".join(f"tutelage.{name}" for name in LIGHT)
    assert run_python(f"import sys, {names}; print('torch' in sys.modules)") == "False\n"


def unsafe(tree: ast.AST) -> list[str]:
    """Return the uses of pickle in a file, open or hidden in a library's reader."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [n for n in names if n.split(".")[0] in PICKLERS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(called)
        if called == "torch.save" or called.endswith((".read_pickle", ".to_pickle")):
            found.append(called)
        if given.get("allow_pickle", "False") != "False":
            found.append(called)
    return found


def test_nothing_is_pickled():
    assert {n: unsafe(t) for n, t in modules(ROOT).items() if unsafe(t)} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import joblib.numpy_pickle",
        "torch.load(f)", "torch.load(f, weights_only=False)", "torch.save(x, f)",
        "np.load(f, allow_pickle=True)", "pd.read_pickle(f)",
    ],
)  # fmt: skip
def test_the_search_for_pickle_can_fail(code):
    assert unsafe(ast.parse(code))


def test_no_file_is_over_400_lines():
    sources = [p for p in ROOT.rglob("*") if p.suffix in {".py", ".j2", ".css", ".js", ".yaml"}]
    assert len(sources) > 50
    long = {
        str(p.relative_to(ROOT)): n
        for p in sources
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > LARGEST
    }
    assert long == {}


def test_import_is_light_and_offers_at_most_twelve_names():
    code = (
        "import sys, tutelage; heavy = [m for m in ('torch', 'onnx', 'onnxruntime', 'pydantic', "
        "'numpy', 'typer', 'yaml', 'scipy', 'tutelage.api') if m in sys.modules]; print(heavy)"
    )
    assert run_python(code) == "[]\n"
    assert len(tutelage.__all__) <= 12


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_the_command_line_answers_without_torch(arguments):
    code = (
        f"import sys; sys.argv = ['tutelage', *{arguments!r}]\n"
        "from tutelage.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    status = leave.code or 0\n"
        "print('', status, 'torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    assert run_python(code).splitlines()[-1] == " 0 False False"


def test_the_version_is_the_packages():
    code = "import sys; sys.argv = ['tutelage', '--version']\nfrom tutelage.cli import main\nmain()"
    assert run_python(code).strip() == f"tutelage {tutelage.__version__}"
