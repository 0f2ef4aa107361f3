"""What a language model writes: whole answers, batch by batch, the same ones at every call.

Each prompt has draws of its own, a function of the seed and of its tokens alone, so that neither
its neighbours nor their order decide what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.errors import DataError, RecipeError
from tutelage.progress import Progress, Silent
from tutelage.tasks.causal_lm.generated import Reply
from tutelage.tasks.causal_lm.reading import Document, Message
from tutelage.tasks.causal_lm.tokens import Writer

_BETWEEN_DRAWS = 2**31  # seeds of recipes are smaller, so no draw shares another's


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0, else from the `top_p` of the mass.

    `longest` is the most tokens of an answer; `batch` how many are written at once.
    """

    longest: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        if self.longest < 1 or self.batch < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError(
                f"answers cannot be drawn with {self}: longest and batch are 1 or more, "
                "temperature is 0 or more, top_p above 0 and at most 1"
            )


def write_answers(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[Document],
    sampling: Sampling,
    *,
    progress: Progress | None = None,
) -> list[Reply]:
    """Return the network's answer to each chat, or how it goes on with each text.

    `network` is a causal language model of transformers. An answer ends with the end token or, of
    chats, the token that ends a turn; neither is among its `tokens`. Raises `DataError` for a
    prompt that leaves no room in the model's context.
    """
    progress, writer = progress or Silent(), Writer(tokenizer)
    chats = any(prompt.messages for prompt in prompts)
    ends = writer.ends() if chats else {writer.end}
    ids = [writer.prompt(prompt) for prompt in prompts]
    _check_room(network, ids, sampling.longest)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))  # few pads
    found: list[Reply] = [Reply(text="")] * len(ids)
    progress.start("Writing answers", len(ids))
    for start in range(0, len(order), sampling.batch):
        chosen = order[start : start + sampling.batch]
        for i, (tokens, ended) in zip(
            chosen, write_tokens(network, [ids[i] for i in chosen], ends, sampling), strict=True
        ):
            text = tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            found[i] = Reply(text=text, ended=ended, tokens=tuple(tokens))
        progress.advance(len(chosen))
    progress.finish()
    return found


def answering(
    network: Any, tokenizer: Any, sampling: Sampling, *, system: str | None = None
) -> Callable[[list[str], int], list[Reply]]:
    """Return the function that `tasks.causal_lm.generated.generate` asks: prompts in, answers out.

    Each draw of a prompt has a seed of its own.
    """
    first = (Message(role="system", content=system),) if system else ()

    def answer(prompts: list[str], draw: int) -> list[Reply]:
        asked = [Document(messages=(*first, Message(role="user", content=p))) for p in prompts]
        seed = sampling.seed + draw * _BETWEEN_DRAWS
        return write_answers(network, tokenizer, asked, replace(sampling, seed=seed))

    return answer


@torch.no_grad()
def write_tokens(
    network: Any, prompts: Sequence[Sequence[int]], ends: set[int], sampling: Sampling, *,
    numbers: Sequence[int] | None = None,
) -> list[tuple[list[int], bool]]:  # fmt: skip
    """Return what follows each prompt, without its end, and whether it ended.

    Shorter prompts are padded on the left, where no one attends to them. `numbers` part the draws
    of prompts that are equal, one a prompt.
    """
    draws = [
        np.random.default_rng([sampling.seed, *(() if numbers is None else numbers[i : i + 1]), *p])
        for i, p in enumerate(prompts)
    ]
    was_training = network.training
    network.eval()
    try:
        return _written(network, prompts, ends, sampling, draws)
    finally:
        network.train(was_training)


def write_freely(
    network: Any, firsts: Sequence[int], length: int, *, seed: int, first: int = 0
) -> Int[np.ndarray, "b length"]:
    """Return texts of `length` tokens from these first ones, drawn as the network gives them.

    Ends are written over: another text follows. `first` numbers the first text, so that each has
    draws of its own.
    """
    sampling = Sampling(longest=length - 1, temperature=1.0, seed=seed, batch=len(firsts))
    numbers = range(first, first + len(firsts))
    found = write_tokens(network, [[t] for t in firsts], set(), sampling, numbers=numbers)
    return np.array([[t, *said] for t, (said, _) in zip(firsts, found, strict=True)], np.int32)


def _written(
    network: Any, prompts: Sequence[Sequence[int]], ends: set[int], sampling: Sampling,
    draws: list[np.random.Generator],
) -> list[tuple[list[int], bool]]:  # fmt: skip
    device, count = network.device, len(prompts)
    ids, mask = _padded(prompts, device)
    written: list[list[int]] = [[] for _ in prompts]
    ended, memory, stop = [False] * count, None, torch.tensor(sorted(ends))
    for _ in range(sampling.longest):
        positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        said = network(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions,
            past_key_values=memory, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        memory = said.past_key_values
        chosen = _chosen(said.logits[:, -1].float().cpu(), draws, sampling)
        for i, (token, last) in enumerate(
            zip(chosen.tolist(), torch.isin(chosen, stop).tolist(), strict=True)
        ):
            if not ended[i] and not last:
                written[i].append(token)
            ended[i] |= last
        if all(ended):
            break
        ids = chosen[:, None].to(device)
        mask = torch.cat([mask, mask.new_ones(count, 1)], dim=1)
    return list(zip(written, ended, strict=True))


def _padded(
    prompts: Sequence[Sequence[int]], device: Any
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = True
    return ids.to(device), mask.to(device)


def _chosen(
    logits: Float[Tensor, "b v"], draws: list[np.random.Generator], sampling: Sampling
) -> Int[Tensor, " b"]:
    """Return the likeliest token of each row, or one drawn by inverting the distribution."""
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    uniform = torch.tensor([[draw.random()] for draw in draws], dtype=torch.float64)
    if sampling.top_p == 1:  # sorting would take longer than the network
        sums = (logits / sampling.temperature).softmax(dim=1).cumsum(dim=1, dtype=torch.float64)
        return _place(sums, uniform * sums[:, -1:])[:, 0]
    shares = (logits.double() / sampling.temperature).softmax(dim=1)
    shares, tokens = shares.sort(dim=1, descending=True, stable=True)
    sums = shares.cumsum(dim=1)
    # nucleus (Holtzman et al. 2020): the fewest tokens whose mass reaches top_p
    last = (sums < sampling.top_p).sum(dim=1, keepdim=True).clamp_max(sums.shape[1] - 1)
    mass = sums.gather(1, last)
    return tokens.gather(1, _place(sums, uniform * mass))[:, 0]


def _place(sums: Float[Tensor, "b v"], mass: Float[Tensor, "b 1"]) -> Int[Tensor, "b 1"]:
    """Return where the running sums of shares pass a mass."""
    return (sums <= mass).sum(dim=1, keepdim=True).clamp_max(sums.shape[1] - 1)


def _check_room(network: Any, prompts: list[list[int]], longest: int) -> None:
    most = getattr(network.config, "max_position_embeddings", None)
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise DataError(f"prompt {number} has no tokens: leave it out")
        if most is not None and len(prompt) + longest > most:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens, which leaves no room for {longest} "
                f"more in the {most} that the model reads: shorten it, or ask for shorter answers"
            )
