"""The search for the layer that is missed least, against computing every network to its end."""

# pyright: reportArgumentType=false

from __future__ import annotations

import decoders
import pytest

torch = pytest.importorskip("torch")

from tutelage.students.decoders.choice import changes_without, depths_by_kl  # noqa: E402
from tutelage.students.decoders.depth_search import DepthSearch, Past  # noqa: E402
from tutelage.students.decoders.network import KINDS  # noqa: E402
from tutelage.students.decoders.stack import Stack, part_of  # noqa: E402


def naive(decoder, ids, least):
    kept = tuple(range(decoder.spec.layers))
    found = []
    while len(kept) > least:
        changes = changes_without(decoder, ids, kept)
        gone = changes.index(min(changes))
        kept = kept[:gone] + kept[gone + 1 :]
        found.append((kept, changes[gone]))
    return found


def searched(decoder, ids, least, at_once):
    search, kept = DepthSearch(decoder, ids, at_once=at_once), tuple(range(decoder.spec.layers))
    found = []
    while len(kept) > least:
        gone, kl = search.least_missed(kept)
        kept = kept[:gone] + kept[gone + 1 :]
        found.append((kept, kl))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [5, 24], ids=["columns", "two sequences"])
def test_the_choices_are_those_of_the_naive_search(kind, at_once):
    decoder, ids = decoders.decoder(kind, num_hidden_layers=5), decoders.some_ids(3, 12)
    slow, fast = naive(decoder, ids, 2), searched(decoder, ids, 2, at_once)
    assert [kept for kept, _ in fast] == [kept for kept, _ in slow]
    assert [kl for _, kl in fast] == pytest.approx([kl for _, kl in slow], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_other_weights_too(seed):
    decoder = decoders.decoder("llama", seed=seed, num_hidden_layers=6)
    ids = decoders.some_ids(count=2, length=12, seed=seed)
    slow, fast = naive(decoder, ids, 3), searched(decoder, ids, 3, 6)
    assert [kept for kept, _ in fast] == [kept for kept, _ in slow]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_in_parts_pass_as_a_whole_sequence_does(kind):
    decoder, ids = decoders.decoder(kind), decoders.some_ids(count=2, length=13)
    stack, past = Stack(decoder, ids), Past()
    with torch.no_grad():
        whole = stack.through([0, 2, 3], stack.start)
        parts = [
            stack.part_through([0, 2, 3], stack.start[:, a:b], a, past)
            for a, b in ((0, 1), (1, 6), (6, 13))
        ]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert past.held.keys() == {0, 2, 3} and past.held[0][0].shape[-2] == 13


def test_without_a_mask_a_token_sees_those_before_it():
    found = part_of({"attention_mask": None, "use_cache": False}, 2, torch.zeros(1, 2, 8))
    assert found["attention_mask"].tolist() == [[[[True] * 3 + [False], [True] * 4]]]
    mask = torch.arange(16).reshape(1, 1, 4, 4)
    found = part_of({"attention_mask": mask}, 1, torch.zeros(1, 2, 8))
    assert found["attention_mask"].tolist() == [[[[4, 5, 6], [8, 9, 10]]]]


def test_of_equals_the_first_goes():
    decoder = decoders.decoder("qwen3", num_hidden_layers=5)
    with torch.no_grad():
        for layer in decoder.layers[1:4]:  # they add nothing, each
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    depths = [d.kept for d in depths_by_kl(decoder, decoders.some_ids(), least=2)]
    assert depths[1:] == [(0, 2, 3, 4), (0, 3, 4), (0, 4)]


def test_less_is_computed(monkeypatch):
    decoder, ids = decoders.decoder("llama", num_hidden_layers=6), decoders.some_ids(2, 16)
    tokens = {"search": 0, "naive": 0}

    def counted(name):
        def count(_, given):
            tokens[name] += given[0].shape[0] * given[0].shape[1]

        return count

    for name, search in (("naive", naive), ("search", lambda d, x, n: searched(d, x, n, 8))):
        hooks = [layer.register_forward_pre_hook(counted(name)) for layer in decoder.layers]
        search(decoder, ids, 3)
        for hook in hooks:
            hook.remove()
    assert tokens["search"] < 0.8 * tokens["naive"]
