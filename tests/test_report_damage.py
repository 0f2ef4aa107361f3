"""Damaged files and foreign folders: told in one line, and the earlier report stays."""

from __future__ import annotations

import pytest
from sample_run import plan_json, proof_json, run_json
from test_report import write

from tutelage.errors import CorruptFileError, RecipeError
from tutelage.report import build_report


@pytest.mark.parametrize("name", ["run", "plan", "proof"])
@pytest.mark.parametrize("damage", ["cut", "list", "hollow"])
def test_damage_is_told_and_leaves_the_earlier_report(tmp_path, name, damage):
    whole = {"run": run_json, "plan": plan_json, "proof": proof_json}[name]()
    write(tmp_path, **{name: whole})
    (tmp_path / "report.html").write_text("earlier", encoding="utf-8")
    path = tmp_path / f"{name}.json"
    text = path.read_text(encoding="utf-8")
    hollow = {
        "run": '{"stages": {"distill": {"result": {"history": 3}}}}',
        "plan": '{"candidates": [{"spec": {}}]}',
        "proof": '{"status": "met", "device": {"name": "x"}, "verdicts": [{"met": true}]}',
    }
    bad = {"cut": text[: len(text) // 2], "list": "[1]", "hollow": hollow[name]}[damage]
    path.write_text(bad, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=rf"{name}\.json is damaged") as caught:
        build_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "earlier"


def test_figure_of_unknown_kind_is_damage(tmp_path):
    proof = proof_json()
    proof["figures"]["student"][0]["kind"] = "guessed"
    with pytest.raises(CorruptFileError, match="guessed"):
        build_report(write(tmp_path, proof=proof))


def test_folder_without_a_run(tmp_path):
    with pytest.raises(RecipeError, match="holds no run"):
        build_report(tmp_path)
    with pytest.raises(RecipeError, match="holds no run"):
        build_report(tmp_path / "nowhere")
