"""Measured figures of an artifact on this machine: latency, memory, energy."""

from tutelage.measure.energy import PowerTrace, measure_energy, read_power_csv
from tutelage.measure.latency import LatencyResult, measure_latency
from tutelage.measure.memory import measure_memory

__all__ = [
    "LatencyResult",
    "PowerTrace",
    "measure_energy",
    "measure_latency",
    "measure_memory",
    "read_power_csv",
]
