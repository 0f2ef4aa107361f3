"""Text that the teacher writes freely: drawn as it gives it, once, learned beside the user's."""

# pyright: reportArgumentType=false

from __future__ import annotations

import math

import numpy as np
import pytest
import test_language_run
import tiny

from tutelage.files import read_json, read_tensors
from tutelage.pipeline.language import rehearsing
from tutelage.tasks.causal_lm.packing import joined, pack_nothing, whole_sequences

pytest.importorskip("gguf")
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

LANGUAGE = {"tokens": 3_000, "answer": 4, "rehearse": 0.75}


def write_job(folder, **language):
    return test_language_run.write_job(folder, language={**LANGUAGE, **language})


def written(run):
    (folder,) = (run / "rehearsal").iterdir()
    return [read_tensors(p)[0]["ids"].numpy() for p in sorted(folder.glob("*.safetensors"))]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The second batch of sequences is interrupted, and the run goes on."""
    folder = tmp_path_factory.mktemp("rehearsing")
    path = write_job(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsing, "_BATCH", 4)
        writes, asked = rehearsing.write_freely, []

        def dying(*given, first, **named):
            if first:
                raise KeyboardInterrupt
            return writes(*given, first=first, **named)

        patch.setattr(rehearsing, "write_freely", dying)
        assert tiny.cli("run", path, "--run", folder / "run").status == 130

        def counting(*given, first, **named):
            asked.append(first)
            return writes(*given, first=first, **named)

        patch.setattr(rehearsing, "write_freely", counting)
        said = tiny.cli("run", path, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said, asked


def test_no_batch_is_written_twice_and_all_of_them_are_learned(done):
    folder, _, asked = done
    stages = read_json(folder / "run" / "run.json")["stages"]
    made, ids = stages["rehearsal"]["result"], np.concatenate(written(folder / "run"))
    others = stages["fitting-texts"]["result"]["sequences"]
    assert asked == [*range(4, len(ids), 4), *range(0, others, 4)] and len(ids) > 8
    assert ids.shape == (made["sequences"], 64) and made["tokens"] == 63 * len(ids)
    counts = stages["data"]["result"]["counts"]
    share = made["tokens"] / (made["tokens"] + counts["train"])
    assert share == pytest.approx(0.75, abs=0.02)
    taught = stages["distill"]["result"]["tokens"][-1]
    assert taught == pytest.approx(made["tokens"] + counts["train"], rel=0.2)


def test_it_is_said_and_shown(done):
    folder, said, _ = done
    made = read_json(folder / "run" / "run.json")["stages"]["rehearsal"]["result"]
    assert f"{made['tokens']:,} tokens of the teacher's own" in said.err
    page = (folder / "run" / "report.html").read_text()
    assert f"{made['tokens']:,} tokens in {made['sequences']} sequences by the teacher" in page


def test_sequences_begin_with_plain_tokens_of_many_kinds(done):
    firsts = np.concatenate(written(done[0] / "run"))[:, 0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(done[0] / "teacher")
    assert len(set(firsts.tolist())) > len(firsts) / 2
    assert not set(firsts.tolist()) & set(tokenizer.all_special_ids)


def test_text_is_drawn_as_the_network_gives_it():
    """A network that always says the same of what comes next: counts are those of its shares."""
    shares = torch.tensor([0.5, 0.3, 0.2])

    class Same:
        training, device = False, torch.device("cpu")

        def eval(self):
            return self

        def train(self, mode):
            return self

        def __call__(self, input_ids, **_):
            logits = shares.log().expand(len(input_ids), 1, 3)
            return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits)

    ids = rehearsing.write_freely(Same(), [0] * 40, 101, seed=0)
    found = np.bincount(ids[:, 1:].ravel(), minlength=3) / 4_000
    assert found == pytest.approx(shares.numpy(), abs=4 * math.sqrt(0.25 / 4_000))
    again = rehearsing.write_freely(Same(), [0] * 4, 101, seed=0, first=36)
    assert (again == ids[36:]).all() and len({tuple(row) for row in ids.tolist()}) == 40


def test_sequences_are_joined_and_learned_but_for_their_first_tokens():
    first, second = (whole_sequences(np.full((n, 8), n)) for n in (2, 3))
    both = joined(first, second)
    assert both.ids[:, 0].tolist() == [2, 2, 3, 3, 3] and both.documents == 5
    assert both.owner[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert both.learned.sum() == 5 * 7 and not both.learned[:, 0].any()
    assert both.fingerprint == whole_sequences(both.ids).fingerprint
    assert joined(pack_nothing(8), first).owner.tolist() == first.owner.tolist()
