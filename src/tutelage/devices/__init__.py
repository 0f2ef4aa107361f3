"""Device profiles and the cost model: pure arithmetic, no torch."""

from tutelage.devices.cost import (
    estimate_energy,
    predict_energy,
    predict_latency,
    predict_ram,
    predict_storage,
)
from tutelage.devices.profile import (
    HOST,
    Device,
    DeviceLimits,
    Figure,
    device_limits,
    host,
    list_devices,
    load_device,
)

__all__ = [
    "HOST",
    "Device",
    "DeviceLimits",
    "Figure",
    "device_limits",
    "estimate_energy",
    "host",
    "list_devices",
    "load_device",
    "predict_energy",
    "predict_latency",
    "predict_ram",
    "predict_storage",
]
