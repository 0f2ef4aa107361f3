"""Two processes that teach one student: the loss and weights of one, checkpoints, refusals."""

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
from tutelage.train import together
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule

HERE = Path(__file__).parent
SCHEDULE = Schedule(epochs=2, rate=0.02, seed=5, checkpoint_s=0.0, precision="float32", ema=0.5)


def lesson(stop_at=None, seed=0):
    """Teach by the texts alone, without dropout: one sequence is a micro-batch."""
    made = LanguageLesson(
        Speech(seed, dropout=0.0), rows(9), rows(5, seed=1), losses={"token_cross_entropy": 1.0},
        batch=3, micro_batch=1, seed=5,
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
    whole = lesson()
    history = Trainer(whole, SCHEDULE).train()
    path = folder / "checkpoint.safetensors"
    try:
        Trainer(lesson(stop_at=4), SCHEDULE, checkpoint=path).train()
    except KeyboardInterrupt:
        torch.distributed.barrier()
    resumed = lesson()
    Trainer(resumed, SCHEDULE, checkpoint=path).train()
    write_tensors(folder / f"whole-{number}.safetensors", whole.student.state_dict())
    write_tensors(folder / f"resumed-{number}.safetensors", resumed.student.state_dict())
    said = ""
    try:  # a checkpoint that only one of them sees
        Trainer(lesson(), SCHEDULE, checkpoint=path if number == 0 else None).train()
    except TrainingError as error:
        said = str(error)
    write_json(folder / f"said-{number}.json", {"loss": history.loss, "refused": said,
                                                "figure": history.figure})  # fmt: skip
    torch.distributed.destroy_process_group()


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


def test_two_processes_teach_what_one_teaches(done):
    alone = lesson()
    history = Trainer(alone, SCHEDULE).train()
    for number in range(2):
        said = read_json(done / f"said-{number}.json")
        assert said["loss"] == pytest.approx(history.loss, rel=1e-5)
        assert said["figure"] == pytest.approx(history.figure, rel=1e-5)
        found = read_tensors(done / f"whole-{number}.safetensors")[0]
        for name, tensor in alone.student.state_dict().items():
            assert torch.allclose(found[name], tensor, atol=1e-4), name


def test_both_hold_the_same_weights_to_the_bit(done):
    first, second = (read_tensors(done / f"whole-{n}.safetensors")[0] for n in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_pair_goes_on_to_the_same_bits(done):
    for number in range(2):
        whole, resumed = (
            read_tensors(done / f"{what}-{number}.safetensors")[0] for what in ("whole", "resumed")
        )
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_that_one_does_not_see_is_refused(done):
    for number in range(2):
        said = read_json(done / f"said-{number}.json")["refused"]
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


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_that_would_be_shared_out_are_refused(kind):
    with pytest.raises(TrainingError, match=f"{kind} shares a student's weights out"):
        together.refuse_shared_out(SimpleNamespace(distributed_type=kind))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
