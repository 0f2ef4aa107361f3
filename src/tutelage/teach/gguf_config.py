"""Keys of a GGUF file as a transformers config: the way back from `export.gguf_config`."""

from __future__ import annotations

from typing import Any

from tutelage.errors import CorruptFileError, TeacherError
from tutelage.export.gguf_config import ROPE_FACTORS, llama3_factors, wanted_shapes
from tutelage.export.gguf_names import Architecture, names_of, of_name
from tutelage.teach.gguf_header import GgufHeader, shown

_SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_LLAMA3 = (1.0, 4.0, 8192.0)  # low, high, first context: of every Llama 3.1 to 3.3
_MISTRAL = {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None,
}  # fmt: skip
_CLOSE = 1e-3
_LARGEST = 1 << 24


def architecture_in(header: GgufHeader) -> Architecture:
    """Return what the file holds; raises `TeacherError` for what is not known here."""
    name = header.metadata.get("general.architecture")
    found = of_name(name)
    if found is None:
        raise TeacherError(
            f"'{header.path}' holds a network of type '{shown(name)}', which is not known here. "
            f"Use one of {names_of('name')}"
        )
    return found


def config_in(header: GgufHeader) -> dict[str, Any]:
    """Return the network's config, checked against the shapes of the tensors.

    Raises `TeacherError` for parts that are not known here, and `CorruptFileError` for keys that
    are missing or do not fit the tensors.
    """
    arch, keys = architecture_in(header), _Keys(header)
    config: dict[str, Any] = {"model_type": arch.model_type, "architectures": [arch.network]}
    config |= {name: keys.size(key) for name, key in _SIZES.items()}
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    if layers > len(header.tensors):
        raise keys.wrong("block_count")
    config["num_key_value_heads"] = keys.size("attention.head_count_kv", heads)
    config["head_dim"] = keys.size("attention.key_length", config["hidden_size"] // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.size(key, config["head_dim"]) != config["head_dim"]:
            raise _unknown(header, f"{arch.name}.{key} differs from the size of a head")
    config["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon")
    config |= _rope(header, keys, config["head_dim"]) | _activation(arch)
    if arch.name == "gemma2":
        config |= _gemma2(keys, config["head_dim"])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    tensors = header.tensors
    config["attention_bias"] = "blk.0.attn_output.bias" in tensors
    if arch.name == "llama":
        config["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
        if config["hidden_size"] % heads and not config["attention_bias"] | config["mlp_bias"]:
            config |= _MISTRAL  # transformers opens no such Llama
    config["vocab_size"] = _rows(header)
    config |= {name: keys.token(key, config["vocab_size"]) for name, key in _IDS.items()}
    _check_shapes(header, arch, config)
    return config


class _Keys:
    """Keys of the file's architecture, of the type that is asked for."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._prefix = str(header.metadata["general.architecture"])

    def get(self, key: str) -> Any:
        return self._header.metadata.get(f"{self._prefix}.{key}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, list) and value and len(set(map(str, value))) == 1:
            value = value[0]  # the same in every layer
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST:
            raise self.wrong(key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise self.wrong(key)
        return float(f"{value:.7g}")  # as it was before it became float32

    def token(self, name: str, rows: int) -> int | None:
        value = self._header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and 0 <= value < rows else None

    def wrong(self, key: str) -> CorruptFileError:
        said = shown(self.get(key), 40)
        return CorruptFileError(
            f"'{self._header.path}' says {self._prefix}.{key}: {said}, which cannot be. Copy it "
            "again from where it came from, or use a network whose layers are all alike"
        )


def _rows(header: GgufHeader) -> int:
    place = header.tensors.get("token_embd.weight")
    if place is None or len(place.shape) != 2:
        raise CorruptFileError(
            f"'{header.path}' has no token embedding, so it is no whole network. Copy it again, "
            "all its parts if it came in several"
        )
    return place.shape[0]


def _activation(arch: Architecture) -> dict[str, Any]:
    key = "hidden_activation" if arch.name == "gemma2" else "hidden_act"
    return {key: arch.activation}


def _gemma2(keys: _Keys, head: int) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": head,
        "sliding_window": keys.size("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def _rope(header: GgufHeader, keys: _Keys, head: int) -> dict[str, Any]:
    base, kind = keys.number("rope.freq_base", 10000.0), keys.get("rope.scaling.type")
    options: dict[str, Any] = {"rope_theta": base, "rope_type": "default"}
    if kind == "linear":
        options |= {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}
    elif kind not in (None, "none"):
        raise _unknown(header, f"positions are scaled by '{shown(kind)}'")
    elif ROPE_FACTORS in header.tensors:
        options |= _llama3(header, head, base)
    scaling = {k: v for k, v in options.items() if k != "rope_theta"}
    plain = scaling["rope_type"] == "default"
    # The second and third keys are for transformers before version 5.
    own = {"rope_parameters": options, "rope_theta": base}
    return own if plain else {**own, "rope_scaling": scaling}


def _llama3(header: GgufHeader, head: int, base: float) -> dict[str, Any]:
    """Find the options that give the stored factors; the file does not name them."""
    from tutelage.teach.gguf_tensors import read_rows

    stored = read_rows(header, header.tensors[ROPE_FACTORS]).ravel().tolist()
    low, high, context = _LLAMA3
    factor = round(max(stored), 4)
    made = llama3_factors(head, base, factor, low, high, context) if factor > 0 else []
    if len(made) != len(stored) or any(
        abs(a - b) > _CLOSE * b for a, b in zip(stored, made, strict=True)
    ):
        raise _unknown(header, "its positions are scaled otherwise than in Llama 3")
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": int(context),
    }  # fmt: skip


def _check_shapes(header: GgufHeader, arch: Architecture, config: dict[str, Any]) -> None:
    for name, shape in wanted_shapes(config).items():
        stored = arch.stored_name(name) or name
        place = header.tensors.get(stored)
        if place is None or place.shape != shape:
            has = f"is {list(place.shape)}" if place else "is missing"
            raise CorruptFileError(
                f"'{header.path}' does not hold what it says: '{stored}' {has} where {list(shape)} "
                "is due. Copy it again from where it came from"
            )


def _unknown(header: GgufHeader, what: str) -> TeacherError:
    return TeacherError(
        f"'{header.path}' cannot be a teacher: {what}. Use the network's Hugging Face folder"
    )
