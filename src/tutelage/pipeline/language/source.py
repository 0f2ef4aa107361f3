"""The teacher of a language run: a Hugging Face folder or a GGUF file, and its tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import RecipeError, TeacherError
from tutelage.files import sha256_file
from tutelage.recipe import Recipe
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.teach.decoder_folder import open_decoder, open_tokenizer
from tutelage.teach.gguf_file import open_gguf


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
    decoder, tokenizer = _opened(path)
    return Source(decoder=decoder, tokenizer=tokenizer, name=str(path), key=_files_hash(path))


def _opened(path: Path) -> tuple[Decoder, Any]:
    if path.is_file():
        network, tokenizer = open_gguf(path)
        return decoder_of(network), tokenizer
    return open_decoder(path), open_tokenizer(path)


def _files_hash(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if path.is_dir():
        files += [f for f in (path / "config.json", path / "tokenizer.json") if f.is_file()]
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
