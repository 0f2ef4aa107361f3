"""The grid's part of RESULTS.md, between two markers; nothing outside them is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid.jobs import Job
from benchmarks.grid.statistics import Ranking, Spread
from benchmarks.grid.store import Store
from benchmarks.grid.summary import Block, Line, blocks_of, rank, whole_grid
from tutelage.errors import CorruptFileError
from tutelage.files import write_atomically
from tutelage.units import format_quantity

BEGIN, END = "<!-- grid: begin -->", "<!-- grid: end -->"
DIAGRAM = "grid-ranks"
_TITLE = "## The grid (`python -m benchmarks run`)"
_HEAD = "| method | seeds | epochs | setting | test | to no teacher | to KD | processor | wall |"


def write_page(store: Store, page: Path) -> None:
    """Put the tables of the whole grid between the markers of a page, and draw the diagrams.

    A page without markers gets them at its end. Raises `CorruptFileError` where only one is there,
    or they are the wrong way round.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    whole = [part for searched in (True, False) for part in _section(store, page, searched)]
    own = "\n".join(whole or ["Nothing is recorded yet.", ""])
    write_atomically(page, spliced(text, own, page))


def spliced(text: str, own: str, where: Path) -> str:
    """Return the text with `own` between the markers, the rest byte for byte as it was."""
    if BEGIN not in text and END not in text:
        gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        return f"{text}{gap}{_TITLE}\n\n{BEGIN}\n{own}{END}\n"
    first, last = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or last < first:
        raise CorruptFileError(
            f"{where} must hold '{BEGIN}' once and '{END}' once after it; put them right"
        )
    return f"{text[: first + len(BEGIN)]}\n{own}{text[last:]}"


def show(store: Store, wanted: Sequence[Job]) -> None:
    """Print the tables of some cells; where all rows are of another version, those, and say so."""
    print("\n".join(_versioned(store, wanted)))


def _versioned(store: Store, wanted: Sequence[Job]) -> list[str]:
    """Return the tables of this version's rows, else of the version that made most of them."""
    seen = store.with_rows_of(wanted)
    lines = lines_of(seen, wanted)
    if seen is store:
        return lines
    return [
        f"**All rows below are stale**: made by the code {seen.code}, and the code here is "
        f"{store.code}. `python -m benchmarks run --again` makes them anew.",
        "",
        *lines,
    ]


def _section(store: Store, page: Path, searched: bool) -> list[str]:
    whole = whole_grid(searched=searched)
    blocks = blocks_of(store.with_rows_of(whole), whole)
    if not blocks:
        return []
    name = DIAGRAM if searched else f"{DIAGRAM}-defaults"
    ranking, _ = rank(blocks)
    picture = []
    if ranking is not None:
        from benchmarks.grid.diagram import draw

        draw(ranking, page.parent / "results" / f"{name}.svg")
        picture = [f"![Mean ranks of the methods](results/{name}.svg)", ""]
    return [*_how(searched), *picture, *_versioned(store, whole)]


def _how(searched: bool) -> list[str]:
    options = (
        "The setting of each method's one most important option is the best of three on validation "
        "(half the time each, one seed that is not reported)."
        if searched
        else "**Every method with its default setting (`--no-search`).**"
    )
    return [
        f"{options} Every method has the processor time that plain KD takes for its epochs, asking "
        "the teacher included; the epoch is chosen on validation, the test split read once by the "
        "network in torch. One teacher and one split a domain: intervals (95 %, Student's t) and "
        "differences (paired by seed, in points) cover first weights, order and augmentation, not "
        "other data. Bold: the interval leaves 0 out; no correction is made for there being many.",
        "",
    ]


def lines_of(store: Store, wanted: Sequence[Job]) -> list[str]:
    """Return the tables of some cells as lines of Markdown."""
    blocks = blocks_of(store, wanted)
    found = [line for block in blocks for line in _block(block, wanted)]
    ranking, left_out = rank(blocks)
    if ranking is not None:
        found += _ranks(ranking, left_out)
    return [*found, *_rest(store, wanted)]


def _block(block: Block, wanted: Sequence[Job]) -> list[str]:
    place = f"{block.domain}, 1/{block.size} of the teacher's bytes"
    student, teacher = block.student, block.teacher
    size = format_quantity(4.0 * student["parameters"], "B")
    said = (
        f"Student {student['parameters']:,} parameters ({size} in float32); teacher "
        f"{teacher['parameters']:,}, test {teacher['test']:.2%}; examples to learn from, choose by "
        f"and test: {', '.join(f'{n:,}' for n in teacher['counts'])}. {' and '.join(block.cpus)}."
    )
    if "energy" in student:
        joule = format_quantity(student["energy"]["value"], "J")
        said += f" One inference on {student['energy_device']}: {joule}, **estimated**."
    unsearched = any(not job.searched for job in wanted)
    rows = [_row(block, line, unsearched) for line in block.lines]
    return [f"### {place}", "", said, "", _HEAD, f"|{'---|' * 9}", *rows, ""]


def _row(block: Block, line: Line, unsearched: bool) -> str:
    anchor = anchor_of(block.domain, block.size, line.method, unsearched=unsearched)
    settings = "/".join("" if s is None else str(s) for s in line.settings)
    test = f"{line.test.mean:.2%}"
    if not math.isnan(line.test.half):
        test += f" ±{100 * line.test.half:.2f}"
    cells = [
        f'<a id="{anchor}"></a>{line.method}', line.test.n, "/".join(map(str, line.epochs)),
        settings, test, difference(line.to_alone), difference(line.to_base),
        f"{line.cpu_s:.1f} s", f"{line.wall_s:.1f} s",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def anchor_of(domain: str, size: int, method: str, *, unsearched: bool) -> str:
    """Return the name by which one row of the page can be linked to."""
    words = method.replace(",", "").replace(":", "").replace(" ", "-")
    return f"grid-{domain}-{size}-{words}{'-defaults' if unsearched else ''}".replace("%", "")


def difference(found: Spread | None) -> str:
    """Return a paired difference in points with its interval."""
    if found is None:
        return ""
    said = f"{100 * found.mean:+.2f}"
    if math.isnan(found.half):
        return said
    said += f" ±{100 * found.half:.2f}"
    return f"**{said}**" if found.clear else said


def _ranks(ranking: Ranking, left_out: Sequence[str]) -> list[str]:
    equal = "differ" if ranking.p < 0.05 else "do not differ significantly"
    said = (
        f"Mean ranks over {ranking.blocks} domains and sizes: the methods {equal} (Friedman "
        f"{ranking.statistic:.2f}, p = {ranking.p:.2g}); two of them do where their ranks are more "
        f"than {ranking.critical:.2f} apart (Nemenyi, 5 %)."
    )
    if left_out:
        said += f" Not ranked, since not done everywhere: {', '.join(left_out)}."
    pairs = zip(ranking.methods, ranking.ranks, strict=True)
    rows = [f"| {method} | {rank:.2f} |" for method, rank in pairs]
    return ["### Ranks", "", said, "", "| method | mean rank |", "|---|---|", *rows, ""]


def _rest(store: Store, wanted: Sequence[Job]) -> list[str]:
    """Say what is missing in the blocks that were begun, what failed, and what is stale."""
    counted = store.count(wanted)
    said = [f"Cells: {', '.join(f'{n} {state}' for state, n in counted.items() if n)}."]
    if counted["stale"]:
        said.append("Stale rows are of another version and stand in no mean.")
    failed = [job for job in wanted if store.state(job) == "failed"]
    lines = [f"- failed, {job.key}: {store.rows[job.key]['reason']}" for job in failed[:20]]
    more = [f"- and {len(failed) - 20} more"] if len(failed) > 20 else []
    return [" ".join([*said, f"Code {store.code}."]), "", *lines, *more, *([""] if lines else [])]
