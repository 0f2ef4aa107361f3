"""A language model's Hugging Face folder on disk: its network and its tokenizer.

Nothing is downloaded, and no code is run that stands beside the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import StudentError, TeacherError
from tutelage.students.decoders.network import KINDS, Decoder, decoder_of, unlike
from tutelage.teach.hf_folder import (
    check_weights,
    checked,
    load_model,
    local_only,
    open_transformers,
    quiet,
    read_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_decoder(folder: str | Path) -> Decoder:
    """Load config.json and safetensors, as float32, in evaluation mode.

    Raises `TeacherError` for a folder that is incomplete, needs pickle or foreign code, or holds
    another kind of network; `MissingExtra` without transformers.
    """
    path = Path(folder)
    config = read_config(path, trust_code=False)
    if config["model_type"] not in KINDS:
        raise TeacherError(f"the teacher '{path}': {unlike(config['model_type'])}")
    check_weights(path)
    transformers, options = open_transformers(path), local_only(trust_code=False)
    with quiet(transformers):
        known = checked(path, lambda: transformers.AutoConfig.from_pretrained(path, **options))
        network = load_model(path, transformers.AutoModelForCausalLM, known, options)
    try:
        return decoder_of(network)
    except StudentError as error:
        raise TeacherError(f"the teacher '{path}': {error}") from None


def open_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder as its tokenizer.json says, whatever its class.

    Raises `TeacherError` without that file.
    """
    path = Path(folder)
    if not (path / "tokenizer.json").is_file():
        raise TeacherError(
            f"the folder '{path}' has no tokenizer.json. Copy it there from where the weights came "
            "from"
        )
    transformers, options = open_transformers(path), local_only(trust_code=False)
    with quiet(transformers):
        kind = transformers.PreTrainedTokenizerFast
        return checked(path, lambda: kind.from_pretrained(path, **options))
