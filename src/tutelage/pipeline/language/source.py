"""The models of a language run: Hugging Face folders or GGUF files, and their tokenizers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.errors import RecipeError, StudentError, TeacherError
from tutelage.files import sha256_file
from tutelage.losses.language_inside import apart_inside
from tutelage.losses.language_spans import apart_spans
from tutelage.losses.language_terms import LANGUAGE_LOSSES
from tutelage.recipe import Recipe
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.tasks.causal_lm.spans import bytes_of_tokens
from tutelage.teach.decoder_folder import open_decoder, open_tokenizer
from tutelage.teach.gguf_file import open_gguf

_ALIKE = "distill: {losses: {forward_kl: 1.0, token_cross_entropy: 1.0}}"
_APART = "distill: {losses: {uld: 1.0, token_cross_entropy: 1.0}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A decoder with its tokenizer; `key` is the hash of the files that they came from.

    Of a teacher, `student` is the one that the recipe names, if it does, and `apart` says that the
    two have tokenizers of their own.
    """

    decoder: Decoder
    tokenizer: Any
    name: str
    key: str
    student: Source | None = None
    apart: bool = False

    @property
    def learner(self) -> Source:
        """What students are made of: the one that is named, else the teacher to be sliced."""
        return self.student or self


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
    return _source(path)


def open_both(recipe: Recipe) -> Source:
    """Open the teacher, and the student in `student.source` where the recipe has one.

    Raises as `open_source`, and `RecipeError` or `DataError` where they cannot be taught together.
    """
    teacher, given = open_source(recipe), recipe.student.source
    if given is None:
        return teacher
    path = Path(given)
    if not path.exists():
        raise RecipeError(
            f"student.source: there is no language model at '{path}'; name a Hugging Face folder or"
            " a GGUF file"
        )
    try:
        student = _source(path)
    except TeacherError as error:  # whoever reads a folder takes it for a teacher's
        said = str(error).replace("the teacher", "the model")
        raise StudentError(f"student.source: {said}") from None
    apart = teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab()
    found = replace(teacher, student=student, apart=apart)
    _check_named(recipe, found)
    return found


def refuse_named(recipe: Recipe, option: str) -> None:
    """Refuse what is about many slices where the recipe names one student."""
    if recipe.student.source is not None:
        raise RecipeError(
            f"{option} compares slices of the teacher, and student.source names one student: leave "
            "the option out, or remove the key"
        )


def _check_named(recipe: Recipe, teacher: Source) -> None:
    """Refuse losses that the two tokenizers, or layers of another network, cannot have."""
    weights = dict.fromkeys(recipe.distill.losses, 0.0)
    tokens, spans = apart_spans(weights)
    _, inside = apart_inside(weights)
    if inside:
        raise RecipeError(
            f"distill.losses: {next(iter(inside))} pairs the layers of a slice with those that "
            "they were, and student.source names another network; remove the loss"
        )
    if spans and not teacher.apart:
        raise RecipeError(
            "distill.losses: uld is for tokenizers that differ, and those of teacher and student "
            f"are the same: write {_ALIKE}, which says more"
        )
    compared = [name for name in tokens if LANGUAGE_LOSSES[name].tempered]
    if teacher.apart and (compared or not spans):
        raise RecipeError(
            f"student '{teacher.learner.name}' and teacher '{teacher.name}' have tokenizers that "
            f"differ, so their next tokens cannot be compared: write {_APART}, which compares "
            "spans of equal text (docs/recipe.md)"
        )
    if teacher.apart and recipe.language.own is not None:
        raise RecipeError(
            "language.on_policy: the teacher judges single tokens of the student, and their "
            "tokenizers differ; remove the key"
        )
    if teacher.apart and recipe.language.rehearse:
        raise RecipeError(
            "language.rehearse: the teacher writes in its own tokens, and the student has others; "
            "remove the key"
        )
    if teacher.apart:
        for each in (teacher, teacher.learner):
            bytes_of_tokens(each.tokenizer)


def _source(path: Path) -> Source:
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
