"""The teacher of a language run: a Hugging Face folder or a GGUF file, and its tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import RecipeError, TeacherError
from tutelage.files import sha256_file
from tutelage.recipe import Recipe
from tutelage.students.decoder import KINDS, Decoder, decoder_of, unlike
from tutelage.teach.gguf_file import open_gguf
from tutelage.teach.hf_folder import (
    check_weights,
    checked,
    load_model,
    local_only,
    open_transformers,
    quiet,
    read_config,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A decoder with its tokenizer; `key` is the hash of the files that they came from."""

    decoder: Decoder
    tokenizer: Any
    name: str
    key: str


def open_source(recipe: Recipe) -> Source:
    """Open the recipe's teacher from disk.

    Raises `RecipeError` where there is none, `TeacherError` or `StudentError` where it cannot be
    used.
    """
    given = recipe.teacher
    if given.source is None or given.fit:
        raise RecipeError(
            "teacher: a language model is not trained on the spot; name a Hugging Face folder or a "
            "GGUF file in 'source'"
        )
    path = Path(given.source)
    if not path.exists():
        raise TeacherError(
            f"there is no teacher at '{path}'; name a Hugging Face folder or a GGUF file"
        )
    network, tokenizer = _opened(path)
    return Source(
        decoder=decoder_of(network), tokenizer=tokenizer, name=str(path), key=_files_hash(path)
    )


def _opened(path: Path) -> tuple[Any, Any]:
    if path.is_file():
        return open_gguf(path)
    config = read_config(path, trust_code=False)
    if config["model_type"] not in KINDS:
        raise TeacherError(
            f"the teacher '{path}': {unlike(config['model_type'])}; for classes of texts use "
            "task: text"
        )
    check_weights(path)
    library = open_transformers(path)
    options = local_only(False)
    with quiet(library):
        known = checked(path, lambda: library.AutoConfig.from_pretrained(path, **options))
        network = load_model(path, library.AutoModelForCausalLM, known, options)
        tokenizer = checked(path, lambda: library.AutoTokenizer.from_pretrained(path, **options))
    return network, tokenizer


def _files_hash(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if path.is_dir():
        files += [f for f in (path / "config.json", path / "tokenizer.json") if f.is_file()]
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
