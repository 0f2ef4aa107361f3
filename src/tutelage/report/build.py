"""From a run directory to report.html."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.files import write_atomically
from tutelage.records import SideFile
from tutelage.report.budget import BudgetRow, budget
from tutelage.report.candidates import Candidates, candidates
from tutelage.report.comparison import CompareRow, comparison
from tutelage.report.exits import Exits, exits
from tutelage.report.fidelity import Fidelity, fidelity
from tutelage.report.overview import Overview, came_out, overview, went_in
from tutelage.report.possible import Possible, planned_figures, possible
from tutelage.report.provenance import Provenance, provenance
from tutelage.report.samples import Samples, samples, written
from tutelage.report.shipped import Shipped, shipped
from tutelage.report.source import Sources, load, reading
from tutelage.report.training import Training, training

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the template shows; a section without data is None or empty."""

    title: str
    missing: tuple[str, ...]
    overview: Overview
    budget: tuple[BudgetRow, ...]
    comparison: tuple[CompareRow, ...]
    candidates: Candidates | None
    possible: Possible | None
    exits: Exits | None
    fidelity: Fidelity
    samples: Samples | None
    training: Training | None
    shipped: Shipped | None
    provenance: Provenance


def build_report(run_dir: Path) -> Path:
    """Write report.html into a run directory and return its path.

    Reads run.json, plan.json, proof.json and scores.json only, and shows what is there. The page is
    one file without outside resources. Raises `RecipeError` when the folder holds no run,
    `CorruptFileError` when a file is damaged, `DiskError` when the page cannot be written.
    """
    target = run_dir / "report.html"
    write_atomically(target, render(page(load(run_dir))))
    return target


def page(sources: Sources) -> Page:
    """Read every section; each is blamed on the file it is read from."""
    run, plan, proof = sources.run, sources.plan, sources.proof
    data, teacher = sources.stage("data"), sources.stage("teacher")
    distilled = sources.stage("distill")
    with reading(sources.folder / "run.json"):
        given, made = went_in(data, teacher, sources.stage("rehearsal")), came_out(distilled)
        texts = written(data)
        taught = training(distilled, teacher, proof)
        origin = provenance(run, proof)
    with reading(sources.folder / "plan.json"):
        planned = candidates(plan)
    others = _possible(sources)
    with reading(sources.folder / "proof.json"):
        return Page(
            title=f"{proof['device']['name']}: proof" if proof else sources.folder.name,
            missing=sources.missing,
            overview=overview(proof, bool(distilled), given, made),
            budget=budget(proof),
            comparison=comparison(proof),
            candidates=planned,
            possible=others,
            exits=exits(proof),
            fidelity=fidelity(proof),
            samples=samples(proof, texts),
            training=taught,
            shipped=shipped(proof),
            provenance=origin,
        )


def _possible(sources: Sources) -> Possible | None:
    """Read what else was tried; told once something is proven, whose device and files it takes."""
    if not sources.scores or not sources.proof:
        return None
    with reading(sources.folder / "proof.json"):
        device = str(sources.proof["device"]["name"])
        beside = tuple(SideFile(**file) for file in sources.proof.get("beside") or ())
    with reading(sources.folder / "plan.json"):
        planned = planned_figures(sources.plan)
    chosen = sources.stage("distill").get("spec")
    with reading(sources.folder / "scores.json"):
        return possible(sources.scores, device, beside, planned, chosen)


def render(shown: Page) -> str:
    """Return the page as HTML; every text from the files is escaped, and no float is printed."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_no_numbers,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("template.html.j2").render(
        page=shown,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        markup=Markup,
    )
    # half a surrogate pair, which JSON may hold, cannot be written as UTF-8
    return html.encode("utf-8", "replace").decode("utf-8")


def _no_numbers(value: Any) -> Any:
    """Refuse bare floats: a figure goes through a `Measurement`, which has a kind."""
    if value is None or isinstance(value, float):
        raise TypeError(f"the report was about to print {value!r}; pass a Figure or a text")
    return value
