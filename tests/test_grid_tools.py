"""Other tools in the grid: the same student, begun as ours, in an environment of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_samples import wordpiece

from tutelage.errors import DataError
from tutelage.files import read_tensors, write_tensors
from tutelage.students import spec as students
from tutelage.students.families.convnet import ConvNetSpec
from tutelage.students.families.encoder import EncoderSpec
from tutelage.students.spec import StudentSpec

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import tools
from benchmarks.grid import jobs, material, others
from benchmarks.grid.domains import DOMAINS, Domain
from benchmarks.grid.jobs import Job, cells
from benchmarks.grid.methods import METHODS

Jobs = list[dict[str, Any]]


@pytest.fixture
def jobs_told(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """The jobs that a tool was told, each answered with the first weights and other biases."""
    heard: Jobs = []

    def told(tool: str, job: dict[str, Any]) -> dict[str, Any]:
        heard.append(job)
        first = students.load(job["student"]).state_dict()
        write_tensors(Path(job["keep"]), {**first, "head.bias": first["head.bias"] + 7})
        epochs = [{"validation": v, "whole_cpu_s": 2.0} for v in (0.5, 0.4)]
        return {"cpu_s": 5.0, "epochs": epochs}

    monkeypatch.setattr(others, "told", told)
    return heard


def test_another_tool_teaches_the_same_student(tmp_path: Path, jobs_told: Jobs) -> None:
    domain = Domain(recipe=DOMAINS["digits"].recipe, epochs=2, examples=100, batch=32)
    recipe = material.recipe_of(domain, 3, {"epochs": 2})
    held = material.material_for(domain, recipe)
    spec = StudentSpec(family="convnet", knobs=ConvNetSpec(widths=(2,), depths=(1,), **held.knobs))
    teacher = StudentSpec(
        family="convnet", knobs=ConvNetSpec(widths=(4,), depths=(1,), **held.knobs)
    ).build()
    losses = METHODS["torchdistill: srd"].recipe_part(1, domain.rate)["losses"]
    found = others.by_tool("torchdistill", recipe, domain, spec, teacher, losses, tmp_path)
    assert (found.seconds, found.ends, found.best_epoch) == (5.0, [2.0, 4.0], 0)
    assert_begun_as_ours(found.network, spec, 3)
    (job,) = jobs_told
    assert job["losses"]["SRDLoss"]["weight"] == 0.3
    assert (job["shift"], job["flip"], job["side"]) == (1, False, 8)  # as the recipe varies
    assert len(job["rates"]) == 2 * (100 // 32) and max(job["rates"]) <= 1.0
    kept = read_tensors(tmp_path / "data" / "train.safetensors")[0]
    assert kept["pixels"].dtype == torch.uint8 and len(kept["labels"]) == 100


def test_a_tool_for_texts_gets_the_tokens(tmp_path: Path, jobs_told: Jobs) -> None:
    words = ("good fine great", "dull poor bad")
    rows = [{"text": f"{words[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(60)]
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    domain = Domain(
        recipe={"task": "text", "teacher": {"fit": True},
                "data": {"train": str(data), "length": 8,
                         "tokenizer": str(wordpiece(tmp_path / "tokenizer"))}},
        epochs=2, batch=8,
    )  # fmt: skip
    recipe = material.recipe_of(domain, 1, {"epochs": 2})
    held = material.material_for(domain, recipe)
    knobs = {**held.knobs, "layers": 1, "heads": 1, "inner": 8, "norm": "post"}
    small, large = (
        StudentSpec(family="encoder", knobs=EncoderSpec(**knobs, hidden=n)) for n in (4, 8)
    )
    losses = METHODS["textbrewer: kd"].recipe_part(2, domain.rate)["losses"]
    found = others.by_tool("textbrewer", recipe, domain, small, large.build(), losses, tmp_path)
    assert_begun_as_ours(found.network, small, 1)
    (job,) = jobs_told
    assert job["losses"] == {"kd": {"temperature": 8.0}} and job["pad"] == held.knobs["pad"]
    kept = read_tensors(tmp_path / "train.safetensors")[0]
    np.testing.assert_array_equal(kept["labels"], held.data.train.labels)
    assert kept["ids"].shape == (held.train.count, 8) and kept["ids"].dtype == torch.int64
    assert students.load(job["teacher"]).spec == large.knobs


def assert_begun_as_ours(network: torch.nn.Module, spec: StudentSpec, seed: int) -> None:
    torch.manual_seed(seed)
    fresh = spec.build().state_dict()
    fresh["head.bias"] += 7
    for name, tensor in fresh.items():
        torch.testing.assert_close(network.state_dict()[name], tensor)


def test_other_tools_teach_labelled_data_of_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = cells(
        ("digits", "fashion-1%", "GunPoint", "spam"), (30,),
        ("torchdistill: kd", "textbrewer: kd"), (0,), searched=False,
    )  # fmt: skip
    assert [(job.domain, job.method) for job in wanted] == [
        ("digits", "torchdistill: kd"), ("spam", "textbrewer: kd"),
    ]  # fmt: skip
    both = wanted[0], Job(kind="cell", domain="digits", size=30, method="kd")
    before = [job.definition() for job in both]
    monkeypatch.setattr(jobs, "_of_tool", lambda _: {"gone": Path(__file__)})
    after = [job.definition() for job in both]
    assert before[0] != after[0] and before[1] == after[1]  # its code counts for it alone


def test_a_missing_tool_is_named_with_what_makes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tools, "HERE", tmp_path)
    with pytest.raises(DataError, match=r"make it with: python benchmarks/tools.py textbrewer"):
        tools.told("textbrewer", {"result": "none"})
