"""The sliced space: its candidates fit, bring weights along, and compete with compact ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_inheriting import norms_are_of
from torch import nn

from tutelage.devices import load_device
from tutelage.errors import InfeasibleError, RecipeError, StudentError
from tutelage.export.artifact import ArtifactMeta
from tutelage.files import read_tensors
from tutelage.pipeline.slicing import of_all_spaces
from tutelage.plan import SPACES, Candidate
from tutelage.plan.costs import Costing
from tutelage.plan.sliced import widest_slice
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement, Shortfall, Verdict, WouldDo
from tutelage.report.candidates import candidates as table
from tutelage.run import Run
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.slices.convnet import shallower
from tutelage.students.spec import StudentSpec
from tutelage.teach.torch_teacher import Reordered, TorchTeacher

SPEC = ConvNetSpec(image=(1, 12, 12), classes=3, widths=(8, 16), depths=(2, 2))
META = ArtifactMeta(
    task="images",
    classes=("a", "b", "c"),
    shape=(1, 12, 12),
    version="0",
    mean=(0.5,),
    std=(0.5,),
    target=None,
)


def costing(storage: float) -> Costing:
    limits = (Limit(metric="storage_bytes", value=storage),)
    return Costing(device=load_device("nucleo-l4r5"), limits=limits, precision="float32", meta=META)


def slices(storage: float, count: int = 4, parameters: int = 1_000_000):
    whole = StudentSpec(family="convnet", knobs=SPEC)
    return SPACES["sliced"](
        costing(storage), whole=whole, most_parameters=parameters, count=count
    )  # fmt: skip


def test_slices_fit_and_are_as_wide_as_fits() -> None:
    found = slices(20_000)
    assert sorted(c.spec.knobs.depths for c in found) == [(1, 1), (2, 2)]
    for candidate in found:
        assert not candidate.missed and candidate.figure("storage_bytes") <= 20_000
        thin, wide = candidate.spec.knobs.widths
        assert thin < 8 or wide < 16
        assert abs(wide - 2 * thin) <= 2  # the teacher's proportions, to even numbers
    assert found == tuple(sorted(found, key=lambda c: -c.figure("macs")))


def test_a_wide_budget_takes_the_whole_teacher_and_few_parameters_bind_too() -> None:
    whole = slices(1_000_000, count=1)
    assert [c.spec.knobs for c in whole] == [SPEC]
    assert all(c.parameters <= 1_500 for c in slices(1_000_000, parameters=1_500))


def test_nothing_fits_is_said() -> None:
    whole = StudentSpec(family="convnet", knobs=SPEC)
    best, narrowest = widest_slice(whole, costing(500), 1_000_000)
    assert best is None and narrowest.spec.knobs.widths == (2, 2)
    with pytest.raises(InfeasibleError, match="Choose student.space: compact"):
        slices(500)


def test_depths_go_down_to_one_block_a_stage() -> None:
    deep = ConvNetSpec(image=(1, 12, 12), classes=3, widths=(8, 16), depths=(1, 3))
    assert [spec.depths for spec in shallower(deep)] == [(1, 3), (1, 2), (1, 1)]


def test_a_slice_starts_from_the_teacher_and_ships(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz")
    recipe = tiny.write_recipe(
        tmp_path,
        {
            "student": {"space": "sliced", "candidates": 4},
            "teacher": {"fit": True, "epochs": 12, "width": 8},
            "budget": {"storage": "12 kB"},
            "distill": {"epochs": 1, "batch": 32, "rate": 1e-6},  # next to no lesson
            "export": {"precision": "float32"},
        },
    )
    run = tmp_path / "run"
    said = tiny.cli("run", recipe, "--run", run, "--json")
    assert said.status == 0
    assert (
        "student: starts with the weights of the teacher, of the channels and blocks that stay"
        in said.err
    )
    plan = json.loads((run / "plan.json").read_text())
    assert [c["space"] for c in plan["candidates"]] == [plan["space"]] * 4 == ["sliced"] * 4
    assert [c["by_scores"] for c in plan["candidates"]] == [False, False, True, True]
    assert all(c["trial"] is not None for c in plan["candidates"])
    page = table(plan)
    assert page
    chosen = ["widths chosen by scores" in row.detail for row in page.rows]
    assert chosen == [False, False, True, True]
    rows = tiny.cli("plan", recipe, "--run", run, "--json").answer["candidates"]
    assert {row["name"].partition(", ")[2] for row in rows} == {"sliced", "sliced by scores"}
    starts = [read_tensors(path)[0] for path in (run / "starts").iterdir()]
    whole, student = (
        read_tensors(run / file)[0] for file in ("teacher/model.safetensors", STUDENT)
    )
    shapes = {name: tensor.shape for name, tensor in student.items()}
    (start,) = (s for s in starts if {name: tensor.shape for name, tensor in s.items()} == shapes)
    assert norms_are_of(start, whole)
    student, sliced = (t["stem.0.weight"] for t in (student, start))
    assert torch.allclose(student, sliced, atol=1e-3)


def test_a_slice_for_a_tighter_budget_starts_from_the_one_taught_before(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz")

    def begun(storage: str) -> dict[str, Any]:
        changes = {
            "student": {"space": "sliced", "candidates": 1},
            "teacher": {"fit": True, "epochs": 12, "width": 8},
            "budget": {"storage": storage},
            "distill": {"epochs": 8, "batch": 32},
            "export": {"precision": "float32"},
        }
        recipe = tiny.write_recipe(tmp_path, changes)
        assert tiny.cli("run", recipe, "--run", tmp_path / "run").status == 0
        return json.loads((tmp_path / "run/run.json").read_text())["stages"]["distill"]["result"]

    first, second = begun("20 kB"), begun("8 kB")
    assert "weights of the teacher" in first["start"][0] and first["epochs"] == 8
    assert "which was taught before" in second["start"][0] and second["epochs"] in (2, 4)
    assert second["spec"]["depths"] == first["spec"]["depths"]
    assert second["spec"]["widths"] < first["spec"]["widths"]


STUDENT = "student/model.safetensors"
COMPACT = [SimpleNamespace(spec=n, weights=None) for n in range(4)]


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def candidates(
    folder: Path, student: dict[str, Any], module: nn.Module, order: Any = None,
    storage: float = 20_000, compact: Any = lambda: tuple(COMPACT),
):  # fmt: skip
    """Return the candidates of all spaces, and what was said."""
    found = TorchTeacher(module, classes=3, image_shape=(1, 12, 12))
    teacher = found if order is None else Reordered(found, order)
    torch.manual_seed(1)
    batch = SimpleNamespace(inputs=torch.randn(16, 1, 12, 12))
    train = SimpleNamespace(content="", count=16, batch=lambda index, view: batch)
    progress = Lines()
    with Run(folder, command="test") as run:
        chosen = of_all_spaces(
            Recipe.parse({**tiny.RECIPE, "student": student}, where="test"),
            costing(storage),
            SimpleNamespace(shape=(1, 12, 12), knobs={"image": (1, 12, 12)}, train=train),
            SimpleNamespace(teacher=teacher, train=SimpleNamespace(key=teacher.fingerprint)),
            run,
            progress,
            compact=compact,
        )
    return chosen, progress.lines


def convnet() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(SPEC).eval()


def test_both_spaces_compete_and_a_run_finds_slices_once(tmp_path: Path) -> None:
    found, said = candidates(tmp_path, {"space": "auto"}, convnet())
    assert [c.weights is not None for c in found] == [False, False, True, True]
    assert "slicing the teacher" in said[0] and len(said) == 3
    assert all("student: slicing plain" in line for line in said[1:])
    again, said = candidates(tmp_path, {"space": "auto"}, convnet())
    assert said == [] and [c.spec for c in again] == [c.spec for c in found]
    for one, other in zip(found[2:], again[2:], strict=True):
        one.spec.build().load_state_dict(one.weights)  # strict: the spec alone rebuilds it
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_where_no_compact_student_fits_slices_may_and_a_refusal_names_the_nearest(
    tmp_path: Path,
) -> None:
    figure = Measurement(name="storage_bytes", value=9_000.0, unit="B", kind="predicted")

    def none_fits() -> tuple[Candidate, ...]:
        limit = Limit(metric="storage_bytes", value=2_000.0)
        found = Shortfall(
            parameters=9, verdicts=(Verdict(limit=limit, figure=figure),),
            would_do=WouldDo(device=None),
        )  # fmt: skip
        raise InfeasibleError("no compact one", found)

    found, said = candidates(tmp_path / "a", {}, convnet(), compact=none_fits)
    assert found and all(c.weights is not None for c in found)
    assert "slices of the teacher alone" in said[-1]
    with pytest.raises(InfeasibleError, match="the smallest student needs 1.75 kB"):
        candidates(tmp_path / "b", {}, convnet(), storage=500, compact=none_fits)
    with pytest.raises(InfeasibleError, match="no compact one"):
        candidates(tmp_path / "c", {"space": "compact"}, convnet(), compact=none_fits)


def test_a_slice_has_its_classes_in_the_datas_order(tmp_path: Path) -> None:
    plain, _ = candidates(tmp_path / "a", {"space": "sliced"}, convnet())
    turned, _ = candidates(tmp_path / "b", {"space": "sliced"}, convnet(), order=(2, 0, 1))
    for one, other in zip(plain, turned, strict=True):
        assert torch.equal(one.weights["head.bias"][[2, 0, 1]], other.weights["head.bias"])


@pytest.mark.parametrize(
    ("student", "module", "why"),
    [
        (
            {"space": "auto"},
            nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten()),
            "this is another network",
        ),
        ({"space": "auto", "candidates": 1}, convnet(), "student.candidates is 1"),
    ],
)
def test_where_nothing_can_be_sliced_the_compact_space_stands_alone(
    tmp_path: Path, student: dict[str, Any], module: nn.Module, why: str
) -> None:
    found, said = candidates(tmp_path, student, module)
    assert list(found) == COMPACT[: student.get("candidates", 4)]
    assert len(said) == 1 and "the compact space alone" in said[0] and why in said[0]


def test_slices_alone_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="that can shrink. Choose student.space: compact"):
        candidates(tmp_path, {"space": "sliced"}, nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten()))


def test_the_compact_space_asks_nothing_of_the_teacher(tmp_path: Path) -> None:
    assert candidates(tmp_path, {"space": "compact"}, convnet()) == (tuple(COMPACT), [])
    with pytest.raises(RecipeError, match="'space' is for students that are searched"):
        candidates(tmp_path, {"space": "sliced", "source": "a.py:b"}, convnet())


def test_plan_refuses_slices_where_run_would(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz", count=60)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, 3))\n"
    )
    teacher = {"source": str(tmp_path / "net.py:build")}
    for space, status in (("sliced", 2), ("auto", 0)):
        recipe = tiny.write_recipe(
            tmp_path,
            {"teacher": teacher, "student": {"space": space}, "budget": {"storage": "6 kB"}},
        )
        said = tiny.cli("plan", recipe, "--run", tmp_path / "run", "--trust-code")
        assert said.status == status, said.err
        assert ("this is another network" in said.err) is (status == 2)
