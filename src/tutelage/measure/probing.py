"""The probe as one file, and running it on this machine in a process of its own."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipapp
from pathlib import Path

from tutelage.devices import probe
from tutelage.errors import DeviceError
from tutelage.files import write_atomically
from tutelage.measure.calibrate import Readings, read_readings


def copy_probe(path: Path) -> None:
    """Write the probe as one file that Python 3.9 runs with onnxruntime and numpy alone.

    Raises `DiskError` when it cannot be written.
    """
    folder = Path(str(probe.__file__)).parent
    packed = io.BytesIO()
    zipapp.create_archive(
        folder.parent,
        packed,
        main=f"{folder.name}.timing:main",
        filter=lambda file: file.parts[0] == folder.name and file.suffix == ".py",
    )
    write_atomically(path, packed.getvalue())


def run_probe(minutes: float, threads: int, graphs: int) -> Readings:
    """Run the probe here and return its readings; it tells its progress on stderr.

    Raises `DeviceError` when it does not finish.
    """
    with tempfile.TemporaryDirectory(prefix="tutelage-probe-") as folder:
        file, out = Path(folder) / "probe.pyz", Path(folder) / "readings.yaml"
        copy_probe(file)
        command = [sys.executable, str(file), "--minutes", str(minutes), "--threads", str(threads)]
        done = subprocess.run([*command, "--graphs", str(graphs), "--out", str(out)], check=False)
        if done.returncode != 0:
            raise DeviceError(
                f"the probe ended with status {done.returncode}; what it said stands above: "
                "correct that, and run it again"
            )
        return read_readings(out)
