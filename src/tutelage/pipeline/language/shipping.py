"""What ships of a language model: one GGUF file, and the Hugging Face folder of the student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.export.gguf import write_gguf
from tutelage.files import hash_json, sha256_file, write_json
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.teaching import Taught
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Artifact
from tutelage.run import Run
from tutelage.students.decoders.network import save_folder
from tutelage.students.spec import StudentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """The file, and the folder it was written from."""

    artifact: Artifact
    folder: Path


def ship(
    recipe: Recipe, material: LanguageMaterial, taught: Taught, run: Run, progress: Progress
) -> Shipped:
    """Write `student/` and the GGUF file, once a run."""
    form, folder = taught.form, run.file("student")
    path = run.file(f"artifacts/student-{form}.gguf")
    steps = [run.manifest["stages"][f"teach-{taught.result['steps']}"]["files"]]

    def work() -> tuple[Any, list[Path]]:
        progress.say(f"export: {path.name}")
        files = save_folder(taught.student, folder, material.tokenizer)
        spec = StudentSpec(family="decoder", knobs=taught.student.spec)
        write_json(folder / "spec.json", spec.to_json())
        state = taught.student.state_dict()
        tensors = {name.removeprefix("network."): x for name, x in state.items()}
        path.parent.mkdir(exist_ok=True)
        write_gguf(path, taught.student.spec.config, tensors, folder, quantization=form)
        artifact = Artifact(
            path=path.relative_to(run.path).as_posix(),
            runtime="llama.cpp",
            precision=form,
            bytes=path.stat().st_size,
            sha256=sha256_file(path),
        )
        return artifact.to_json(), [*files, folder / "spec.json", path]

    record = run.stage("export", hash_json([steps, form]), work)
    return Shipped(artifact=Artifact.from_json(record.result), folder=folder)
