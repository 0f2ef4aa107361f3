"""The command line: prints, never computes."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; the exit status says how it ended (see `tutelage --help`)."""
    # Read by OpenMP when torch is loaded. Threads that spin while they wait for one another slow a
    # small network down fifteen-fold as soon as another program wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from tutelage.cli.main import run

    sys.exit(run(sys.argv[1:]))
