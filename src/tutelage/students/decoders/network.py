"""Language models that write texts, of the Llama kind, as students: a config and its weights.

Covers the decoders of transformers that are built alike (see `KINDS`): attention of grouped queries
and a gated feed-forward part in each layer, RMS norms, rotary positions. It does not cover experts,
fused projections, layers without positions, or code that comes with weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.errors import MissingExtra, StudentError
from tutelage.files import write_json, write_tensors
from tutelage.passes import reason
from tutelage.students.families.knobs import check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
SIZES = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "inner": "intermediate_size",
    "heads": "num_attention_heads", "groups": "num_key_value_heads", "head_size": "head_dim",
    "vocabulary": "vocab_size",
}  # fmt: skip
_SPOKEN = ("bos_token_id", "eos_token_id", "pad_token_id")
ENDS = (*_SPOKEN, "unk_token_id")  # keys of a config that name tokens
_LARGEST = {
    "layers": 1_024, "hidden": 65_536, "inner": 1_048_576, "heads": 1_024, "groups": 1_024,
    "head_size": 4_096, "vocabulary": 10_000_000,
}  # fmt: skip
_EVEN = ("llama", "gemma", "gemma2")  # whose configs want heads to divide the hidden size
# Of a run of the library or of a file, not of the network.
_NOISE = (
    "transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config",
    "id2label", "label2id", "problem_type", "output_hidden_states", "output_attentions",
    "return_dict", "chunk_size_feed_forward", "use_cache",
)  # fmt: skip
_EMBEDDING, _HEAD = "network.model.embed_tokens.weight", "network.lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Knobs of one network: its Hugging Face config, plain JSON, complete (see `spec_of`).

    Raises `ValueError` for another kind of network or an impossible size.
    """

    config: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.config, dict):
            raise ValueError(f"config is {self.config!r}; write the keys of a config.json")
        if self.kind not in KINDS:
            raise ValueError(unlike(self.kind))
        missing = [key for key in SIZES.values() if key not in self.config]
        if missing:
            raise ValueError(f"config has no {missing[0]}; write every size of the network")
        check_whole(self, _LARGEST)
        if self.heads % self.groups:
            raise ValueError(f"{self.groups} key/value groups do not share {self.heads} heads")
        if self.kind in _EVEN and self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}; {self.heads} heads do not divide it evenly")
        if self.config.get("use_bidirectional_attention"):
            raise ValueError("it reads what comes after a token, so it is no decoder of texts")
        types = self.config.get("layer_types")
        if types is not None and len(types) != self.layers:
            raise ValueError(f"layer_types names {len(types)} layers and there are {self.layers}")

    @property
    def kind(self) -> str:
        """The name of the architecture: llama, for instance."""
        return str(self.config.get("model_type"))

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.config["num_hidden_layers"]

    @property
    def hidden(self) -> int:
        """Numbers a token between layers."""
        return self.config["hidden_size"]

    @property
    def inner(self) -> int:
        """Units of a layer's feed-forward part."""
        return self.config["intermediate_size"]

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.config["num_attention_heads"]

    @property
    def groups(self) -> int:
        """Key and value heads of a layer; each serves as many query heads as any other."""
        return self.config["num_key_value_heads"]

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        return self.config["head_dim"]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding and of the head."""
        return self.config["vocab_size"]

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.config.get("tie_word_embeddings"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which layers of the first network a slice's layers were, and which numbers of a token."""

    layers: tuple[int, ...]
    numbers: tuple[int, ...]

    def at(self, layers: Sequence[int], numbers: Sequence[int]) -> Origin:
        """Return the origin of a slice that keeps these of the slice's own."""
        return Origin(
            layers=tuple(self.layers[i] for i in layers),
            numbers=tuple(self.numbers[i] for i in numbers),
        )


def unlike(kind: str) -> str:
    """Say that a network of this kind is not covered, and what is."""
    return f"a network of type '{kind}' is not covered: use one of {', '.join(KINDS)}"


def spec_of(config: Any) -> DecoderSpec:
    """Return the spec of a transformers config, or of a config.json's data.

    What the data leaves out is filled in by the library. Raises `StudentError` for a kind of
    network that is not covered, or an impossible config.
    """
    if isinstance(config, Mapping):
        config = _library_config(dict(config))
    data = json.loads(json.dumps(config.to_dict(), default=str))
    data = {k: v for k, v in data.items() if k not in _NOISE and not k.startswith("_")}
    if data.get("head_dim") is None and data.get("model_type") in KINDS:
        data["head_dim"] = data["hidden_size"] // data["num_attention_heads"]
    try:
        return DecoderSpec(config=data)
    except ValueError as error:
        raise StudentError(f"the language model cannot be a student: {error}") from None


class Decoder(nn.Module):
    """A causal language model of transformers, `network`, built from a spec or given ready.

    A given network is taken as it is, not copied. Of a tied network the state holds the embedding
    once. `origin` is the network itself unless it was sliced. Raises `StudentError` where
    transformers cannot build it.
    """

    def __init__(self, spec: DecoderSpec, network: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.origin = Origin(layers=tuple(range(spec.layers)), numbers=tuple(range(spec.hidden)))
        self.network: Any = _built(spec) if network is None else network
        self.register_state_dict_post_hook(_once)
        self.register_load_state_dict_pre_hook(_twice)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Return logits."""
        return self.network(input_ids=ids, use_cache=False).logits

    def states(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Return what the head reads of each token, after the last norm."""
        return self.body(input_ids=ids, use_cache=False).last_hidden_state

    def decision(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Return logits from what the head reads."""
        logits = self.network.get_output_embeddings()(states)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @property
    def body(self) -> Any:
        """The network below the head."""
        return self.network.base_model

    @property
    def layers(self) -> Any:
        """The layers in their order, a ModuleList."""
        return self.body.layers

    @property
    def head(self) -> nn.Parameter:
        """The weights of the head, [v, d]; a tied network's embedding."""
        return self.network.get_output_embeddings().weight

    @property
    def cap(self) -> float | None:
        """What logits are bent to stay below, c * tanh(logit / c), as Gemma 2 does, or None."""
        return self.spec.config.get("final_logit_softcapping")


def decoder_of(network: PreTrainedModel) -> Decoder:
    """Return a network of transformers as a decoder, in evaluation mode; raises `StudentError`."""
    return Decoder(spec_of(network.config), network).eval()


def filled(spec: DecoderSpec, state: dict[str, Tensor]) -> Decoder:
    """Return a decoder of these weights, of their type and where they are, in evaluation mode."""
    made = Decoder(spec)
    made.load_state_dict(state)
    first = next(iter(state.values()))
    return made.to(device=first.device, dtype=first.dtype).eval()


def save_folder(decoder: Decoder, folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """Write what transformers opens: config, weights as safetensors, tokenizer, chat template.

    Returns the files. Raises `StudentError` where the tokenizer knows tokens that the network does
    not, and `DiskError` where they cannot be written.
    """
    most = max(tokenizer.get_vocab().values())
    if most >= decoder.spec.vocabulary:
        raise StudentError(
            f"the tokenizer goes up to token {most} and the network knows "
            f"{decoder.spec.vocabulary}. Save it with the tokenizer that was pruned with it"
        )
    dtype = str(decoder.head.dtype).removeprefix("torch.")
    named = {"architectures": [type(decoder.network).__name__], "dtype": dtype}
    write_json(folder / "config.json", {**decoder.spec.config, **named})
    ends = {key: decoder.spec.config.get(key) for key in _SPOKEN}
    ends = {key: ends[key] for key in ends if ends[key] is not None}
    write_json(folder / "generation_config.json", ends)
    state = {name.removeprefix("network."): x for name, x in decoder.state_dict().items()}
    write_tensors(folder / "model.safetensors", state)
    tokenizer.save_pretrained(folder)
    return sorted(folder.iterdir())


def _library_config(data: dict[str, Any]) -> Any:
    kind = data.pop("model_type", None)
    if kind not in KINDS:
        raise StudentError(unlike(str(kind)))
    try:
        return library().AutoConfig.for_model(kind, **data)
    except Exception as cause:  # checked by the library, with errors of its own
        raise StudentError(f"the config cannot be read: {reason(cause)}") from None


def _built(spec: DecoderSpec) -> Any:
    data = copy.deepcopy(spec.config)
    try:
        config = library().AutoConfig.for_model(data.pop("model_type"), **data)
        return library().AutoModelForCausalLM.from_config(config).float()
    except MissingExtra:
        raise
    except Exception as cause:  # checked by the library, with errors of its own
        raise StudentError(f"the language model cannot be built: {reason(cause)}") from cause


def library() -> Any:
    """Return transformers; raises `MissingExtra` where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise MissingExtra("A language model", "hf") from None
    return transformers


def _once(module: Decoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if module.spec.tied:
        state.pop(prefix + _HEAD, None)


def _twice(module: Decoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix + _EMBEDDING not in state:  # named as in a Hugging Face folder
        for name in [name for name in state if name.startswith(prefix)]:
            state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)
    if module.spec.tied and prefix + _EMBEDDING in state:
        state[prefix + _HEAD] = state[prefix + _EMBEDDING]
