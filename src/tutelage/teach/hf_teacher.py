"""A Hugging Face encoder's folder on disk as a teacher of texts.

Covers encoders that read a whole text at once (BERT, RoBERTa, DistilBERT, ModernBERT and their
like), with a classifier of their own or a new head. It does not cover decoders, or models that
write text. Nothing is downloaded, and no code is run that stands beside the weights unless trusted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.errors import TeacherError
from tutelage.passes import fastest_device
from tutelage.students.families.encoder import masked_mean
from tutelage.teach.hf_folder import (
    check_weights,
    checked,
    labels_of,
    load_model,
    local_only,
    open_transformers,
    quiet,
    read_config,
)

_CLOSE = 1e-3  # of the largest number: rounding is far below, another token far above
_NEW_HEAD = "To put a new head on it: teacher.fit: head, or fit: all to train the whole of it"


class HfEncoder(nn.Module):
    """A Hugging Face encoder that reads token ids, and its head.

    `body` is a classifier, or an encoder when `head` is given (it reads the mean over the tokens
    that are no `pad`). Token ids are the rows of `embedding`. `labels` are the classes' names that
    came with the weights, if any did.
    """

    def __init__(self, body: nn.Module, *, pad: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head, self.pad = body, head, pad
        self.labels: tuple[str, ...] = () if head is not None else labels_of(body.config)
        self._offset, self._longest = _positions(body)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b classes"]:
        """Return logits; raises `TeacherError` for texts longer than the encoder can read."""
        if self._longest is not None and ids.shape[1] > self._longest:
            raise TeacherError(
                f"the teacher reads at most {self._longest} tokens and these texts have "
                f"{ids.shape[1]}. Cut them: data.length: {self._longest}"
            )
        output = self.run(ids)
        if self.head is None:
            return output.logits
        return self.head(masked_mean(output.last_hidden_state, ids.ne(self.pad).float()))

    @contextmanager
    def attention_for_training(self) -> Iterator[None]:
        """Write attention out while the encoder is trained on a processor.

        With dropout the fused one falls back to a slow path there: MiniLM in bf16, 32 texts of 128
        tokens, one core with AMX: 1.44 instead of 1.85 s a step.
        """
        usual = self.body.config._attn_implementation  # pyright: ignore
        if usual != "sdpa" or fastest_device().type != "cpu":
            yield
            return
        self.body.set_attn_implementation("eager")  # pyright: ignore
        try:
            yield
        finally:
            self.body.set_attn_implementation(usual)  # pyright: ignore

    def run(self, ids: Int[Tensor, "b t"]) -> Any:
        """Return what the body says of ids, as transformers' own output."""
        mask = ids.ne(self.pad)
        given = {"input_ids": ids, "attention_mask": mask.long()}
        if self._offset is not None:  # positions go by the pad's original number, not by ours
            given["position_ids"] = mask.long().cumsum(1) * mask + self._offset
        return self.body(**given, return_dict=True)

    def train(self, mode: bool = True) -> HfEncoder:
        """Set the mode; an encoder of which nothing is trained stays in evaluation mode."""
        super().train(mode)
        if not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        return self

    @property
    def encoder(self) -> nn.Module:
        """The part below the head."""
        return self.body.base_model if self.head is None else self.body  # pyright: ignore

    @property
    def embedding(self) -> Float[Tensor, "v h"]:
        """The token embedding, one row a token in use."""
        return self.body.get_input_embeddings().weight  # pyright: ignore

    @property
    def first_position(self) -> int:
        """The row of the position embedding that a text's first token reads."""
        return 0 if self._offset is None else self._offset + 1

    def extra_repr(self) -> str:
        """Return what decides the logits and stands in no tensor."""
        return f"pad={self.pad}, offset={self._offset}"


def from_hf_folder(
    path: Path,
    classes: int | None,
    *,
    kept: Int[np.ndarray, " v"] | None = None,
    pad: int = 0,
    trust_code: bool = False,
    fresh_head: bool = False,
) -> HfEncoder:
    """Load an encoder from `config.json` and safetensors in `path`, in evaluation mode.

    A classifier of `classes` classes (None: of any number) is taken whole; any other encoder gets a
    head with new weights (from torch's global random state) if `fresh_head`. `kept` are the
    original ids of the tokens in use: its embedding is cut to these rows, and ids, `pad` among
    them, count them. Raises
    `TeacherError` for a folder that is incomplete, needs pickle or foreign code (unless
    `trust_code`), is no encoder, or has other classes; `MissingExtra` without transformers.
    """
    path = Path(path)
    config = read_config(path, trust_code)
    check_weights(path)
    whole = is_classifier(config)
    transformers, options = open_transformers(path), local_only(trust_code)
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        known = checked(path, lambda: transformers.AutoConfig.from_pretrained(path, **options))
        _check_kind(path, known, trust_code and "auto_map" in config)
        whole = whole and classes in (None, known.num_labels)
        if not whole and not fresh_head:
            raise TeacherError(_no_classifier(path, config, known, classes))
        kind = "AutoModelForSequenceClassification" if whole else "AutoModel"
        body = load_model(path, getattr(transformers, kind), known, options)
    if not whole and getattr(body, "pooler", None) is not None:
        body.pooler = None  # it may have no weights, and nobody reads it
    _check_tokens(path, body, kept, pad)
    head = None if whole else _new_head(known, classes or known.num_labels)
    return _cut(path, HfEncoder(body, pad=pad, head=head).eval(), kept)


def parameters_to_fit(module: HfEncoder, what: Literal["head", "all"]) -> None:
    """Let the head alone, or everything, be trained: sets `requires_grad` of every parameter."""
    module.requires_grad_(True)
    if what == "head":
        module.encoder.requires_grad_(False)


def with_whole_vocabulary(
    module: HfEncoder, path: Path, *, kept: Int[np.ndarray, " v"], pad: int, trust_code: bool
) -> HfEncoder:
    """Return a copy of a teacher that reads the original ids: rows that were cut off are put back.

    They come from the folder `path`; `kept` are the original ids of the rows there are, and `pad`
    is the original one. torch's global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        before = from_hf_folder(path, 2, pad=pad, trust_code=trust_code, fresh_head=True)
    rows = before.embedding.detach().clone()
    made = copy.deepcopy(module)
    own = made.body.get_input_embeddings()  # pyright: ignore
    rows[torch.from_numpy(np.asarray(kept, np.int64))] = own.weight.detach().cpu()
    own.weight, own.num_embeddings = nn.Parameter(rows.to(own.weight.device)), len(rows)
    made.pad = pad
    return made.eval().requires_grad_(False)


# The folder ----------------------------------------------------------------------------------


def is_classifier(config: dict[str, Any]) -> bool:
    """Say whether a folder's config.json is that of a classifier of texts."""
    named = config.get("architectures")
    named = named if isinstance(named, list) else []
    return any(str(name).endswith("ForSequenceClassification") for name in named)


def _no_classifier(path: Path, config: dict[str, Any], known: Any, classes: int | None) -> str:
    if is_classifier(config):
        return (
            f"the teacher '{path}' decides among {known.num_labels} classes and the data has "
            f"{classes}. {_NEW_HEAD}"
        )
    return f"the teacher '{path}' is an encoder without a classifier. {_NEW_HEAD}"


def _check_kind(path: Path, config: Any, trusted: bool) -> None:
    """Refuse what is no encoder: a decoder would look for its last token by the pad's old id."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encoder = trusted or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not encoder or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise TeacherError(
            f"the teacher '{path}' is of type '{config.model_type}', which is no text encoder. Use "
            "one such as BERT, RoBERTa, DistilBERT or ModernBERT"
        )
    if config.problem_type in ("regression", "multi_label_classification"):
        raise TeacherError(
            f"the teacher '{path}' was made for {config.problem_type}, and a text has one class "
            "here. Use a classifier of single labels"
        )


# Loading -------------------------------------------------------------------------------------


def _check_tokens(path: Path, body: Any, kept: Int[np.ndarray, " v"] | None, pad: int) -> None:
    rows = len(body.get_input_embeddings().weight)
    if kept is not None:
        if not len(kept) or kept.min() < 0 or kept.max() >= rows:
            most = f"goes up to token {kept.max()}" if len(kept) else "has no token"
            raise TeacherError(
                f"the tokenizer {most} and the teacher '{path}' knows {rows} tokens. Use the "
                "tokenizer that came with it: data.tokenizer: FOLDER"
            )
        rows = len(kept)
    if not 0 <= pad < rows:
        raise TeacherError(
            f"the pad is token {pad} and there are {rows} tokens in use. Use the tokenizer that "
            "came with the teacher: data.tokenizer: FOLDER"
        )


def _cut(path: Path, network: HfEncoder, kept: Int[np.ndarray, " v"] | None) -> HfEncoder:
    """Cut the token embedding to the rows in use, so that ids need no table; look if it holds."""
    own = network.body.get_input_embeddings()  # pyright: ignore
    own.padding_idx = None  # in the original numbering; it only kept a row from learning
    if kept is None:
        return network
    rows = torch.from_numpy(np.asarray(kept).astype(np.int64))
    ids = torch.arange(min(8, len(rows))).expand(2, -1).clone()
    ids[1, len(rows) // 2 :] = network.pad
    mask = ids.ne(network.pad)
    with torch.no_grad():
        want = checked(path, lambda: network.body(rows[ids], attention_mask=mask.long())[0])
        own.weight, own.num_embeddings = nn.Parameter(own.weight.detach()[rows]), len(rows)
        got = checked(path, lambda: network.run(ids)[0])
    if network.head is not None:
        want, got = want[mask], got[mask]
    if not (want - got).abs().max() <= _CLOSE * want.abs().max():
        raise TeacherError(
            f"the teacher '{path}' goes by the original numbers of its tokens, so it cannot be cut "
            "to those in use. Try another encoder"
        )
    return network


def _new_head(config: Any, classes: int) -> nn.Sequential:
    rates = (getattr(config, n, None) for n in ("classifier_dropout", "hidden_dropout_prob"))
    head = nn.Linear(config.hidden_size, classes)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Dropout(next((r for r in rates if r is not None), 0.1)), head)


def _positions(body: nn.Module) -> tuple[int | None, int | None]:
    """Return the number before the first position if that is the pad's, and the most tokens."""
    for name, module in body.named_modules():
        if name.split(".")[-1] == "position_embeddings" and isinstance(module, nn.Embedding):
            if module.padding_idx is None:
                return None, module.num_embeddings
            return module.padding_idx, module.num_embeddings - module.padding_idx - 1
    return None, None
