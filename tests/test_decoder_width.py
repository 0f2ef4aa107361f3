"""Fewer numbers a token: what stays is read as before, norms as large, mixes fill a limit."""

from __future__ import annotations

import copy

import pytest
import torch
from decoders import config, decoder, said, some_ids
from test_decoder_sizes import spec
from text_samples import refused

from tutelage.errors import InfeasibleError
from tutelage.students.decoders.mixes import MIXES, largest_of, plan_mixes
from tutelage.students.decoders.network import KINDS, DecoderSpec, Origin
from tutelage.students.decoders.sizes import parameters, steps_to, why_no_part, with_sizes
from tutelage.students.decoders.slicing import slice_decoder
from tutelage.students.decoders.width import number_energies, with_numbers

SILENT = (1, 6, 30, 31, 20, 2, 11, 17)


def silenced(kind, gone=SILENT, **changes):
    """Return a network in which nothing writes the numbers `gone`."""
    whole = decoder(kind, **changes)
    with torch.no_grad():
        for name, p in whole.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                p[:, gone] = 0.0
            elif "o_proj" in name or "down_proj" in name:
                p[list(gone)] = 0.0
    return whole


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_nothing_writes_are_not_missed(kind):
    """Every norm then divides by a root mean square that differs by one factor: 32 to 24."""
    whole = silenced(kind)
    kept = torch.tensor([n for n in range(32) if n not in SILENT])
    shares = number_energies(whole, some_ids())
    assert float(shares.sum()) == pytest.approx(1) and shares[list(SILENT)].abs().max() == 0
    small = with_numbers(whole, kept, some_ids())
    torch.testing.assert_close(said(small), said(whole), rtol=1e-4, atol=1e-4)
    wanted = with_sizes(whole.spec, hidden=24)
    torch.testing.assert_close(said(slice_decoder(whole, wanted, some_ids())), said(small))
    assert small.spec.hidden == 24 and small.spec.head_size == 4
    first = "network.model.norm.weight"
    a, b = (n.state_dict()[first].float() for n in (whole, small))
    shift = float(kind.startswith("gemma"))
    grown = (4 / 3) ** 0.5 if kind.startswith("gemma") and whole.spec.tied else 1.0
    scale = (4 / 3) ** 0.5 / grown  # root of the mean over 24, not 32, of the same sum
    torch.testing.assert_close(b + shift, (a[kept] + shift) * scale, rtol=1e-4, atol=1e-5)


def test_energy_is_the_share_of_what_is_read():
    whole, ids = decoder("qwen3", num_hidden_layers=1), some_ids()
    layer, seen = whole.layers[0], []
    modules = [getattr(layer.self_attn, f"{x}_proj") for x in "qkv"]
    modules += [layer.mlp.gate_proj, layer.mlp.up_proj]
    hooks = [m.register_forward_pre_hook(lambda m, given: seen.append((m, given[0])))
             for m in modules]  # fmt: skip
    said(whole, ids)
    for hook in hooks:
        hook.remove()
    weights = [(m.weight, x) for m, x in seen] + [(whole.head, whole.states(ids))]
    want = torch.zeros(32)
    for weight, x in weights:
        each = torch.stack([(x[..., i, None] * weight[:, i]).square().sum() for i in range(32)])
        want += each.detach() / each.detach().sum() / 6
    torch.testing.assert_close(number_energies(whole, ids), want)


def test_a_slice_says_where_it_is_from_step_by_step():
    whole, ids = decoder("qwen3"), some_ids()
    first = slice_decoder(whole, with_sizes(whole.spec, layers=3, hidden=20), ids, kept=(0, 2, 3))
    second = slice_decoder(first, with_sizes(first.spec, layers=2, hidden=8), ids, kept=(1, 2))
    assert whole.origin == Origin(layers=(0, 1, 2, 3), numbers=tuple(range(32)))
    assert first.origin.layers == (0, 2, 3) and second.origin.layers == (2, 3)
    assert len(first.origin.numbers) == 20 and len(second.origin.numbers) == 8
    embedding = "network.model.embed_tokens.weight"
    rows = whole.state_dict()[embedding][:, list(second.origin.numbers)]
    assert torch.equal(second.state_dict()[embedding], rows)


def plain_llama(**changes):
    return {"attention_bias": False, "mlp_bias": False, "head_dim": 4, **changes}


def test_a_llama_of_uneven_width_is_a_mistral_that_says_the_same():
    whole = silenced("llama", **plain_llama())
    kept = torch.tensor([n for n in range(32) if n not in SILENT])
    even = with_numbers(whole, kept, some_ids())
    assert even.spec.kind == "llama"
    uneven = with_sizes(whole.spec, hidden=28)
    assert uneven.kind == "mistral" and uneven.config["sliding_window"] is None
    assert why_no_part(uneven, whole.spec) == ""
    small = slice_decoder(whole, uneven, some_ids())
    torch.testing.assert_close(said(small), said(whole), rtol=1e-4, atol=1e-4)
    windowed = DecoderSpec(config={**uneven.config, "sliding_window": 5})
    assert why_no_part(windowed, whole.spec).startswith("its ")
    refused("8 heads do not divide", with_sizes, decoder("llama").spec, hidden=28)  # has biases


@pytest.mark.parametrize(
    ("kind", "hidden", "groups", "form"),
    [("llama", 76, 4, "f16"), ("qwen2", 96, 3, "q8_0"), ("gemma2", 96, 2, "q8_0")],
)
def test_the_file_has_the_bytes_foretold_and_says_the_same(tmp_path, kind, hidden, groups, form):
    pytest.importorskip("gguf")
    import chat_samples

    from tutelage.devices.gguf_sizes import gguf_bytes
    from tutelage.export.gguf import gguf_file_bytes, write_gguf
    from tutelage.students.decoders.sizes import shapes_of
    from tutelage.teach.gguf_file import open_gguf

    tokenizer = chat_samples.tokenizer(most=128)
    tokenizer.save_pretrained(tmp_path)
    sizes = plain_llama() if kind == "llama" else {}
    more = {"gemma2": {"query_pre_attn_scalar": 16}, "qwen2": {"sliding_window": None}}
    sizes |= {"vocab_size": len(tokenizer), "hidden_size": 128, "head_dim": 16,
              "intermediate_size": 96, "num_hidden_layers": 2, **more.get(kind, {})}  # fmt: skip
    whole = decoder(kind, **sizes)
    wanted = with_sizes(whole.spec, hidden=hidden, groups=groups, inner=64)
    small = slice_decoder(whole, wanted, some_ids())
    state = {n.removeprefix("network."): x for n, x in small.state_dict().items()}
    foretold = gguf_file_bytes(
        small.spec.config, shapes_of(small.spec), tmp_path, quantization=form, name="student"
    )
    path = write_gguf(tmp_path / "student.gguf", small.spec.config, state, tmp_path,
                      quantization=form)  # fmt: skip
    assert path.stat().st_size == foretold > gguf_bytes(shapes_of(small.spec), form, tied=True)
    stored, _ = open_gguf(path)
    assert stored.config.hidden_size == hidden and stored.config.model_type == small.spec.kind
    a, b = said(small), stored(some_ids()).logits
    assert (a - b).abs().max() < (0.02 if form == "f16" else 0.2) * a.std()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_mixes_fill_the_limit(kind):
    whole = spec(kind, hidden_size=256, num_hidden_layers=4)
    most = int(0.6 * parameters(whole))
    found = plan_mixes(whole, most_bytes=most, bytes_of=parameters)
    assert len({str(x.config) for x in found}) == len(found) >= 6
    for one in found:
        assert 0.8 * most < parameters(one) <= most and why_no_part(one, whole) == ""
        assert one.hidden % 32 == 0 and steps_to(whole, one)[-1] == one
    cut = {(x.groups < 4, x.hidden < 256, x.layers < 4) for x in found}
    assert {(True, False, False), (False, True, False), (False, True, True)} <= cut
    assert plan_mixes(whole, most_bytes=10**9, bytes_of=parameters) == [whole]


def test_a_way_may_lead_over_uneven_widths():
    whole = decoder("llama", **plain_llama(hidden_size=64, intermediate_size=96))
    wanted = with_sizes(whole.spec, hidden=48, groups=2)
    between = with_sizes(whole.spec, hidden=48, groups=3)  # 6 heads
    uneven = with_sizes(whole.spec, hidden=36)
    assert (wanted.kind, between.kind, uneven.kind) == ("llama", "llama", "mistral")
    small = slice_decoder(slice_decoder(whole, uneven, some_ids()),
                          with_sizes(wanted, hidden=32), some_ids())  # fmt: skip
    assert (small.spec.hidden, small.spec.heads, small.spec.kind) == (32, 4, "mistral")


def test_steps_of_all_sizes_lose_about_a_third_each():
    from tutelage.students.decoders.sizes import in_layers

    whole = spec("qwen3", hidden_size=256, num_hidden_layers=12)
    wanted = with_sizes(whole, hidden=96, layers=8, groups=2)
    steps = [whole, *steps_to(whole, wanted)]
    assert len(steps) > 3 and steps[-1] == wanted
    for before, after in zip(steps, steps[1:], strict=False):
        assert why_no_part(after, before) == ""
        assert in_layers(after) / in_layers(before) > 0.5


def test_a_limit_only_fewer_numbers_can_keep():
    whole = spec("qwen3", hidden_size=256, num_hidden_layers=2, vocab_size=5_000)
    least = parameters(with_sizes(whole, layers=1, inner=32))
    found = plan_mixes(whole, most_bytes=least - 1, bytes_of=parameters)
    assert found and all(x.hidden < 256 for x in found)
    with pytest.raises(InfeasibleError):
        plan_mixes(whole, most_bytes=100_000, bytes_of=parameters)


def test_a_network_of_one_group_has_none_to_cut():
    single = spec("gemma", num_key_value_heads=1)
    assert largest_of(MIXES[0], single, parameters(single) // 2, parameters) is None


def test_wrong_numbers_are_refused():
    whole = decoder("qwen3")
    for kept in ([], [3, 2], [0, 32], [-1, 4]):
        refused("rising, of 0 to 31", with_numbers, whole, torch.tensor(kept), some_ids())
    before = copy.deepcopy(whole.state_dict())
    with_numbers(whole, torch.arange(8), some_ids())
    assert all(torch.equal(before[n], x) for n, x in whole.state_dict().items())
    assert config("qwen3")["hidden_size"] == 32
