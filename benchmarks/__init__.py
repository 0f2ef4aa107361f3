"""The benchmarks: scripts of one question each, and the grid (`python -m benchmarks`)."""
