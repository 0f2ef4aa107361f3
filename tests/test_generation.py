"""What a small model writes: the same as one prompt at a time without a cache, drawn fairly."""

import numpy as np
import pytest
import torch
from chat_samples import CHATML, chat, tokenizer
from text_samples import refused

from tutelage.errors import RecipeError
from tutelage.tasks.causal_lm.generated import generate
from tutelage.tasks.causal_lm.reading import Document, Message
from tutelage.teach.generation import Sampling, _chosen, answering, write_answers, write_tokens

transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45], [9, 9]]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        initializer_range=0.4, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def plainly(network, prompt, ends, longest):
    ids = list(prompt)
    for _ in range(longest):
        token = int(network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def test_greedy_answers_are_those_without_batch_and_cache(network):
    free = plainly(network, PROMPTS[0], set(), 12)[0]
    ends = {free[6]}  # so that some end, and some do not
    wanted = [plainly(network, p, ends, 12) for p in PROMPTS]
    assert {ended for _, ended in wanted} == {True, False}
    assert write_tokens(network, PROMPTS, ends, Sampling(longest=12)) == wanted


def test_draws_depend_on_seed_and_prompt_alone(network):
    hot = Sampling(longest=10, temperature=1.0, seed=3)
    found = write_tokens(network, PROMPTS, set(), hot)
    alone = [write_tokens(network, [p], set(), hot)[0] for p in reversed(PROMPTS)]
    assert found == alone[::-1]
    assert found != write_tokens(network, PROMPTS, set(), Sampling(longest=10, temperature=1.0))
    torch.manual_seed(1)
    assert found == write_tokens(network, PROMPTS, set(), hot)


def test_the_network_is_left_as_it_was(network):
    network.train()
    write_tokens(network, PROMPTS[:1], set(), Sampling(longest=1))
    assert network.training
    network.eval()
    write_tokens(network, PROMPTS[:1], set(), Sampling(longest=1))
    assert not network.training


class Uniform:
    """Stands in for a generator: gives these numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("top_p", "wanted"),
    [(1.0, [0, 2, 2, 2, 3]), (0.87, [2, 2, 2, 0, 1]), (0.5, [2] * 5)],
)
def test_tokens_are_drawn_by_their_shares_by_hand(top_p, wanted):
    logits = torch.tensor([[0.25, 0.125, 0.5, 0.125]]).log()
    sampling, draw = Sampling(temperature=1.0, top_p=top_p), Uniform(0.0, 0.49, 0.55, 0.8, 0.999)
    assert [int(_chosen(logits, [draw], sampling)) for _ in range(5)] == wanted


def test_temperature_sharpens_by_hand():
    logits = torch.tensor([[0.0, np.log(2.0)]])  # shares 1/3 and 2/3; at 0.5: 1/5 and 4/5
    draw = Uniform(0.3, 0.3)
    assert int(_chosen(logits, [draw], Sampling(temperature=1.0))) == 0
    assert int(_chosen(logits, [draw], Sampling(temperature=0.5))) == 1
    assert int(_chosen(logits, [], Sampling())) == 1


def test_answers_come_in_the_order_of_their_prompts(network):
    made = tokenizer(CHATML)
    prompts = [
        Document(messages=tuple(Message(**turn) for turn in chat(text)))
        for text in ("the good film was quite long", "why", "dull plot")
    ]
    found = write_answers(network, made, prompts, Sampling(longest=8, batch=2))
    for prompt, reply in zip(prompts, found, strict=True):
        ids = made.apply_chat_template(prompt.chat(), add_generation_prompt=True, return_dict=False)
        tokens, ended = plainly(network, ids, {2}, 8)
        assert (list(reply.tokens), reply.ended) == (tokens, ended)
        assert reply.text == made.decode(tokens, skip_special_tokens=True)


def test_a_real_model_can_write_a_chat_file(network, tmp_path):
    answer = answering(network, tokenizer(), Sampling(longest=6, temperature=1.0), system="be")
    prompts = [f"why {i}" for i in range(6)]
    replies = answer(prompts, 0)
    assert any(not reply.ended for reply in replies)
    made = generate(
        prompts, lambda p, n: [r.text for r in answer(p, n)], tmp_path / "a.jsonl", batch=4
    )
    assert made.prompts == 6 and made.kept == 6 - sum(made.refused.values()) > 0


def test_bad_prompts_and_settings_are_refused(network):
    made = tokenizer()
    long = Document(text="film " * 200)
    said = refused("leaves no room for 8 more in the 96", write_answers, network, made,
                   [Document(text="a"), long], Sampling(longest=8))  # fmt: skip
    assert said.startswith("prompt 2 has ")
    refused("prompt 1 has no tokens", write_answers, network, made, [Document(text="")],
            Sampling())  # fmt: skip
    for wrong in ({"longest": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"batch": 0}):
        with pytest.raises(RecipeError, match="cannot be drawn"):
            Sampling(**wrong)
