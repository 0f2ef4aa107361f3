"""What losses of a language model cost when a batch's logits never exist at once.

`language_loss` (states and head in, chunk by chunk, gradients found in the forward pass) against
the plain way in torch: all logits, log-softmax, `kl_div`, `cross_entropy`, `backward`. Random
numbers at the shape of SmolLM2-135M: 1,024 tokens, 576 wide, 49,152 words. Cases: the text alone,
and forward KL + cross entropy with each kind of teacher signals.

Memory: the highest resident memory of a child process over what it held before the loss, so
gradients of head and states (both need them) count. Time: in turn in one child (A B A B), a block
one loss with its gradients, in CPU time, which other work on the machine moves less than the clock.
Aims: at most a quarter of the memory, at most 1.10 of the time.

python benchmarks/chunked_loss.py [--tokens 1024] [--blocks 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import HERE, command, machine, print_table, ratio_of_medians, write_result
from torch import Tensor

from tutelage.losses.language import language_loss
from tutelage.losses.sparse import SparseDecision, dense_of, drawn_of, top_of

CASES = ("text", "dense", "topk", "sampled")
LOSSES = {"forward_kl": 1.0, "token_cross_entropy": 0.5}


def main() -> None:
    """Measure every case, or, as a child, one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--kept", type=int, default=64, help="outcomes of topk and sampled")
    parser.add_argument("--blocks", type=int, default=5, help="pairs of timed losses a case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "chunked_loss.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(child(options, *options.child)))
        return
    shape = {k: getattr(options, k) for k in ("tokens", "width", "vocabulary", "kept")}
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        rows.append(measured(options, case))
        result = {"command": command(), **shape, "machine": machine(), "cases": rows}
        write_result(options.out, result)
        print_table(
            ("case", "plain MB", "chunked MB", "share", "plain s", "chunked s", "ratio", "off by"),
            [line(row) for row in rows],
        )


def measured(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Run the children of one case."""
    plain, chunked = (ask(options, case, which)["bytes"] for which in ("plain", "chunked"))
    times = ask(options, case, "time")
    return {
        "case": case, "plain_bytes": plain, "chunked_bytes": chunked,
        "memory_share": chunked / plain, **times,
    }  # fmt: skip


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table."""
    cpu = row["cpu"]
    low, high = cpu["interval"]
    return (
        row["case"], f"{row['plain_bytes'] / 1e6:.0f}", f"{row['chunked_bytes'] / 1e6:.0f}",
        f"{row['memory_share']:.2f}", f"{cpu['second_s']:.2f}", f"{cpu['first_s']:.2f}",
        f"{cpu['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{row['off_by']:.0e}",
    )  # fmt: skip


def ask(options: argparse.Namespace, case: str, which: str) -> dict[str, Any]:
    """Run this file in a fresh process for one figure."""
    given = [f"--{k}={getattr(options, k)}"
             for k in ("tokens", "width", "vocabulary", "kept", "blocks", "threads")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, *given, "--child", case, which],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def child(options: argparse.Namespace, case: str, which: str) -> dict[str, Any]:
    """Return bytes of one way, or seconds of both."""
    states, head, told, targets = material(options, case)

    def chunked() -> Tensor:
        losses = LOSSES if told is not None else {"token_cross_entropy": 1.0}
        return language_loss(states, head, told, targets, losses=losses)[0]

    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(states, head, told, targets), "chunked": chunked,
    }  # fmt: skip
    if which == "time":
        return timed(ways, states, head, options.blocks)
    small = torch.zeros(64, 64, requires_grad=True)
    (small @ small).sum().backward()  # what the first product and backward pass load
    before = memory(reset=True)
    ways[which]().backward()
    return {"bytes": memory(reset=False) - before}


def material(
    options: argparse.Namespace, case: str
) -> tuple[Tensor, Tensor, SparseDecision | None, Tensor]:
    """Return states, head, what the teacher says (as the cache gives it), targets."""
    torch.manual_seed(0)
    states = torch.randn(options.tokens, options.width, requires_grad=True)
    head = (torch.randn(options.vocabulary, options.width) * 0.1).requires_grad_()
    targets = torch.randint(options.vocabulary, (options.tokens,))
    if case == "text":
        return states, head, None, targets
    parts = []
    for _ in range(0, options.tokens, 64):
        logits = torch.randn(64, options.vocabulary) * 3
        if case == "dense":
            parts.append(dense_of(logits))
        elif case == "topk":
            parts.append(top_of(logits, options.kept))
        else:
            parts.append(drawn_of(logits, torch.rand(64, options.kept)))
    told = SparseDecision(
        ids=None if case == "dense" else torch.cat([p.ids for p in parts if p.ids is not None]),
        log_probs=torch.cat([p.log_probs.half() for p in parts]),
        tail=torch.cat([p.tail.half() for p in parts]),
        drawn=case == "sampled",
    )
    return states, head, told.rows(0, options.tokens), targets


def plain(states: Tensor, head: Tensor, told: SparseDecision | None, targets: Tensor) -> Tensor:
    """Return the loss as one writes it in torch."""
    logits = states @ head.T
    if told is None:
        return F.cross_entropy(logits, targets)
    log_q = logits.log_softmax(dim=1)
    kl = _kl(log_q, told)
    return LOSSES["forward_kl"] * kl + LOSSES["token_cross_entropy"] * F.nll_loss(log_q, targets)


def _kl(log_q: Tensor, told: SparseDecision) -> Tensor:
    log_p = told.log_probs.float()
    if told.ids is None:
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    listed = log_q.gather(1, told.ids.long())
    if told.drawn:
        return (log_p - listed).mean()
    rest = torch.log1p(-listed.exp().sum(dim=1, keepdim=True))
    both = torch.cat([log_p, told.tail.float()[:, None]], dim=1).log_softmax(dim=1)
    return F.kl_div(
        torch.cat([listed, rest], dim=1), both, log_target=True, reduction="batchmean"
    )  # fmt: skip


def timed(
    ways: dict[str, Callable[[], Tensor]], states: Tensor, head: Tensor, blocks: int
) -> dict[str, Any]:
    """Return seconds of both ways, and by how much their gradients differ."""
    wall: dict[str, list[list[float]]] = {"plain": [], "chunked": []}
    cpu: dict[str, list[list[float]]] = {"plain": [], "chunked": []}
    found: dict[str, Tensor] = {}
    for block in range(blocks + 1):
        for name, way in ways.items():
            states.grad = head.grad = None
            start, busy = time.perf_counter(), time.process_time()
            way().backward()
            wall[name].append([time.perf_counter() - start])
            cpu[name].append([time.process_time() - busy])
            if block == 0:  # warms up; here both are seen to be the same
                assert states.grad is not None
                found[name] = states.grad.clone()
    away = float((found["chunked"] - found["plain"]).norm() / found["plain"].norm())
    return {
        "cpu": ratio_of_medians(cpu["chunked"][1:], cpu["plain"][1:]),
        "wall": ratio_of_medians(wall["chunked"][1:], wall["plain"][1:]),
        "off_by": away,
    }


def memory(*, reset: bool) -> int:
    """Return the resident memory now (and start its high-water mark anew), or that mark. Linux.

    What was freed goes back to the system first; else the loss would be given it unseen.
    """
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmRSS:" if reset else "VmHWM:"
    text = Path("/proc/self/status").read_text()
    return int(text.split(wanted)[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
