"""Early exits: when inputs stop, the file that stops, what it costs, a whole run."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from tutelage.audit.exits import choose_stops, confidence, stops, tradeoff
from tutelage.devices import load_device
from tutelage.errors import CorruptFileError, ExportError
from tutelage.export.artifact import ArtifactMeta, OnnxModel, load_onnx, read_meta
from tutelage.export.exits import decisions_of, path_costs, write_exits
from tutelage.export.graph import graph_costs
from tutelage.export.half import write_float16
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8
from tutelage.export.unroll import way, ways
from tutelage.files import hash_json
from tutelage.pipeline.proving_exits import timed, went_through
from tutelage.plan.costs import Costing, cost_of, shake
from tutelage.students.exits import (
    ExitingNetwork,
    Exits,
    early,
    fresh_exits,
    load_exits,
    save_exits,
)
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.taps import find_taps
from tutelage.teach.signals import Split
from tutelage.types import Batch, Tap

SHAPE, CLASSES = (1, 12, 12), 4
META = ArtifactMeta(
    task="vision", classes=("a", "b", "c", "d"), shape=SHAPE, mean=(0.0,), std=(1.0,), version="0"
)


# When an input stops


def test_thresholds_worked_by_hand():
    sure = np.array([[0.9, 0.8, 0.7, 0.6]])
    right = np.array([[True, False, True, True], [True, True, True, True]])

    def costs(used: tuple[int, ...]) -> list[float]:
        return [1.0, 3.0] if used else [2.0]

    # All four stopping costs 1 but loses one of four; at 0.9 one stops: (1 + 3 * 3) / 4 > 2.
    strict = choose_stops(sure, right, costs, 0.0)
    assert (strict.used, strict.cost, strict.lost) == ((), 2.0, 0.0)
    loose = choose_stops(sure, right, costs, 0.25)
    assert loose.used == (0,) and loose.thresholds == (0.3,)  # half-way to 0
    assert loose.shares == (1.0, 0.0) and loose.cost == 1.0 and loose.lost == 0.25


def test_an_early_decision_may_be_the_right_one():
    sure = np.array([[0.9, 0.1]])
    right = np.array([[True, False], [False, True]])

    def costs(used: tuple[int, ...]) -> list[float]:
        return [1.0, 2.0] if used else [2.0]

    assert choose_stops(sure, right, costs, 0.0).thresholds == (0.05,)  # one won, one lost
    found = choose_stops(sure, right, costs, -0.25)
    assert found.thresholds == (0.5,) and found.lost == -0.5


def test_an_input_stops_at_the_first_exit_that_is_sure():
    sure = np.array([[0.5, 0.2, 0.9], [0.9, 0.9, 0.1]])
    assert stops(sure, (0, 1), (0.5, 0.9)).tolist() == [0, 1, 0]
    assert stops(sure, (1,), (0.9,)).tolist() == [0, 0, 1]
    assert stops(sure, (), ()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("most", [0.0, 0.02, 0.1])
def test_the_cheapest_of_all_combinations_is_found(most):
    random = np.random.default_rng(0)
    sure, right = random.random((2, 40)), random.random((3, 40)) < 0.8

    def costs(used: tuple[int, ...]) -> list[float]:
        return [1.0 + i for i in used] + [4.0 + 0.1 * len(used)]

    found = choose_stops(sure, right, costs, most)
    best = 4.0
    for count in (1, 2):  # the naive reference: every observed confidence as a threshold
        for used in itertools.combinations(range(2), count):
            for levels in itertools.product(*(sorted(set(sure[i])) for i in used)):
                place = stops(sure, used, levels)
                asked = np.choose(place, [right[i] for i in (*used, 2)])
                if right[2].mean() - asked.mean() <= most + 1e-12:
                    best = min(best, float(np.mean([costs(used)[i] for i in place])))
    assert best - 1e-9 <= found.cost <= best * 1.02  # thresholds tried are quantiles
    place = stops(sure, found.used, found.thresholds)
    assert found.cost == pytest.approx(np.mean([costs(found.used)[i] for i in place]))


def test_the_tradeoff_holds_nothing_that_another_beats():
    random = np.random.default_rng(1)
    sure, right = random.random((1, 60)), random.random((2, 60)) < 0.7
    front = tradeoff(sure, right, lambda used: [1.0, 3.0] if used else [2.9], (0,))
    assert front == sorted(front, reverse=True)
    assert all(a[0] > b[0] and a[1] > b[1] for a, b in itertools.pairwise(front))


# The network, and its files


def network(stages: int = 3) -> tuple[ConvNet, Exits]:
    torch.manual_seed(0)
    spec = ConvNetSpec(
        image=SHAPE, classes=CLASSES, widths=(4, 6, 8)[:stages], depths=(1, 1, 1)[:stages]
    )
    net = ConvNet(spec)
    shake(net)
    net.eval()
    exits = fresh_exits(find_taps(net, torch.zeros(2, *SHAPE)), CLASSES)
    for branch in exits.branches:
        shake(branch)
        branch.head.weight.data *= 8  # so that some inputs are sure
    return net, exits


def test_a_network_with_exits_says_every_decision():
    net, exits = network()
    x = torch.randn(5, *SHAPE)
    with torch.no_grad():
        said = ExitingNetwork(net, exits).eval()(x)
        inner = net.stages[0](net.stem(x))
        assert torch.equal(said[:, :CLASSES], net(x))
        assert torch.equal(said[:, CLASSES : 2 * CLASSES], exits.branches[0](inner))
    assert said.shape == (5, 3 * CLASSES)


def test_at_most_three_exits_none_at_the_last_tap():
    taps = [Tap(path=str(i), shape=(4, 4, 4)) for i in range(9)]
    assert early(taps[:1]) == () and early(taps[:3]) == (0, 1)
    assert early(taps) == (2, 4, 6)


def test_exits_are_read_back_and_damage_is_told(tmp_path):
    _, exits = network()
    assert load_exits(tmp_path) is None
    paths = save_exits(tmp_path, exits, CLASSES)
    again = load_exits(tmp_path)
    assert again is not None and again.taps == exits.taps
    x = torch.randn(2, *exits.taps[0].shape)
    assert torch.equal(again.branches[0](x), exits.branches[0].eval()(x))
    for text in ("{}", '{"classes": 9, "taps": []}', '{"classes": "x", "taps": [{"path": 1}]}'):
        paths[0].write_text(text)
        with pytest.raises(CorruptFileError, match="exits are damaged"):
            load_exits(tmp_path)


# One file that stops


def flat_file(folder: Path, precision: str) -> tuple[Path, np.ndarray]:
    net, exits = network()
    path = export_onnx(ExitingNetwork(net, exits).eval(), SHAPE, folder / "flat.onnx", meta=META)
    inputs = np.random.default_rng(0).standard_normal((24, *SHAPE)).astype(np.float32)
    if precision == "int8":
        path = quantize_int8(path, folder / "int8.onnx", inputs)
    elif precision == "float16":
        write_float16(path, path)
    return path, inputs


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_the_file_stops_where_it_is_sure_and_says_the_same(tmp_path, precision, used):
    flat, inputs = flat_file(tmp_path, precision)
    every = np.split(OnnxModel(flat).run(inputs), 3, axis=1)
    sure = np.stack([confidence(logits) for logits in every[1:]])
    thresholds = [float(np.sort(sure[i])[13:15].mean()) for i in used]
    path = write_exits(
        flat, tmp_path / "stops.onnx", used=used, thresholds=thresholds, after=["x"] * len(used)
    )
    found = list(OnnxModel(path).run_each(inputs))
    place = np.concatenate([at for _, at in found])
    wanted = stops(sure, used, thresholds)
    assert set(wanted) == set(range(len(used) + 1))
    assert place.tolist() == wanted.tolist()
    order = [every[1 + i] for i in used] + [every[0]]
    for row, (logits, _) in enumerate(found):
        np.testing.assert_allclose(logits[0], order[wanted[row]][row], rtol=1e-5, atol=1e-5)
    told = read_meta(path).details["exits"]
    assert told == {"after": ["x"] * len(used), "thresholds": thresholds}
    if precision == "int8":  # constants are not stored again for every part
        assert path.stat().st_size < flat.stat().st_size + 2_500


def test_each_way_is_priced_by_the_operators_that_run(tmp_path):
    flat, _ = flat_file(tmp_path, "int8")
    costs = path_costs(flat, lambda counted: counted.macs)
    path = write_exits(
        flat, tmp_path / "stops.onnx", used=(0, 1), thresholds=(0.5, 0.5), after=("a", "b")
    )
    model = load_onnx(path)
    assert ways(model) == 3 and ways(load_onnx(flat)) == 1
    by_way = [graph_costs(way(model, at)).macs for at in range(3)]
    assert by_way == list(costs((0, 1)))
    assert by_way[0] < by_way[1] < by_way[2] == graph_costs(path).macs
    assert graph_costs(path).macs == graph_costs(flat).macs
    net, _ = network()
    alone = export_onnx(net, SHAPE, tmp_path / "alone.onnx", meta=META)
    assert costs(())[0] == graph_costs(alone).macs
    assert costs((1,))[1] < costs((0, 1))[2]
    assert graph_costs(path).file_bytes == path.stat().st_size


def test_no_exit_in_use_leaves_the_final_decision_alone(tmp_path):
    flat, inputs = flat_file(tmp_path, "int8")
    path = write_exits(flat, tmp_path / "one.onnx", used=(), thresholds=(), after=())
    assert len(load_onnx(path).graph.output) == 1 and "exits" not in read_meta(path).details
    said = OnnxModel(path).run(inputs)
    np.testing.assert_allclose(said, OnnxModel(flat).run(inputs)[:, :CLASSES], rtol=1e-5, atol=1e-5)
    assert path.stat().st_size < flat.stat().st_size


@pytest.mark.parametrize("used", [(), (0,)])
def test_a_file_can_end_at_an_exit(tmp_path, used):
    flat, inputs = flat_file(tmp_path, "int8")
    every = np.split(OnnxModel(flat).run(inputs), 3, axis=1)
    sure = confidence(every[1])
    thresholds = [float(np.median(sure))] * len(used)
    path = write_exits(
        flat, tmp_path / "ends.onnx", used=used, thresholds=thresholds, after=["x"] * len(used),
        end=1,
    )  # fmt: skip
    assert graph_costs(path).macs < graph_costs(flat).macs
    assert path.stat().st_size < flat.stat().st_size + 700 * len(used)
    for row, (logits, *_) in enumerate(OnnxModel(path).run_each(inputs)):
        early = used and sure[row] >= thresholds[0]
        want = every[1 if early else 2][row]
        np.testing.assert_allclose(logits[0], want, rtol=1e-5, atol=1e-5)


def test_a_file_without_exits_side_by_side_is_refused(tmp_path):
    net, _ = network()
    path = export_onnx(net, SHAPE, tmp_path / "alone.onnx", meta=META)
    with pytest.raises(ExportError, match="side by side"):
        decisions_of(load_onnx(path))


def test_the_examples_that_are_timed_are_spread_over_the_split(tmp_path):
    flat, inputs = flat_file(tmp_path, "float32")
    sure = confidence(OnnxModel(flat).run(inputs)[:, CLASSES : 2 * CLASSES])
    half = (float(np.median(sure)),)
    path = write_exits(flat, tmp_path / "stops.onnx", used=(0,), thresholds=half, after=("x",))
    rows, asked = np.resize(inputs, (1_000, *SHAPE)), []

    def batch(index: torch.Tensor, view: int) -> Batch:
        asked.append(index.numpy())
        return Batch(inputs=torch.from_numpy(rows[index.numpy()]), labels=None, index=index)

    split = Split(name="test", count=len(rows), content="", batch=batch)
    stopped = went_through(path, split)
    assert stopped is not None and 0 < min(stopped.shares)
    asked.clear()
    _, (mean, longest) = timed(stopped, split)
    assert asked[-1].tolist() == np.linspace(0, 999, 200).round().tolist()
    assert all(chosen[0] < 100 and chosen[-1] > 900 for chosen in asked)
    assert mean.name == "latency_mean_s" and longest.where.startswith("examples that stop nowhere")


def test_what_is_found_for_a_student_with_exits_is_not_taken_for_one_without():
    given = {"device": load_device("nucleo-l4r5"), "limits": (), "precision": "int8", "meta": META}
    plain, exiting = Costing(**given), Costing(**given, exits=True)
    assert hash_json(plain.key()) != hash_json(exiting.key())
    assert cost_of(network()[0], exiting)[0].macs > cost_of(network()[0], plain)[0].macs


def test_exits_are_counted_where_they_will_stand():
    given = {"device": load_device("nucleo-l4r5"), "limits": (), "precision": "float32"}
    found, named = (
        Costing(**given, meta=META, exits=True, taps=taps)
        for taps in (None, ("stages.0", "stages.1"))
    )
    assert hash_json(found.key()) != hash_json(named.key())
    one, two = (cost_of(network()[0], costing)[0].macs for costing in (named, found))
    net, exits = network()
    alone = cost_of(net, Costing(**given, meta=META))[0].macs
    assert alone < one < two  # the last of the taps has no exit
    assert [tap.path for tap in exits.taps] == ["stages.0", "stages.1"]
    elsewhere = dataclasses.replace(named, taps=("stages.0", "stages.7"))
    assert cost_of(network()[0], elsewhere)[0].macs == two


# A whole run

Job = Callable[..., Path]
FLAT = {"spec": {"family": "convnet", "widths": [4, 8], "depths": [1, 1]}}


def run(recipe: Path) -> Any:
    return tiny.cli("run", recipe, "--run", recipe.parent / "run", "--json")


def write_noisy(folder: Path) -> dict[str, Any]:
    """Write images in which some bands are hardly seen; return the recipe's part that fits."""
    random, labels = np.random.default_rng(0), np.arange(300) % CLASSES
    pixels = random.integers(0, 200, (300, 8, 8, 1))
    for image, label in zip(pixels, labels, strict=True):
        first = int(label) * 8 // CLASSES
        image[first : first + 2] += 80
    np.savez(folder / "data.npz", x=np.minimum(pixels, 255).astype(np.uint8), y=labels)
    return {"teacher": tiny.RECIPE["teacher"]}


def test_where_every_input_stops_the_file_ends_there(job: Job) -> None:
    recipe = job({"student": {**FLAT, "exits": "2 %"}})
    assert run(recipe).status == 0
    folder = recipe.parent / "run"
    proof = json.loads((folder / "proof.json").read_text())
    part = proof["exits"]
    assert (part["after"], part["ends"], part["shares"]) == ([], "stages.0", [1.0, 0.0])
    model = load_onnx(folder / "artifacts/student-int8.onnx")
    assert ways(model) == 1 and [o.name for o in model.graph.output] == ["logits"]
    macs = next(f["value"] for f in proof["figures"]["student"] if f["name"] == "macs")
    assert macs == graph_costs(model).macs < 30_000  # of 41,544 of the whole
    page = (folder / "report.html").read_text()
    section = page[page.index('id="exits"') :].split("</section>")[0]
    assert "so the file ends there" in section and "No exit is kept" not in section


def test_a_run_ships_exits_and_proves_what_they_save(job: Job, tmp_path: Path) -> None:
    noisy = write_noisy(tmp_path)
    recipe = job({"student": {**FLAT, "exits": "2 %"}, **noisy})
    said = run(recipe)
    assert said.status == 0, said.err
    folder = recipe.parent / "run"
    proof = json.loads((folder / "proof.json").read_text())
    part = proof["exits"]
    assert part["artifact"] == "student-int8.onnx" and part["unit"] == "s"
    assert part["after"] == ["stages.0"] and part["lost"] <= 0.02
    assert sum(row["count"] for row in part["test"]) == part["test"][0]["count"] / max(
        part["test"][0]["share"], 1e-9
    )
    figures = {f["name"]: f for f in reversed(proof["figures"]["student"])}
    assert figures["latency_mean_s"]["value"] < figures["latency_s"]["value"]
    assert figures["macs_mean"]["value"] < figures["macs"]["value"]
    rest = figures["latency_mean_s"]["value"] / figures["latency_s"]["value"]
    assert "stop" in figures["macs_mean"]["where"] and 0 < rest < 1
    teacher = {f["name"]: f for f in proof["figures"]["teacher"]}
    assert figures["latency_p50_s"]["where"] == teacher["latency_p50_s"]["where"]
    page = (folder / "report.html").read_text()
    section = page[page.index('id="exits"') :].split("</section>")[0]
    # What the recipe allows is no figure, so it has no kind.
    assert "the recipe allows a loss of 2.0 %.</p>" in section and "Right" in section
    names = {p.name for p in (folder / "student").iterdir()}
    assert {"exits.json", "exits.safetensors"} <= names

    taught = (folder / "student/model.safetensors").read_bytes()
    job({"student": {**FLAT, "exits": "0.1 %"}, **noisy})  # asks for no other lesson
    again = run(recipe)
    assert again.status == 0
    assert "Teaching the student" not in again.err
    assert (folder / "student/model.safetensors").read_bytes() == taught
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["exits"]["may_lose"] == 0.001

    job({"student": FLAT, **noisy})  # no exits any more
    last = run(recipe)
    assert last.status == 0, last.err
    assert "exits" not in json.loads((folder / "proof.json").read_text())
    assert {p.name for p in (folder / "student").iterdir()} == names - {
        "exits.json", "exits.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"student": {**FLAT, "exits": 0}}, "write it like '0.001' or '0.1 %'"),
        ({"student": {**FLAT, "exits": 1}}, "write it like '0.001' or '0.1 %'"),
        ({"student": {**FLAT, "exits": "many"}}, "write it like '0.001' or '0.1 %'"),
        (
            {"student": {"space": "elastic", "further": 0, "exits": 0.01}},
            "'exits' are taught while the cut is taught further",
        ),
        (
            {"student": {**FLAT, "exits": 0.01}, "export": {"dynamic_batch": True}},
            "student.exits need a batch of one",
        ),
        ({"student": {**FLAT, "exits": 0.01, "taps": ["stages.0"]}}, "fewer than two taps"),
    ],
)  # fmt: skip
def test_exits_that_cannot_be_are_refused_in_one_line(
    job: Job, changes: dict[str, Any], what: str
) -> None:
    said = run(job({"distill": {"epochs": 1, "batch": 32}, **changes}))
    assert said.status == 2 and what in said.errors[0]
    assert len(said.errors) == 1 and "Teaching the student" not in said.err
