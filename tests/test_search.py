"""The search for a student: rungs, drawn structures, stored scores, budgets that are tightened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from tutelage.devices import load_device
from tutelage.errors import CorruptFileError, InfeasibleError
from tutelage.pipeline.trials import Search
from tutelage.plan import compact
from tutelage.plan.candidate import weigh
from tutelage.plan.costs import Costing
from tutelage.plan.halving import rungs
from tutelage.plan.scores import Scores
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.students.spec import FAMILIES, StudentSpec

META = {"widths": [4, 8], "depths": [1, 1]}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("students", range(1, 33))
def test_halving_ends_with_few_and_costs_little_more_than_two_distillations(
    students: int, begun: bool
) -> None:
    ladder = rungs(students, 900, begun=begun)
    assert ladder[0].students == students
    assert ladder[-1].students == min(students, 2 if begun else 4)
    assert ladder[-1].steps == 900
    assert [r.steps for r in ladder] == sorted(r.steps for r in ladder)
    assert [r.students for r in ladder] == sorted((r.students for r in ladder), reverse=True)
    assert len(ladder) == 1 or ladder[0].steps <= 900 / 4
    assert len(ladder) > 1 or students == 1 or (students <= 4 and not begun)
    assert sum(r.students * r.steps for r in ladder) <= (8 if begun else 16) * 900


def test_short_trials_make_one_rung_and_no_student_none() -> None:
    assert [r.students for r in rungs(4, 59, begun=True)] == [4], "a first would be no shorter"
    with pytest.raises(ValueError, match="0 students"):
        rungs(0, 900)


@pytest.mark.parametrize("family", [n for n in FAMILIES if FAMILIES[n].drawn is not None])
def test_drawn_structures_follow_the_seed_and_can_be_built(family: str) -> None:
    given = {
        "image": (1, 28, 28), "classes": 3, "channels": 2, "length": 64, "vocabulary": 20, "pad": 0,
    }  # fmt: skip
    first = compact.drawn_structures([family], 12, seed=3)
    assert first == compact.drawn_structures([family], 12, seed=3)
    assert first != compact.drawn_structures([family], 12, seed=4)
    assert len({str(structure) for _, structure in first}) > 3
    sized = FAMILIES[family].sized
    assert sized is not None
    for name, structure in first:
        narrow, wide = (
            sum(
                p.numel()
                for p in StudentSpec(family=name, knobs=sized(structure, width, given))
                .build()
                .parameters()
            )
            for width in (8, 32)
        )
        assert narrow < wide


def _costing(limit: float, device: str = "nucleo-l4r5") -> Costing:
    from tutelage.export.artifact import ArtifactMeta

    meta = ArtifactMeta(
        task="vision", classes=("a", "b", "c"), shape=(1, 8, 8), mean=(0.5,), std=(1.0,),
        version="0",
    )  # fmt: skip
    limits = (Limit(metric="storage_bytes", value=limit),)
    return Costing(device=load_device(device), limits=limits, precision="int8", meta=meta)


def _figure(value: float) -> Measurement:
    return Measurement(
        name="accuracy_validation", value=value, unit="1", kind="measured", where="a test"
    )


def _spec(*widths: int) -> StudentSpec:
    return StudentSpec.from_json(
        {
            "family": "convnet", "image": [1, 8, 8], "classes": 3,
            "widths": list(widths), "depths": [1] * len(widths),
        }
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Scores:
    scores = Scores.open(tmp_path / "scores.json", "lesson")
    for widths, value in (((4, 8), 0.7), ((8, 16), 0.9), ((6, 12), 0.8)):
        scores.add(weigh(_spec(*widths), _costing(1e6)), "int8", _figure(value), 240)
    return scores


def test_stored_students_answer_another_budget_and_device_as_if_costed_anew(store: Scores) -> None:
    again = Scores.open(store.path, "lesson")
    largest = weigh(_spec(8, 16), _costing(1e6)).figure("storage_bytes")
    for device in ("nucleo-l4r5", "raspberry-pi-4"):
        asked = _costing(largest - 1, device)
        found = [candidate for _, candidate in again.scored(asked)]
        assert [c.spec for c in found] == [_spec(6, 12), _spec(4, 8), _spec(8, 16)]
        assert [bool(c.missed) for c in found] == [False, False, True]
        for candidate in found:
            anew = {f.name: f.value for f in weigh(candidate.spec, asked).figures}
            assert {f.name: f.value for f in candidate.figures} == anew


def test_scores_hold_for_one_lesson_alone(store: Scores) -> None:
    assert not Scores.open(store.path, "another").rows


def test_a_longer_trial_stands_and_a_whole_distillation_counts_most(store: Scores) -> None:
    candidate = weigh(_spec(4, 8), _costing(1e6))
    store.add(candidate, "int8", _figure(0.1), 80)
    last = Scores.open(store.path, "lesson").scored(_costing(1e6))[-1][0]
    assert (last.spec, last.figure) == (_spec(4, 8), _figure(0.7))
    store.note_taught(_spec(4, 8), "int8", "compact", _figure(0.95))
    store.add(candidate, "int8", _figure(0.75), 480)
    best = Scores.open(store.path, "lesson").scored(_costing(1e6))[0][0]
    assert (best.spec, best.figure) == (_spec(4, 8), _figure(0.95))
    assert not store.scored(_costing(1e6), steps=1_000)


def test_a_slice_of_the_teacher_is_another_student_than_one_from_fresh_weights(
    store: Scores,
) -> None:
    slice_ = replace(weigh(_spec(4, 8), _costing(1e6)), weights={})
    store.add(slice_, "int8", _figure(0.85), 240)
    found = {(s.space, s.figure) for s, _ in store.scored(_costing(1e6)) if s.spec == _spec(4, 8)}
    assert found == {("compact", _figure(0.7)), ("sliced", _figure(0.85))}


def test_what_only_a_clock_can_judge_is_not_answered_from_the_store(store: Scores) -> None:
    limits = (Limit(metric="latency_s", value=1.0),)
    assert not store.scored(replace(_costing(1e6, "host"), limits=limits))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "lesson": "lesson", "rows": [{}]}'])
def test_a_damaged_store_is_named(store: Scores, text: str) -> None:
    store.path.write_text(text)
    with pytest.raises(CorruptFileError, match="scores.json"):
        Scores.open(store.path, "lesson")


def _job(folder: Path, changes: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    tiny.write_data(folder / "data.npz")
    return tiny.write_recipe(folder, changes)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run that searched among twelve students."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact, "_WIDEST", 12)
        recipe = _job(
            folder,
            {"student": {"candidates": 9, "space": "compact"}, "budget": {"storage": "7 kB"}},
        )
        assert tiny.cli("run", recipe, "--run", folder / "run").status == 0
    return folder


def test_a_wide_search_tries_all_briefly_and_the_best_for_longer(searched: Path) -> None:
    plan = json.loads((searched / "run/plan.json").read_text())
    rows = plan["candidates"]
    steps = [row["steps"] for row in rows]
    assert len(rows) > 5, "structures were drawn beside the family's own"
    assert len(set(steps)) == 2
    assert steps.count(max(steps)) == 4
    dropped = [r["trial"]["value"] for r in rows if r["steps"] == min(steps)]
    assert len(dropped) == len(rows) - 4
    chosen = next(r for r in rows if r["chosen"])
    last = [r["trial"]["value"] for r in rows if r["steps"] == max(steps)]
    assert chosen["trial"]["value"] == max(last)
    assert chosen["steps"] == max(steps)


def test_a_new_budget_is_answered_without_teacher_training_or_export(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.pipeline import feasible
    from tutelage.plan import costs

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be exported or loaded")

    monkeypatch.setattr(costs, "as_shipped", refuse)
    monkeypatch.setattr(feasible, "teacher_spec", refuse)
    shutil.copytree(searched / "run", tmp_path / "run")
    recipe = _job(
        tmp_path,
        {"student": {"candidates": 9, "space": "compact"}, "budget": {"storage": "6.9 kB"}},
    )
    answer = tiny.cli("plan", recipe, "--run", tmp_path / "run", "--json").answer
    assert answer["status"] == "feasible"
    assert answer["from_scores"]
    assert all(row["trial"]["kind"] == "measured" for row in answer["candidates"])
    fits = [row for row in answer["candidates"] if row["fits"]]
    assert fits
    assert fits[0]["trial"]["value"] == max(row["trial"]["value"] for row in fits)
    said = tiny.cli("plan", recipe, "--run", tmp_path / "run")
    assert "validation" in said.out
    assert "short distillation" in said.out


def test_where_no_stored_student_fits_untried_ones_are_estimated(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "_WIDEST", 6)
    shutil.copytree(searched / "run", tmp_path / "run")
    rows = json.loads((searched / "run/scores.json").read_text())["rows"]
    least = min(row["counted"]["file_bytes"] for row in rows)
    limit = {"storage": f"{least - 1} B"}
    recipe = _job(tmp_path, {"student": {"candidates": 9, "space": "compact"}, "budget": limit})
    answer = tiny.cli("plan", recipe, "--run", tmp_path / "run", "--json").answer
    fresh = [row for row in answer["candidates"] if row["trial"] is None]
    tried = [row for row in answer["candidates"] if row["trial"] is not None]
    assert fresh and len(tried) == len(rows)
    assert all(row["estimate"] is None for row in tried)
    for row in fresh:
        estimate = row["estimate"]
        assert (estimate["kind"], estimate["n"]) == ("estimated", len(rows))
        assert estimate["spread"][0] <= estimate["value"] <= estimate["spread"][1]
    assert "~: not tried; estimated" in tiny.cli("plan", recipe, "--run", tmp_path / "run").out


def test_the_next_budget_lets_students_of_the_last_compete(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "_WIDEST", 6)
    shutil.copytree(searched / "run", tmp_path / "run")
    recipe = _job(tmp_path, {"student": {"candidates": 2}, "budget": {"storage": "6.9 kB"}})
    assert tiny.cli("run", recipe, "--run", tmp_path / "run").status == 0
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert len(plan["candidates"]) > 2
    assert "earlier budget" in plan["why"]


def test_candidates_can_be_tried_before_anything_is_taught_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "_WIDEST", 6)
    recipe = _job(tmp_path, {"student": {"candidates": 2}, "distill": {"epochs": 4, "batch": 32}})
    said = tiny.cli("plan", recipe, "--run", tmp_path / "run", "--try", "--json")
    assert said.status == 0
    assert [row["trial"]["name"] for row in said.answer["candidates"]] == [
        "accuracy_validation"
    ] * 2
    assert not (tmp_path / "run/artifacts").exists()
    tried = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert tiny.cli("run", recipe, "--run", tmp_path / "run").status == 0
    after = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert {name: after[name] for name in tried} == tried, "run goes on from there"


def test_trying_where_nothing_fits_ends_with_3(tmp_path: Path) -> None:
    recipe = _job(tmp_path, {"student": {"candidates": 2}, "budget": {"storage": "1 kB"}})
    said = tiny.cli("plan", recipe, "--run", tmp_path / "run", "--try", "--json")
    assert said.status == 3
    assert said.answer["status"] == "infeasible"
    assert len(said.errors) == 1


def _foretell_less(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let the planner foretell `share` of the bytes that an artifact will have."""
    from tutelage.plan import costs

    true = costs.figures_of

    def less(*args: Any, **options: Any) -> tuple[Measurement, ...]:
        return tuple(
            replace(f, value=f.value * share) if f.name == "storage_bytes" else f
            for f in true(*args, **options)
        )

    monkeypatch.setattr(costs, "figures_of", less)


def test_a_missed_limit_is_tightened_until_the_artifact_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _foretell_less(monkeypatch, 0.8)
    recipe = _job(tmp_path, {"student": {"candidates": 1}, "budget": {"storage": "4.5 kB"}})
    said = tiny.cli("run", recipe, "--run", tmp_path / "run", "--json")
    assert said.status == 0
    row = next(r for r in said.answer["budget"] if r["metric"] == "storage_bytes")
    assert row["limit"] == 4_500, "the verdict is about the user's own limit"
    assert row["value"] <= 4_500
    stages = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert "tighten-1" in stages
    limits = json.loads((tmp_path / "run/plan.json").read_text())["limits"]
    tightened = next(x for x in limits if x["metric"] == "storage_bytes")
    assert tightened["value"] < 4_500
    assert "tightened" in tightened["source"]
    first = tiny.hashes(tmp_path / "run", "artifacts", "plan.json", "student")
    assert tiny.cli("run", recipe, "--run", tmp_path / "run").status == 0
    assert tiny.hashes(tmp_path / "run", "artifacts", "plan.json", "student") == first
    assert json.loads((tmp_path / "run/run.json").read_text())["stages"].keys() == stages.keys()

    planned: list[float] = []  # another precision may well keep the limit as it is

    def plan(*given: Any, **_: Any) -> Any:
        planned.append(next(x.value for x in given[4] if x.metric == "storage_bytes"))
        raise InfeasibleError("enough")

    monkeypatch.setattr("tutelage.pipeline.plan", plan)
    changes = {"student": {"candidates": 1}, "budget": {"storage": "4.5 kB"}}
    recipe = _job(tmp_path, {**changes, "export": {"precision": "float32"}})
    assert tiny.cli("run", recipe, "--run", tmp_path / "run").status == 3
    assert planned == [4_500]


def test_a_limit_that_cannot_be_kept_ends_with_4_after_three_rounds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _foretell_less(monkeypatch, 0.2)
    monkeypatch.setattr(compact, "_WIDEST", 12)
    recipe = _job(tmp_path, {"student": {"candidates": 1}, "budget": {"storage": "2.2 kB"}})
    said = tiny.cli("run", recipe, "--run", tmp_path / "run", "--json")
    assert said.status == 4
    assert said.answer["status"] == "missed"
    assert "storage" in said.errors[0]
    assert (tmp_path / "run/report.html").exists()
    first = tiny.hashes(tmp_path / "run", "artifacts", "student")
    again = tiny.cli("run", recipe, "--run", tmp_path / "run", "--json")
    assert again.status == 4, "a second call gives the same answer"
    assert again.answer["budget"] == said.answer["budget"]
    assert tiny.hashes(tmp_path / "run", "artifacts", "student") == first


def test_trials_follow_what_bounds_the_whole_and_near_budgets_agree() -> None:
    """4,000 texts make 31 steps an epoch: 120 epochs, then 10 (310 steps), then 4 (124 steps)."""
    given = SimpleNamespace(train=SimpleNamespace(count=4_000))
    steps = [_search(given, macs).steps for macs in (None, 1e6, 2.5e8, 2.3e8, 1e9)]
    assert steps == [558, 512, 64, 64, 16]
    steps = [_search(given, macs, begun=True).steps for macs in (None, 1e6, 2.5e8, 2.3e8, 1e9)]
    assert steps == [372, 256, 32, 32, 16]
    assert _search(given, None)._examples(558, 2) == 20_000
    assert _search(given, 1e9)._examples(16, 2) == 8 * 128


def _search(material: Any, macs: float | None, *, begun: bool = False) -> Search:
    recipe = Recipe.parse({"data": {"train": "texts.csv"}, "teacher": {"source": "encoder"}})
    nothing: Any = None
    return Search(
        recipe=recipe, material=material, taught=nothing, costing=nothing, run=nothing,
        progress=nothing, macs=macs, begun=begun,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "spread", "tried"),
    [
        ((0.5, 0.9, 0.6, 0.4), 0.01, [(0, 30), (1, 30), (2, 30), (3, 30)]),
        ((0.5, 0.9, 0.895, 0.4), 0.002, [(0, 30), (1, 100), (2, 100), (3, 30)]),
        ((0.5, 0.9, 0.8, 0.4), 0.15, [(0, 30), (1, 100), (2, 100), (3, 30)]),
        ((0.9, 0.9, 0.89, 0.9), 0.01, [(0, 100), (1, 100), (2, 30), (3, 30)]),
    ],
)
def test_who_is_far_behind_is_tried_no_longer_and_one_that_is_left_neither(
    figures: tuple[float, ...], spread: float, tried: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first is ahead by chance where validation is small: both go on."""
    search = _search(SimpleNamespace(train=SimpleNamespace(count=2_000)), None, begun=True)
    candidates: Any = [SimpleNamespace(number=i, figure=lambda _: 1.0) for i in range(4)]

    def trial(_: Search, candidate: Any, steps: int, __: str) -> dict[str, Any]:
        value = figures[candidate.number] + (0.05 if steps == 100 else 0.0)
        return replace(_figure(value), spread=(value - spread, value + spread)).to_json()

    monkeypatch.setattr(Search, "_trial", trial)
    monkeypatch.setattr(Search, "steps", 100)
    search.halve(candidates, ())
    assert sorted(search.steps_taken.items()) == tried
    assert search.best(candidates) == figures.index(max(figures))
