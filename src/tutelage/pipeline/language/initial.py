"""A first recipe for a language model, from a look at its files and at the texts or chats."""

from __future__ import annotations

import json
import tempfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.devices import Device, load_device
from tutelage.devices.gguf_sizes import bytes_a_token
from tutelage.devices.llama_cpp import DecoderSize, predict_tokens_per_s
from tutelage.devices.profile import device_limits
from tutelage.export.gguf import gguf_file_bytes
from tutelage.pipeline.language.source import Source, open_source
from tutelage.pipeline.paths import full_path, path_from
from tutelage.plan.refusal import amount, name_of
from tutelage.recipe import Recipe
from tutelage.recipe_language import LANGUAGE
from tutelage.students.decoders.network import KINDS, DecoderSpec
from tutelage.students.decoders.sizes import parameters, shapes_of
from tutelage.tasks.causal_lm.files import find_files
from tutelage.tasks.causal_lm.reading import Document, Findings, documents
from tutelage.tasks.causal_lm.tokens import Writer
from tutelage.units import format_quantity

_LENGTHS = (64, 128, 256, 512, 1024)  # tokens a sequence; more costs memory and is rarely read
_WHOLE = 0.95  # of the documents that a sequence is to hold whole
_SEQUENCES = 8  # at least of these in the data, or the next shorter length
_PASSES, _LEAST, _MOST = 3, 100_000, 5_000_000  # over the data; tokens to teach on
_SHARE = 0.6  # of the teacher's file, as a first budget
_FORMAT = "q8_0"
_USER = "\x02"


@dataclass(slots=True, kw_only=True)
class Looked:
    """What the data holds, in the teacher's tokens; `systems` are hashes of system prompts."""

    lengths: array[int] = field(default_factory=lambda: array("q"))
    chats: int = 0
    with_system: int = 0
    learned: int = 0
    systems: set[int] = field(default_factory=lambda: set[int]())
    used: set[int] = field(default_factory=lambda: set[int]())

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(self.lengths)


def writes_texts(teacher: str) -> bool:
    """Say whether a path holds a language model: a GGUF file, or the folder of a decoder."""
    path = Path(teacher).expanduser()
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        named = config.get("architectures") or []
        return any(str(name).endswith("ForCausalLM") for name in named) or (
            not named and config.get("model_type") in KINDS
        )
    except (OSError, ValueError, AttributeError, TypeError):  # whoever opens it says what is wrong
        return False


def initial_language(teacher: str, data: str, *, folder: Path, device: str) -> str:
    """Read the texts, open the teacher once, and return a commented recipe for both.

    Paths in it are relative to `folder`. Raises the errors of reading either.
    """
    given = {"source": full_path(teacher)}
    recipe = Recipe.parse(
        {"task": LANGUAGE, "data": {"train": full_path(data)}, "teacher": given, "device": device}
    )
    profile, source = load_device(device), open_source(recipe)
    looked = look(full_path(data), source.tokenizer)
    return _written(looked, source, profile, path_from(teacher, folder), path_from(data, folder))


def look(data: str, tokenizer: Any) -> Looked:
    """Go through all documents once; raises `DataError` as reading them does."""
    writer, found = Writer(tokenizer), Looked()
    for files in find_files(data).values():
        findings = Findings()
        for document, ids, learned in writer.write(documents(files, findings)):
            found.lengths.append(len(ids))
            found.learned += int(learned.sum())
            found.used.update(np.unique(ids).tolist())
            _note_chat(found, document)
        findings.notes(data)
    return found


def _note_chat(found: Looked, document: Document) -> None:
    if not document.messages:
        return
    found.chats += 1
    first = document.messages[0]
    if first.role == "system":
        found.with_system += 1
        found.systems.add(hash(first.content))


def fitting_length(looked: Looked, context: int) -> int:
    """Return the fewest tokens a sequence that hold nearly all documents whole, and fill some."""
    wanted = float(np.quantile(np.asarray(looked.lengths), _WHOLE))
    able = [n for n in _LENGTHS if n <= context and n * _SEQUENCES <= looked.tokens]
    able = able or [min(_LENGTHS[0], context)]
    return next((n for n in able if n >= wanted), able[-1])


def _written(looked: Looked, source: Source, device: Device, teacher: str, data: str) -> str:
    lines = [
        *(f"# {line}" for line in summary(looked, source.tokenizer)),
        "# Relative paths start at this file. Every key: tutelage schema",
        f"task: {LANGUAGE}",
        "seed: 0",
        *_data_lines(looked, source.decoder.spec, teacher, data),
        *_budget_lines(looked, source, device),
        *_lesson_lines(looked),
    ]
    return "\n".join(lines) + "\n"


def _context(spec: DecoderSpec) -> int:
    return int(spec.config.get("max_position_embeddings", _LENGTHS[-1]))


def _data_lines(looked: Looked, spec: DecoderSpec, teacher: str, data: str) -> list[str]:
    length = fitting_length(looked, _context(spec))
    longer = sum(n > length for n in looked.lengths)
    cut = f"; {longer:,} documents are longer and cut into windows" if longer else ""
    unused = spec.vocabulary - len(looked.used)
    return [
        "data:",
        f"  train: {data}",
        "  validation: 0.1        # share of the training documents to choose by",
        "  # test: path           # unset: a fifth is set aside, and read once at the end",
        f"  length: {_beside(length)}# tokens a sequence{cut}; the teacher reads "
        f"{_context(spec):,}",
        f"  vocabulary: pruned     # whole: keep {unused:,} of {spec.vocabulary:,} tokens, which "
        "no text uses",
        f"teacher:                 # {parameters(spec):,} parameters: {spec.kind}, {spec.layers} "
        f"layers of {spec.hidden} numbers a token",
        f"  source: {teacher}",
    ]


def _budget_lines(looked: Looked, source: Source, device: Device) -> list[str]:
    spec, whole, limits = source.decoder.spec, _file_bytes(source), device_limits(device)
    own = " and ".join(f"{name_of(x)} {amount(x, x.value)}" for x in limits)
    most = min(x.value for x in limits if x.metric == "storage_bytes")
    length = fitting_length(looked, _context(spec))
    return [
        f"device: {device.name}",
        f"budget:                  # the teacher's own {_FORMAT} file: "
        f"{format_quantity(whole, 'B')}; the device: {own}",
        f"  storage: {format_quantity(min(_SHARE * whole, most), 'B')}",
        "  # memory: 500 MB       # weights, keys and values of a whole sequence, work",
        f"  # speed: 20 token/s    # at least, while answering{_speed(spec, device, length)}",
        "  # energy: 500 mJ       # a token",
    ]


def _lesson_lines(looked: Looked) -> list[str]:
    tokens = _rounded(min(_MOST, max(_LEAST, _PASSES * looked.learned)))
    answers = "  answers_only: true     # of chats: learn what the assistant says, read the rest"
    return [
        "distill:",
        "  losses:                # weight, or {weight: 1, option: value}; all in nats a token",
        "    forward_kl: 1.0      # what the teacher says of every next token",
        "    token_cross_entropy: 1.0   # what the text says",
        "  # rate: 0.0005",
        "language:",
        f"  tokens: {_beside(tokens)}# to teach on: {tokens / max(1, looked.learned):.2g} times "
        "what the data holds",
        "  format: auto           # of the GGUF file: q8_0, q5_1 or q4_1, by what is said best",
        *([answers] if looked.chats else []),
        "  # recompute: true      # where memory is short: a third slower to teach",
        '  # prompts: ["What can you do?"]   # what both answer in the report',
    ]


def summary(looked: Looked, tokenizer: Any) -> list[str]:
    """Return what was seen of the data, a line each."""
    count, texts = len(looked.lengths), len(looked.lengths) - looked.chats
    what = [f"{looked.chats:,} chats"] * bool(looked.chats) + [f"{texts:,} texts"] * bool(texts)
    lines = [
        f"{' and '.join(what)}: {looked.tokens:,} tokens, {looked.learned:,} of them learned; "
        f"the longest has {max(looked.lengths):,}, one in two {_median(looked):,} or fewer",
    ]
    if looked.chats:
        said = f"{looked.with_system:,} of {looked.chats:,} chats begin with a system prompt"
        said += f" ({len(looked.systems):,} different)" if looked.systems else ""
        lines.append(f"{said}; {template_note(tokenizer)}")
    elif tokenizer.chat_template is not None:
        lines.append("the tokenizer has a chat template, and the data holds no chats")
    if count < 100:
        lines.append(f"{count} documents are few: the student may learn them by heart")
    return lines


def template_note(tokenizer: Any) -> str:
    """Say what the chat template does where a chat begins without a system prompt."""
    user = {"role": "user", "content": _USER}
    try:
        plain, empty = (
            tokenizer.apply_chat_template(turns, tokenize=False).partition(_USER)[0]
            for turns in ([user], [{"role": "system", "content": ""}, user])
        )
    except Exception:  # a template can raise anything, and most that do know no system prompts
        return "the chat template takes no system prompt"
    if len(plain) > len(empty):
        return "the chat template writes one of its own where there is none"
    return "the chat template writes none of its own"


def _median(looked: Looked) -> int:
    return int(np.median(np.asarray(looked.lengths)))


def _file_bytes(source: Source) -> int:
    """Return the bytes of the teacher's own file in the format that ships."""
    spec = source.decoder.spec
    with tempfile.TemporaryDirectory(prefix="tutelage-init-") as folder:
        source.tokenizer.save_pretrained(folder)
        return gguf_file_bytes(spec.config, shapes_of(spec), Path(folder), quantization=_FORMAT)


def _speed(spec: DecoderSpec, device: Device, length: int) -> str:
    read = bytes_a_token(shapes_of(spec), _FORMAT, tied=spec.tied)
    rate = predict_tokens_per_s(DecoderSize.of(spec.config), read, device, filled=length // 2)
    return "" if rate is None else f"; the teacher is predicted to say {rate.value:.3g}"


def _rounded(tokens: int) -> int:
    """Round up to two digits."""
    step = 10 ** max(0, len(str(tokens)) - 2)
    return -(-tokens // step) * step


def _beside(value: int) -> str:
    return str(value).ljust(15)
