"""The command line: prints, never computes."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the exit status says how it ended (see `tutelage --help`)."""
    from tutelage.cli.main import run

    sys.exit(run(sys.argv[1:]))
