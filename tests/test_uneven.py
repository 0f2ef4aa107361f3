"""Slices of a width a stage: scores of narrowing, exact costs, resuming, a whole run."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from tutelage.devices import load_device
from tutelage.export.artifact import ArtifactMeta
from tutelage.pipeline import narrowing
from tutelage.pipeline.slicing import of_all_spaces
from tutelage.plan import SPACES
from tutelage.plan.candidate import weigh
from tutelage.plan.costs import Costing
from tutelage.plan.scores import Scores
from tutelage.plan.sliced import depths
from tutelage.plan.uneven import uneven_slices
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slices.channels import moved
from tutelage.students.slices.narrowing import Narrowed, replace_one, tried_widths
from tutelage.students.spec import StudentSpec, sliced_from
from tutelage.teach.torch_teacher import TorchTeacher

SPEC = ConvNetSpec(image=(1, 12, 12), classes=3, widths=(8, 10), depths=(2, 2))
WHOLE = StudentSpec(family="convnet", knobs=SPEC)
META = ArtifactMeta(
    task="images", classes=("a", "b", "c"), shape=(1, 12, 12), version="0", mean=(0.5,),
    std=(0.5,), target=None,
)  # fmt: skip


def costing(**limits: float) -> Costing:
    asked: Any = [Limit(metric=name, value=value) for name, value in limits.items()]  # pyright: ignore
    return Costing(
        device=load_device("nucleo-l4r5"), limits=tuple(asked), precision="float32", meta=META
    )


def convnet(spec=SPEC, shape=(1, 12, 12)):
    torch.manual_seed(0)
    network = (ConvNet if isinstance(spec, ConvNetSpec) else ConvNet1d)(spec).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, *shape))
    return network.eval()


def images(count: int = 24) -> torch.Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def at(spec: StudentSpec, widths: tuple[int, ...]) -> StudentSpec:
    return StudentSpec(
        family=spec.family, knobs=dataclasses.replace(spec.knobs, widths=widths)
    )  # fmt: skip


def test_a_score_is_of_one_stage_narrowed_alone() -> None:
    teacher, judged = convnet(), images(40)
    found = replace_one(teacher, WHOLE, images(), judged)
    assert found.widths == tried_widths(WHOLE) == ((2, 4, 6, 8), (2, 4, 6, 8, 10))
    assert found.moved[0][-1] == found.moved[1][-1] == 0  # all widths: the teacher itself
    with torch.no_grad():
        own = teacher(judged)
        for widths, score in (((4, 10), found.moved[0][1]), ((8, 6), found.moved[1][2])):
            small = sliced_from(teacher, at(WHOLE, widths), images())
            assert score == pytest.approx(moved(small(judged), own), rel=1e-5)
    assert Narrowed.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_at_another_depth_scores_are_of_the_slices_of_that_depth() -> None:
    spec = ConvNet1dSpec(
        channels=1, length=40, classes=1, widths=(4, 6), depths=(2, 1), block="separable"
    )
    teacher = convnet(spec, (1, 40))
    series = torch.randn(20, 1, 40, generator=torch.Generator().manual_seed(2))
    shallow = depths(StudentSpec(family="convnet1d", knobs=spec))[1]
    found = replace_one(teacher, shallow, series, series)
    own = teacher(series).detach()
    for widths, score in (((4, 6), found.moved[0][-1]), ((2, 6), found.moved[0][0])):
        with torch.no_grad():
            said = sliced_from(teacher, at(shallow, widths), series)(series)
        assert score == pytest.approx(float((said - own).square().mean()), rel=1e-4)  # one value
    assert found.moved[0][-1] == found.moved[1][-1] > 0  # a block is missing


FLAT = depths(WHOLE)[1]  # one block a stage
SCORES = Narrowed(
    widths=((2, 4, 6, 8), (2, 4, 8, 10)), moved=((0.9, 0.4, 0.2, 0.0), (0.3, 0.2, 0.05, 0.0))
)
COSTS = {"storage_bytes": 8_000.0, "ram_bytes": 15_000.0}
MOST = 1_800  # parameters


def summed(widths: tuple[int, ...]) -> float:
    import numpy as np

    pairs = zip(widths, SCORES.widths, SCORES.moved, strict=True)
    return sum(float(np.interp(w, known, scores)) for w, known, scores in pairs)


@pytest.mark.parametrize("limits", [("storage_bytes",), ("ram_bytes",), tuple(COSTS)])
def test_slices_by_scores_are_the_best_that_exactly_fit(limits: tuple[str, ...]) -> None:
    asked = costing(**{name: COSTS[name] for name in limits})
    fit = []
    for widths in itertools.product(range(2, 9, 2), range(2, 11, 2)):
        candidate = weigh(at(FLAT, widths), asked)
        if not candidate.missed and candidate.parameters <= MOST:
            fit.append(widths)
    even = weigh(at(FLAT, (2, 2)), asked)
    found = list(itertools.islice(uneven_slices(FLAT, SCORES, asked, MOST, even), 2))
    best = min(fit, key=summed)
    assert summed(found[0].spec.knobs.widths) == pytest.approx(summed(best))
    assert 2 < len(fit) < 20 and all(c.by_scores and not c.missed for c in found)
    for candidate in found:
        assert candidate.spec.knobs.widths in fit
        assert candidate.figures == weigh(candidate.spec, asked).figures
    if len(found) == 2:
        one, other = (c.spec.knobs.widths for c in found)
        assert any(b > a for a, b in zip(one, other, strict=True))


def test_no_choice_where_none_fits_and_the_even_slice_is_not_given_twice() -> None:
    even = weigh(at(FLAT, (2, 2)), costing(storage_bytes=100.0))
    assert list(uneven_slices(FLAT, SCORES, costing(storage_bytes=100.0), 10**6, even)) == []
    asked = costing(storage_bytes=8_000.0)
    first = next(uneven_slices(FLAT, SCORES, asked, 10**6, weigh(at(FLAT, (2, 2)), asked)))
    again = list(uneven_slices(FLAT, SCORES, asked, 10**6, first))
    assert again and all(c.spec != first.spec for c in again)


def test_even_slices_stay_and_are_followed_by_those_by_scores() -> None:
    asked = costing(storage_bytes=13_000.0)

    def found(count: int, scores: Any = lambda spec: SCORES):
        slices = SPACES["sliced"](
            asked, whole=WHOLE, most_parameters=10**6, count=count, scores=scores
        )
        return [(c.spec, c.by_scores) for c in slices]

    even = [spec for spec, _ in found(9, None)]
    assert [by for _, by in found(4)] == [False, False, True, True]
    assert [spec for spec, by in found(4) if not by] == even
    assert found(2) == found(4)[:2] and found(1) == [(even[0], False)]
    more = found(6)
    assert more[:4] == found(4) and all(by for _, by in more[4:])
    assert len({str(spec) for spec, _ in more}) == len(more) > 4


def spaces(folder: Path, storage: float):
    teacher = TorchTeacher(convnet(), classes=3, image_shape=(1, 12, 12))
    batch = SimpleNamespace(inputs=images(16))
    train = SimpleNamespace(content="", count=16, batch=lambda index, view: batch)
    with Run(folder, command="test") as run:
        found = of_all_spaces(
            Recipe.parse({**tiny.RECIPE, "student": {"space": "sliced"}}, where="test"),
            costing(storage_bytes=storage),
            SimpleNamespace(shape=(1, 12, 12), knobs={"image": (1, 12, 12)}, train=train),  # pyright: ignore
            SimpleNamespace(teacher=teacher, train=SimpleNamespace(key=teacher.fingerprint)),  # pyright: ignore
            run,
            Silent(),
            compact=tuple,
        )
        return found, [name for name in run.manifest["stages"] if name.startswith("narrowed")]


def test_scores_are_found_once_a_run_and_serve_other_budgets(tmp_path: Path, monkeypatch) -> None:
    scored: list[tuple[int, ...]] = []

    def counted(teacher: Any, spec: StudentSpec, *given: Any, **options: Any) -> Narrowed:
        scored.append(spec.knobs.depths)
        if len(scored) == 2:
            raise KeyboardInterrupt  # killed in the second depth
        return replace_one(teacher, spec, *given, **options)

    monkeypatch.setattr(narrowing, "replace_one", counted)
    with pytest.raises(KeyboardInterrupt):
        spaces(tmp_path, 12_000)
    first, stages = spaces(tmp_path, 12_000)
    assert len(scored) == 3 and scored[0] != scored[1] == scored[2]  # the first is not done again
    assert len(stages) == 2 and [c.by_scores for c in first] == [False, False, True, True]
    second, _ = spaces(tmp_path, 7_000)
    assert len(scored) == 3
    assert any(c.by_scores for c in second)
    assert {str(c.spec) for c in first} != {str(c.spec) for c in second}
    assert all(c.figure("storage_bytes") <= 7_000 and c.weights for c in second)


def test_the_store_remembers_how_widths_were_chosen(tmp_path: Path) -> None:
    asked = costing(storage_bytes=16_000.0)
    candidate = dataclasses.replace(
        weigh(at(WHOLE, (4, 6)), asked), by_scores=True, weights={"a": torch.ones(1)}
    )
    figure = Measurement(name="accuracy", value=0.5, unit="1", kind="measured")
    Scores.open(tmp_path / "scores.json", "lesson").add(candidate, "float32", figure, 10)
    ((row, _),) = Scores.open(tmp_path / "scores.json", "lesson").scored(asked)
    assert row.by_scores and row.space == "sliced"
