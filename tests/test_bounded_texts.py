"""Text students are taught for as long as their operations allow, and the run says so."""

import json

import pytest
import tiny
import torch
from test_text_run import encoder, mails
from text_samples import write_jsonl

from tutelage.devices import load_device
from tutelage.pipeline import learning, lessons, planning
from tutelage.pipeline.material import read_material
from tutelage.pipeline.teaching import teach
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.records import Limit
from tutelage.report.training import training
from tutelage.run import Run
from tutelage.teach.hf_teacher import from_hf_folder

pytest.importorskip("transformers")


class Hears(Silent):
    """Keeps the lines that were said, and the bars that were opened."""

    def __init__(self):
        self.lines, self.bars = [], []

    def say(self, line):
        self.lines.append(line)

    def start(self, label, total, done=0):
        self.bars.append((label, total))


@pytest.fixture
def taught(tmp_path, monkeypatch):
    """Return a function that teaches a small text student within a bound of MACs."""
    encoder(tmp_path / "encoder")
    write_jsonl(tmp_path / "train.jsonl",
                *zip(*((m["text"], m["label"]) for m in mails(80)), strict=True))  # fmt: skip
    recipe = Recipe.parse(tiny.recipe({
        "task": "text", "data": {"train": str(tmp_path / "train.jsonl"), "validation": 0.2},
        "teacher": {"source": str(tmp_path / "encoder"), "fit": "all"}, "augment": {},
        "student": {"spec": {"family": "textconv", "embedding": 4}}, "distill": {}, "budget": {},
    }))  # fmt: skip
    material, device = read_material(recipe), load_device("nucleo-l4r5")
    kept, pad = material.task.tokens(material.data.train)
    torch.manual_seed(0)
    module = from_hf_folder(tmp_path / "encoder", 2, kept=kept, pad=pad, fresh_head=True)

    def go(most, given=recipe):
        monkeypatch.setattr(lessons, "_MOST_MACS", most)
        hears = Hears()
        limits = (Limit(metric="storage_bytes", value=1e6),)
        with Run(tmp_path / "run") as run:
            said = teach(given, material, run, hears, trust_code=False, module=module)
            chosen = planning.plan(given, material, said, device, limits, run, hears)
            result = learning.distill(given, material, said, chosen, run, hears).result
        steps = [total for label, total in hears.bars if label == "Teaching the student"]
        return chosen, result, hears.lines, steps

    return go


def test_a_bound_decides_the_epochs_is_said_and_is_part_of_what_a_stage_hangs_on(taught, tmp_path):
    chosen, result, lines, steps = taught(1.0)
    assert chosen.macs == 8 and result["epochs"] == 4  # 4 numbers by 2 classes: the head alone
    assert steps == [4 * (52 // 8)]
    bound = result["bound"]
    assert bound.startswith("4 epochs, not 400: ") and f"student: {bound}" in lines
    assert bound in training(result, {}).facts
    assert taught(1.0)[3] == []  # done: nothing is taught again
    files = (tmp_path / "run/student/model.safetensors").read_bytes()
    _, result, _, steps = taught(3.0 * 8 * 53 * 5)  # of about 52 texts
    assert result["epochs"] == 5 and len(steps) == 1
    _, _, lines, steps = taught(1.0)
    assert steps == [] and any("taught before" in line for line in lines)
    assert (tmp_path / "run/student/model.safetensors").read_bytes() == files
    stages = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert stages["distill"]["result"]["bound"] == bound
