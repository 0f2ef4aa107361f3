"""The benchmark anyone can run: python -m benchmarks run, table or list, from the repository."""

from __future__ import annotations

import sys

from benchmarks.grid.cli import main

if __name__ == "__main__":
    sys.exit(main())
