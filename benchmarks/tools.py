"""Other tools that the benchmarks teach with, each in an environment of its own.

python benchmarks/tools.py torchdistill|textbrewer    # makes that tool's environment, once
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.files import write_json

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool: the task that it teaches, its packages, the environment, and the script run there."""

    task: str
    packages: tuple[str, ...]
    environment: str
    child: str

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return HERE / ".work" / self.environment / "bin" / "python"


_OF_TEXTS = Tool(
    task="text",
    packages=(
        "torch==2.13.0", "transformers==5.24.0", "textbrewer==0.2.1.post1",
        "sentence-transformers==6.2.0", "accelerate==1.15.0", "datasets==5.2.0",
    ),
    environment="text-tools-env",
    child="text_tools_child.py",
)  # fmt: skip
TOOLS: dict[str, Tool] = {
    "torchdistill": Tool(
        task="vision",
        packages=("torch==2.14.1", "torchvision==0.29.1", "torchdistill==1.1.5"),
        environment="torchdistill-env",
        child="torchdistill_child.py",
    ),
    "textbrewer": _OF_TEXTS,
    "sentence-transformers": _OF_TEXTS,
}


def told(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a tool's environment; return what the child wrote to the job's `result`.

    Raises `DataError` where that environment is not there.
    """
    tool = TOOLS[name]
    if not tool.python.exists():
        raise DataError(
            f"{tool.python} is missing; make it with: python benchmarks/tools.py {name}"
        )
    path = Path(job["result"]).with_name("job.json")
    write_json(path, job)
    # -P: else a file beside the child would be taken for the package of that name.
    subprocess.run([str(tool.python), "-P", str(HERE / tool.child), str(path)], check=True)
    return json.loads(Path(job["result"]).read_text())


def make(name: str) -> None:
    """Make a tool's environment, this library in it."""
    tool = TOOLS[name]
    subprocess.run([sys.executable, "-m", "venv", str(tool.python.parent.parent)], check=True)
    install = [str(tool.python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *tool.packages, "--editable", str(HERE.parent)], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=list(TOOLS))
    make(parser.parse_args().tool)
