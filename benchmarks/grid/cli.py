"""The command line of the grid."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.grid.domains import DOMAINS, HERE
from benchmarks.grid.jobs import SEEDS, Job, cells, code_hash, with_needs
from benchmarks.grid.methods import METHODS
from benchmarks.grid.runner import Runner
from benchmarks.grid.store import Store, held
from tutelage.errors import TutelageError
from tutelage.registry import near_matches

OUT = HERE / "results" / "grid.json"
PAGE = HERE / "RESULTS.md"
_DESCRIPTION = """Domain x student size x method x seed, every method for the same processor time.

python -m benchmarks list                          # the grid: done, missing, failed, stale
python -m benchmarks run --domains digits GunPoint --sizes 30 --jobs 2
python -m benchmarks run --only digits/30 fashion/30/dist
python -m benchmarks table                         # what is recorded, without running

A finished cell is not run again; a failed one is. Rows of another version of the code are stale:
they are shown apart, and made anew with --again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except TutelageError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("benchmarks: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("run", "do what is missing, then write the table"),
        ("table", "print the table of what is recorded"),
        ("list", "show how every part of the grid stands"),
    ):
        part = commands.add_parser(name, help=about)
        part.add_argument("--domains", nargs="+", default=list(DOMAINS), metavar="NAME")
        part.add_argument("--sizes", nargs="+", type=int, default=[10, 30, 100], metavar="N")
        part.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
        part.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N")
        part.add_argument("--only", nargs="+", metavar="DOMAIN[/SIZE[/METHOD]]", default=[])
        part.add_argument("--no-search", action="store_true", help="take every method's defaults")
        part.add_argument("--out", type=Path, default=OUT)
        if name == "run":
            part.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
            part.add_argument("--again", action="store_true", help="redo stale rows, too")
            part.add_argument("--limit", type=float, default=7_200, help="seconds for one job")
        if name == "table":
            part.add_argument("--write", action="store_true", help="write it to the page, too")
        if name != "list":
            part.add_argument("--page", type=Path, default=PAGE)
    return parser


def _wanted(options: argparse.Namespace) -> tuple[Job, ...]:
    """Return the cells that the options name; raises `TutelageError` for an unknown name."""
    for given, known in ((options.domains, DOMAINS), (options.methods, METHODS)):
        for name in given:
            if name not in known:
                raise TutelageError(f"there is no '{name}'. {near_matches(name, list(known))}")
    found = cells(
        options.domains, options.sizes, options.methods, options.seeds,
        searched=not options.no_search,
    )  # fmt: skip
    if options.only:
        found = tuple(job for job in found if any(_is(job, given) for given in options.only))
    if not found:
        raise TutelageError("no cell of the grid is named so; see: python -m benchmarks list")
    return found


def _is(job: Job, given: str) -> bool:
    """Say whether a cell lies in DOMAIN, DOMAIN/SIZE or DOMAIN/SIZE/METHOD."""
    return f"{job.domain}/{job.size}/{job.method}/".startswith(f"{given.rstrip('/')}/")


def _run(options: argparse.Namespace) -> int:
    from benchmarks.grid.page import show, write_page

    wanted = _wanted(options)
    if options.jobs < 1:
        raise TutelageError(f"--jobs is {options.jobs}; give 1 or more")
    with held(options.out):
        store = Store(options.out, code_hash())
        runner = Runner(
            store=store,
            jobs=with_needs(wanted),
            workers=options.jobs,
            limit_s=options.limit,
            again=options.again,
            say=lambda line: print(line, flush=True),
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # its children must end, too
        runner.run()
        write_page(store, options.page)
        show(store, wanted)
        counted = store.count(wanted)
    print(", ".join(f"{n} {state}" for state, n in counted.items() if n))
    return 0 if counted["failed"] == 0 else 1


def _table(options: argparse.Namespace) -> int:
    from benchmarks.grid.page import show, write_page

    store, wanted = Store(options.out, code_hash()), _wanted(options)
    plain = tuple(replace(job, searched=False) for job in wanted)
    parts = [part for part in (wanted, plain) if any(job.key in store.rows for job in part)]
    for part in dict.fromkeys(parts) or [wanted]:
        if not part[0].searched:
            print("Every method with its default setting (--no-search):\n")
        show(store, part)
    if options.write:
        write_page(store, options.page)
    return 0


def _list(options: argparse.Namespace) -> int:
    store, wanted = Store(options.out, code_hash()), _wanted(options)
    for domain, size in dict.fromkeys((job.domain, job.size) for job in wanted):
        here = [job for job in wanted if (job.domain, job.size) == (domain, size)]
        counted = store.count(here)
        said = ", ".join(f"{n} {state}" for state, n in counted.items() if n)
        print(f"{domain} 1/{size}: {said} of {len(here)}")
        needed = [job for job in with_needs(here) if store.state(job) == "failed"]
        for job in needed[:5]:
            print(f"    {job.key}: {store.rows[job.key]['reason']}")
        if len(needed) > 5:
            print(f"    and {len(needed) - 5} more failed")
    if not options.no_search:
        plain = [replace(job, searched=False) for job in wanted]
        there = sum(job.key in store.rows for job in plain)
        if there:
            print(f"{there} more with every method's default setting: list --no-search")
    print(f"code {store.code}; rows of other code are stale (run --again redoes them)")
    return 0


_COMMANDS = {"run": _run, "table": _table, "list": _list}
