"""Language models as students: specs, states and head, tied weights, files that others open."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from decoders import MORE, config, decoder, said, some_ids
from text_samples import bpe, refused

from tutelage.errors import TeacherError
from tutelage.files import read_tensors
from tutelage.students.decoders.network import (
    KINDS,
    Decoder,
    DecoderSpec,
    decoder_of,
    save_folder,
    spec_of,
)
from tutelage.students.decoders.sizes import shapes_of
from tutelage.students.spec import StudentSpec, load, save
from tutelage.teach.decoder_folder import open_decoder, open_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_spec_and_weights_rebuild_the_network(kind, tmp_path):
    made = decoder(kind)
    spec = StudentSpec(family="decoder", knobs=made.spec)
    assert StudentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    _, weights = save(tmp_path, spec, made)
    again = load(tmp_path)
    assert torch.equal(said(again), said(made))
    tensors, _ = read_tensors(weights)
    assert ("network.lm_head.weight" in tensors) is not made.spec.tied
    assert {k.removeprefix("network."): tuple(v.shape) for k, v in tensors.items()} == shapes_of(
        made.spec
    )


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_head_make_the_logits(kind):
    made = decoder(kind)
    with torch.no_grad():
        states = made.states(some_ids())
    logits = states @ made.head.T
    if kind == "gemma2":
        assert made.cap == 30.0
        logits = 30.0 * torch.tanh(logits / 30.0)
    else:
        assert made.cap is None
    torch.testing.assert_close(logits, said(made))
    torch.testing.assert_close(made.decision(states), said(made))
    assert not said(made)[:, :5].equal(said(made, some_ids(seed=2))[:, :5])


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_folder(kind, tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(bpe(tmp_path / "tokens") / "tokenizer.json"),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    made = decoder(kind, vocab_size=len(tokenizer))
    files = save_folder(made, tmp_path / "out", tokenizer)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in files}
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(network) is type(made.network) and network.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(network(some_ids()).logits, said(made))
    tied = network.get_input_embeddings().weight is network.get_output_embeddings().weight
    assert tied is made.spec.tied
    assert network.generation_config.eos_token_id == made.spec.config["eos_token_id"]
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "good film"}]
    assert read.apply_chat_template(chat, tokenize=False) == "<s>good film</s>"
    assert read(" a good film").input_ids == tokenizer("a good film").input_ids
    same = open_tokenizer(tmp_path / "out")
    assert same("a good film").input_ids == tokenizer("a good film").input_ids
    assert same.eos_token == "</s>" and same.chat_template == tokenizer.chat_template
    again = open_decoder(tmp_path / "out")
    assert again.spec == made.spec and torch.equal(said(again), said(made))


def test_a_ready_network_is_taken_as_it_is():
    made = decoder("qwen3")
    taken = decoder_of(made.network)
    assert taken.network is made.network and taken.spec == made.spec


@pytest.mark.parametrize("kind", [kind for kind in KINDS if decoder(kind).spec.tied])
def test_tied_weights_stay_one(kind):
    made = decoder(kind)
    twin = copy.deepcopy(made)
    fresh = Decoder(made.spec)
    fresh.load_state_dict(made.state_dict())
    for network in (twin, fresh, twin.to(torch.float64)):
        assert network.head is network.network.get_input_embeddings().weight
    other = decoder(kind, seed=1).state_dict()
    del other["network.model.embed_tokens.weight"]
    with pytest.raises(RuntimeError, match="embed_tokens"):
        made.load_state_dict(other)


def test_other_networks_are_refused_by_name(tmp_path):
    refused("type 'phi3' is not covered: use one of llama", spec_of, {"model_type": "phi3"})
    refused("type 'None'", spec_of, {})
    bert = transformers.BertConfig()
    refused("type 'bert' is not covered", spec_of, bert)
    folder = tmp_path / "bert"
    bert.save_pretrained(folder)
    refused("type 'bert' is not covered: use one of llama", open_decoder, folder)
    refused("is no folder", open_decoder, tmp_path / "none")
    refused("has no tokenizer.json", open_tokenizer, folder)
    with pytest.raises(TeacherError, match="no model.safetensors"):
        llama = tmp_path / "llama"
        decoder().network.config.save_pretrained(llama)
        open_decoder(llama)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "t5"}, "type 't5' is not covered"),
        ({"hidden_size": None}, "hidden holds None"),
        ({"vocab_size": 0}, "vocabulary holds 0"),
        ({"num_key_value_heads": 3}, "3 key/value groups do not share 8 heads"),
        ({"num_attention_heads": 12}, "12 heads do not divide it"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers and there are 4"),
        ({"use_bidirectional_attention": True}, "no decoder of texts"),
    ],
)
def test_impossible_specs_are_refused(changes, why):
    data = {**spec_of(config("llama")).config, **changes}
    with pytest.raises(ValueError, match=why):
        DecoderSpec(config=data)
    refused(why, StudentSpec.from_json, {"family": "decoder", "config": data})


def test_a_config_must_be_whole():
    with pytest.raises(ValueError, match="config is 'llama'"):
        DecoderSpec(config="llama")  # pyright: ignore
    with pytest.raises(ValueError, match="config has no head_dim"):
        DecoderSpec(config={k: v for k, v in config("llama").items() if k != "head_dim"})
    refused("cannot be built", Decoder, DecoderSpec(config={**config("llama"), "hidden_act": "no"}))


def test_what_a_short_config_leaves_out_is_filled_in():
    short = {k: v for k, v in config("qwen2").items() if k not in ("head_dim", *MORE["qwen2"])}
    spec = spec_of(short)
    assert spec.head_size == 4 and spec.config["layer_types"] == ["full_attention"] * 4
    assert not {"transformers_version", "dtype", "architectures"} & spec.config.keys()


def test_a_tokenizer_with_more_tokens_is_refused(tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(bpe(tmp_path / "tokens") / "tokenizer.json")
    )
    refused("the network knows 61", save_folder, decoder(), tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()
