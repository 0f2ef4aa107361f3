"""Two processes that teach one student, whole or shared out: the weights of one, checkpoints."""

# pyright: reportArgumentType=false

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from language_samples import Speech, rows

from tutelage.errors import TrainingError
from tutelage.files import read_json, read_tensors, write_json, write_tensors
from tutelage.train import sharded, together
from tutelage.train.checkpoint import load_state
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

HERE = Path(__file__).parent
SCHEDULE = Schedule(epochs=2, rate=0.02, seed=5, checkpoint_s=0.0, precision="float32", ema=0.5)


SHARED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}


def lesson(stop_at=None, seed=0, recompute=False):
    """Teach by the texts alone, without dropout: one sequence is a micro-batch, three a step."""
    made = LanguageLesson(
        Speech(seed, dropout=0.0), rows(9), rows(5, seed=1), losses={"token_cross_entropy": 1.0},
        batch=3, micro_batch=1, seed=5, recompute=recompute,
    )  # fmt: skip
    if stop_at is not None:
        found, whole = [0], made.loss

        def loss(batch):
            found[0] += 1
            if found[0] > stop_at:
                raise KeyboardInterrupt
            return whole(batch)

        made.loss = loss
    return made


def work(folder):
    """Do what each process does."""
    number = int(os.environ["RANK"])
    teach(folder / f"copied-{number}", folder / "copied.safetensors")
    said = ""
    try:  # a checkpoint that only one of them sees
        seen = folder / "copied.safetensors" if number == 0 else None
        Trainer(lesson(), SCHEDULE, checkpoint=seen).train()
    except TrainingError as error:
        said = str(error)
    write_json(folder / f"refused-{number}.json", said)
    os.environ.update(SHARED)
    teach(folder / f"shared-{number}", folder / "shared.safetensors", recompute=True)
    torch.distributed.destroy_process_group()


def teach(folder, checkpoint, recompute=False):
    """Teach to the end; then stop after four steps and go on."""
    whole = lesson(recompute=recompute)
    trainer = Trainer(whole, SCHEDULE)
    held = sum(sharded.local(p).numel() for p in trainer.parameters)
    history = trainer.train()
    try:
        Trainer(lesson(stop_at=4, recompute=recompute), SCHEDULE, checkpoint=checkpoint).train()
    except KeyboardInterrupt:
        torch.distributed.barrier()
    resumed = lesson(recompute=recompute)
    Trainer(resumed, SCHEDULE, checkpoint=checkpoint).train()
    write_tensors(folder / "whole.safetensors", whole.student.state_dict())
    write_tensors(folder / "resumed.safetensors", resumed.student.state_dict())
    said = {"loss": history.loss, "figure": history.figure, "held": held}
    write_json(folder / "said.json", said)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **both, "RANK": n, "LOCAL_RANK": n},
            stderr=subprocess.PIPE, text=True,
        )
        for n in "01"
    ]  # fmt: skip
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return folder


@pytest.fixture(params=["copied", "shared"])
def kind(request):
    return request.param


def saved(done, kind, number, what):
    return read_tensors(done / f"{kind}-{number}" / f"{what}.safetensors")[0]


def test_two_processes_teach_what_one_teaches(done, kind):
    alone = lesson()
    history = Trainer(alone, SCHEDULE).train()
    for number in range(2):
        said = read_json(done / f"{kind}-{number}" / "said.json")
        assert said["loss"] == pytest.approx(history.loss, rel=1e-5)
        assert said["figure"] == pytest.approx(history.figure, rel=1e-5)
        found = saved(done, kind, number, "whole")
        for name, tensor in alone.student.state_dict().items():
            assert torch.allclose(found[name], tensor, atol=1e-4), name


def test_both_hold_the_same_weights_to_the_bit(done, kind):
    first, second = (saved(done, kind, number, "whole") for number in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_pair_goes_on_to_the_same_bits(done, kind):
    for number in range(2):
        whole, resumed = (saved(done, kind, number, what) for what in ("whole", "resumed"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_is_shared_out_is_held_once(done):
    counts = [read_json(done / f"shared-{n}" / "said.json")["held"] for n in range(2)]
    count = sum(p.numel() for p in Speech().parameters())
    assert sum(counts) == count and max(counts) < 0.6 * count
    assert read_json(done / "copied-0" / "said.json")["held"] == count


def test_a_checkpoint_of_parts_is_one_of_whole_weights(done):
    copied, shared = (load_state(done / f"{kind}.safetensors") for kind in ("copied", "shared"))
    for what in ("modules", "average"):
        for name, tensor in copied["now"][what][0].items():
            assert torch.allclose(shared["now"][what][0][name], tensor, atol=1e-4), name
    moments = [list(state["now"]["optimizer"]["state"].values()) for state in (copied, shared)]
    for one, other in zip(*moments, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_a_checkpoint_that_one_does_not_see_is_refused(done):
    for number in range(2):
        said = read_json(done / f"refused-{number}.json")
        assert "start from different checkpoints" in said and "\n" not in said


def test_alone_nothing_is_shared():
    assert together.place() == (0, 1) and list(together.share([1, 2, 3])) == [1, 2, 3]
    assert together.total(2.5, torch.device("cpu")) == 2.5
    held = torch.ones(2)
    together.add_up([held])
    together.check_alike({"steps": 3}, torch.device("cpu"))
    assert held.tolist() == [1, 1]


def test_shares_are_even(monkeypatch):
    shares = []
    for number in range(3):
        monkeypatch.setattr(together, "place", lambda n=number: (n, 3))
        shares.append(list(together.share(range(7))))
    assert sorted(sum(shares, [])) == list(range(7)) and [len(s) for s in shares] == [3, 2, 2]


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("DEEPSPEED", {}, "DEEPSPEED is not covered"),
        ("FSDP", {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ("FSDP", {"FSDP_OFFLOAD_PARAMS": "true"}, "set fsdp_offload_params: false"),
        ("FSDP", {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "language.recompute"),
    ],
)
def test_what_is_not_shared_out_is_refused(monkeypatch, kind, asked, said):
    monkeypatch.setattr(together, "place", lambda: (0, 2))
    for name, value in {**SHARED, **asked}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=said):
        sharded.plugin_of(SimpleNamespace(distributed_type=kind))


def test_other_lessons_are_not_shared_out():
    with pytest.raises(TrainingError, match="language models alone"):
        sharded.share_out(SimpleNamespace(modules=()), None)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
