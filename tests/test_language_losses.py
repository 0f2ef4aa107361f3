"""Losses on the next token: by hand, against plain formulas, and what any loss must hold."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.errors import RecipeError, TeacherError
from tutelage.losses.language import language_loss
from tutelage.losses.language_terms import LANGUAGE_LOSSES
from tutelage.losses.sparse import SparseDecision, dense_of, drawn_of, top_of

N, D, V = 7, 5, 11
COMPARED = ("forward_kl", "reverse_kl", "skew_kl", "generalised_jsd")
KINDS = ("dense", "topk", "sampled")
HAD = [(name, kind) for name, kind in product(COMPARED, KINDS)
       if kind != "sampled" or name == "forward_kl"]  # fmt: skip
every_loss = pytest.mark.parametrize(("name", "kind"), [*HAD, ("token_cross_entropy", "dense")])


def drawn(seed=0, n=N, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(n, D, generator=draw, dtype=dtype)
    head = torch.randn(V, D, generator=draw, dtype=dtype)
    said = torch.randn(n, V, generator=draw, dtype=dtype) * 2
    return states, head, said, torch.randint(V, (n,), generator=draw)


def signal(said: Tensor, kind: str, kept: int = 4, seed: int = 1) -> SparseDecision:
    if kind == "dense":
        return dense_of(said)
    if kind == "topk":
        return top_of(said, kept)
    draw = torch.Generator().manual_seed(seed)
    return drawn_of(said, torch.rand(len(said), kept, generator=draw))


def loss(states, head, teacher, targets, name, chunk=3, **options):
    total, parts = language_loss(
        states, head, teacher, targets, losses={name: 1.0}, chunk=chunk, **options
    )
    torch.testing.assert_close(total.detach(), parts[name])
    return total


def plain(states, head, said, kind, targets, name, temperature=1.0, alpha=0.1, beta=0.5):
    """The definition, with probabilities, all tokens at once."""
    logits = states @ head.T
    if name == "token_cross_entropy":
        return -logits.softmax(1).log()[torch.arange(len(targets)), targets].mean()
    q, p = logits.softmax(1), said.softmax(1)
    if kind == "sampled":
        ids = signal(said, kind).ids.long()
        return (p.gather(1, ids) / q.gather(1, ids)).log().mean()
    if kind == "topk":
        ids = p.topk(4, dim=1).indices
        q, p = (torch.cat([x.gather(1, ids), 1 - x.gather(1, ids).sum(1, True)], 1) for x in (q, p))
    q, p = (x ** (1 / temperature) for x in (q, p))
    q, p = (x / x.sum(1, keepdim=True) for x in (q, p))

    def kl(a, b):
        return (a * (a / b).log()).sum(1).mean()

    found = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "skew_kl": lambda: kl(p, alpha * p + (1 - alpha) * q),
        "generalised_jsd": lambda: (
            beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q)
        ),
    }[name]()
    return found * temperature**2


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_value_and_gradients_are_those_of_the_plain_formula(name, kind, temperature, chunk):
    if kind == "sampled" and temperature != 1:
        return
    states, head, said, targets = drawn()
    given = [x.clone().requires_grad_() for x in (states, head)]
    want = plain(*given, said, kind, targets, name, temperature)
    want.backward()
    mine = [x.clone().requires_grad_() for x in (states, head)]
    got = loss(*mine, signal(said, kind), targets, name, chunk, temperature=temperature)
    (3 * got).backward()
    torch.testing.assert_close(got, want)
    for one, other in zip(mine, given, strict=True):
        torch.testing.assert_close(one.grad, 3 * other.grad)


@every_loss
def test_gradients_are_the_derivative(name, kind):
    """By differences along directions: gradients are handed out once, which gradcheck does not."""
    states, head, said, targets = drawn(n=3)
    told, step = signal(said, kind), 1e-5
    mine = [x.clone().requires_grad_() for x in (states, head)]
    loss(*mine, told, targets, name, 2).backward()
    for seed in range(4):
        ds, dh, *_ = drawn(seed + 10, n=3)
        up, down = (
            loss(states + sign * step * ds, head + sign * step * dh, told, targets, name, 2)
            for sign in (1, -1)
        )
        want = (mine[0].grad * ds).sum() + (mine[1].grad * dh).sum()
        torch.testing.assert_close((up - down) / (2 * step), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 0.4}, {"alpha": 1.0}])
def test_the_skew_is_what_is_given(options):
    states, head, said, targets = drawn()
    got = loss(states, head, dense_of(said), targets, "skew_kl", options={"skew_kl": options})
    want = plain(states, head, said, "dense", targets, "skew_kl", **options)
    torch.testing.assert_close(got, want)


def test_jsd_at_its_ends_becomes_the_two_divergences():
    states, head, said, targets = drawn()
    for beta, name in ((1e-5, "forward_kl"), (1 - 1e-5, "reverse_kl")):
        got = loss(
            states, head, dense_of(said), targets, "generalised_jsd",
            options={"generalised_jsd": {"beta": beta}},
        )  # fmt: skip
        want = plain(states, head, said, "dense", targets, name)
        torch.testing.assert_close(got / min(beta, 1 - beta), want, rtol=1e-3, atol=0)


LN2, LN3 = math.log(2), math.log(3)
BY_HAND = {  # teacher (3/4, 1/4), student (1/2, 1/2); token 1 came
    ("forward_kl", "dense"): 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
    ("reverse_kl", "dense"): 0.5 * math.log(2 / 3) + 0.5 * LN2,
    ("skew_kl", "dense"): 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475),
    ("generalised_jsd", "dense"): 0.5 * (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3))
    + 0.5 * (0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)),
    ("token_cross_entropy", "dense"): LN2,
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case):
    said = torch.tensor([[LN3, 0.0]])
    got = loss(torch.zeros(1, 1), torch.ones(2, 1), dense_of(said), torch.tensor([1]), case[0])
    assert float(got) == pytest.approx(BY_HAND[case], rel=1e-6)


def test_the_tail_is_one_outcome_by_hand():
    """Teacher (1/2, 1/4, 1/8, 1/8) of which one is listed; the student says 1/4 of each."""
    said = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    told = top_of(said, 1)
    assert told.ids.tolist() == [[0]] and float(told.tail) == pytest.approx(-LN2)
    got = loss(torch.zeros(1, 1), torch.ones(4, 1), told, torch.tensor([0]), "forward_kl")
    assert float(got) == pytest.approx(0.5 * LN2 + 0.5 * math.log(2 / 3))


def test_drawn_ids_count_alike_by_hand():
    told = SparseDecision(
        ids=torch.tensor([[2, 0, 2, 2]]), log_probs=torch.tensor([[0.5, 0.25, 0.5, 0.5]]).log(),
        tail=torch.tensor([-torch.inf]), drawn=True,
    )  # fmt: skip
    got = loss(torch.zeros(1, 1), torch.ones(4, 1), told, torch.tensor([0]), "forward_kl")
    assert float(got) == pytest.approx(0.75 * LN2)  # three times log(1/2 : 1/4), once log 1


@pytest.mark.parametrize(("name", "kind"), HAD)
def test_zero_for_self_distillation(name, kind):
    states, head, said, targets = drawn(dtype=torch.float32)
    mine = signal(states @ head.T, kind)
    assert float(loss(states, head, mine, targets, name)) == pytest.approx(0, abs=1e-6)
    assert float(loss(states, head, signal(said, kind), targets, name)) > 1e-3


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_finite_at_ten_thousand_with_finite_gradients(name, kind, temperature):
    if kind == "sampled" and temperature != 1:
        return
    for seed in range(3):
        states, head, said, targets = drawn(seed, dtype=torch.float32)
        states, head = torch.zeros_like(states), torch.zeros_like(head)
        states[:, 0], head[:, 0] = 100.0, 100 * said[0].sign()
        mine = [x.requires_grad_() for x in (states, head)]
        assert (states @ head.T).abs().min() == 1e4
        for teacher in (said.sign() * 1e4, said.sign().flip(1) * 1e4):
            for told in (signal(teacher, kind), _halved(signal(teacher, kind))):
                got = loss(*mine, told, targets, name, temperature=temperature)
                got.backward()
                assert got.isfinite() and all(x.grad.isfinite().all() for x in mine)


def _halved(told: SparseDecision) -> SparseDecision:
    return SparseDecision(
        ids=told.ids, log_probs=told.log_probs.half(), tail=told.tail.half(), drawn=told.drawn
    )


@every_loss
def test_the_mean_is_over_the_tokens_whatever_their_order(name, kind):
    states, head, said, targets = drawn()
    told = signal(said, kind)
    alone = [
        loss(states[i : i + 1], head, told.rows(i, i + 1), targets[i : i + 1], name)
        for i in range(N)
    ]
    whole = loss(states, head, told, targets, name)
    torch.testing.assert_close(whole, torch.stack(alone).mean())
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    moved = SparseDecision(
        ids=None if told.ids is None else told.ids[order], log_probs=told.log_probs[order],
        tail=told.tail[order], drawn=told.drawn,
    )  # fmt: skip
    torch.testing.assert_close(loss(states[order], head, moved, targets[order], name), whole)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_tail_of_nothing_is_the_dense_decision(name, temperature):
    states, head, said, targets = drawn()
    told = top_of(said, V + 5)
    assert told.ids.shape == (N, V) and (told.tail == -torch.inf).all()
    options = {"temperature": temperature}
    got = loss(states, head, told, targets, name, **options)
    torch.testing.assert_close(got, loss(states, head, dense_of(said), targets, name, **options))


@pytest.mark.parametrize("kept", range(1, V))
def test_outcomes_put_together_never_tell_more_than_all_of_them(kept):
    states, head, said, targets = drawn()
    values = [
        float(loss(states, head, top_of(said, k), targets, "forward_kl")) for k in (kept, kept + 1)
    ]
    assert 0 < values[0] <= values[1] + 1e-12


def test_drawn_tokens_are_unbiased_in_value_and_gradient():
    states, head, said, targets = drawn(n=3)
    draws, kept = 4000, 2
    draw = torch.Generator().manual_seed(0)
    many = [x.repeat(draws, 1) for x in (states, said)]
    told = drawn_of(many[1], torch.rand(3 * draws, kept, generator=draw))
    grads = []
    for s, t in ((states, dense_of(said)), (many[0], told)):
        weight = head.clone().requires_grad_()
        got = loss(s, weight, t, torch.zeros(len(s), dtype=torch.int64), "forward_kl", None)
        got.backward()
        grads.append((got.detach(), weight.grad))
    torch.testing.assert_close(grads[1][0], grads[0][0], rtol=0.02, atol=0)
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=0, atol=0.02)
    # Without drawing the tail, the estimate would be off by far more than that.
    cut = loss(states, head, top_of(said, kept), targets, "forward_kl")
    assert abs(float(cut - grads[0][0])) > 0.2


def test_draws_follow_the_distribution_with_less_than_independent_variance():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    draw = torch.Generator().manual_seed(3)
    n, kept = 20_000, 4
    told = drawn_of(torch.tensor(p).log().repeat(n, 1), torch.rand(n, kept, generator=draw))
    counts = torch.nn.functional.one_hot(told.ids.long(), 4).sum(1).double().numpy()
    assert np.abs(counts.mean(0) / kept - p).max() < 3 * 0.5 / np.sqrt(n * kept)
    assert (counts.var(0) <= kept * p * (1 - p) * 1.02).all()
    assert (counts[:, 0] == 2).all()  # half the mass is two of four strata
    torch.testing.assert_close(told.log_probs, torch.tensor(p).log()[told.ids.long()])


def test_what_cannot_come_is_never_drawn():
    said = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for u in (0.0, 1 - 1e-12):
        told = drawn_of(said, torch.full((1, 6), u, dtype=torch.float64))
        assert told.ids.tolist() == [[1, 1, 1, 3, 3, 3]]


def test_several_losses_are_added_by_their_weights_and_t2_is_applied_once():
    states, head, said, targets = drawn()
    losses = {"forward_kl": 0.7, "token_cross_entropy": 0.2, "reverse_kl": 0.0}
    total, parts = language_loss(
        states, head, dense_of(said), targets, losses=losses, temperature=2.0
    )
    want = [
        plain(states, head, said, "dense", targets, name, 2.0)
        for name in ("forward_kl", "token_cross_entropy", "reverse_kl")
    ]
    torch.testing.assert_close(total, 0.7 * want[0] + 0.2 * want[1])
    for part, value in zip(parts.values(), want, strict=True):
        torch.testing.assert_close(part, value)
    assert list(parts) == list(losses) and not any(p.requires_grad for p in parts.values())


def test_capped_logits_are_those_of_the_network():
    states, head, said, targets = drawn()
    mine = [x.clone().requires_grad_() for x in (states, head)]
    got = loss(*mine, None, targets, "token_cross_entropy", cap=2.0)
    got.backward()
    given = [x.clone().requires_grad_() for x in (states, head)]
    want = torch.nn.functional.cross_entropy(2 * torch.tanh(given[0] @ given[1].T / 2), targets)
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mine[1].grad, given[1].grad)


def test_half_precision_is_widened_for_sums_and_gradients_keep_their_type():
    states, head, said, targets = drawn(dtype=torch.float32)
    want = loss(states, head, dense_of(said), targets, "forward_kl")
    mine = [x.bfloat16().requires_grad_() for x in (states, head)]
    got = loss(*mine, dense_of(said), targets, "forward_kl")
    got.backward()
    assert got.dtype == torch.float32 and all(x.grad.dtype == torch.bfloat16 for x in mine)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)
    single = [x.clone().requires_grad_() for x in (states, head)]
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(*single, dense_of(said), targets, "forward_kl")
    got.backward()
    assert got.dtype == torch.float32 and all(x.grad.dtype == torch.float32 for x in single)
    rounded = loss(states.bfloat16(), head.bfloat16(), dense_of(said), targets, "forward_kl")
    torch.testing.assert_close(got.detach(), rounded)
    assert float((rounded - want).abs()) > 1e-5
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)


def test_only_what_is_wanted_gets_a_gradient():
    states, head, said, targets = drawn()
    states.requires_grad_()
    loss(states, head, dense_of(said), targets, "forward_kl").backward()
    assert states.grad is not None and head.grad is None
    with torch.inference_mode():
        assert not loss(states, head, dense_of(said), targets, "forward_kl").requires_grad
    got = loss(states, head, dense_of(said), targets, "forward_kl")
    got.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already"):
        got.backward()


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor has which is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_all_tokens_never_exist_at_once(kind):
    n, vocabulary = 40, 300
    draw = torch.Generator().manual_seed(0)
    states, head = (torch.randn(x, D, generator=draw).requires_grad_() for x in (n, vocabulary))
    told = signal(torch.randn(n, vocabulary, generator=draw), kind)
    targets = torch.zeros(n, dtype=torch.int64)
    for chunk, most in ((4, 4 * vocabulary), (n, n * vocabulary)):
        with Largest() as seen:
            loss(states, head, told, targets, "forward_kl", chunk).backward()
        assert seen.numbers == max(most, D * vocabulary)


def test_no_token_is_no_loss():
    states, head, said, targets = drawn(n=0)
    states.requires_grad_()
    total, parts = language_loss(
        states, head, dense_of(said), targets, losses={"forward_kl": 1.0}
    )  # fmt: skip
    total.backward()
    assert float(total.detach()) == 0 == float(parts["forward_kl"]) and states.grad.shape == (0, D)


WRONG = [
    ({"losses": {"forward_k": 1.0}}, "Did you mean 'forward_kl'"),
    ({"losses": {}}, "no loss is given"),
    ({"losses": {"forward_kl": -1.0}}, "weight of loss 'forward_kl' is -1"),
    ({"losses": {"forward_kl": math.nan}}, "weight of loss 'forward_kl' is nan"),
    ({"temperature": 0.0}, "temperature is 0"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"options": {"skew_kl": {}}}, "'skew_kl', which is not among"),
    ({"options": {"forward_kl": {"alpha": 1}}}, "takes no options"),
    ({"losses": {"skew_kl": 1.0}, "options": {"skew_kl": {"alpha": 2}}}, "from 0 to 1"),
    (
        {"losses": {"generalised_jsd": 1.0}, "options": {"generalised_jsd": {"beta": 1}}},
        "take forward_kl or reverse_kl",
    ),
    ({"teacher": None}, "loss 'forward_kl' reads what the teacher says"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG)
def test_wrong_wishes_are_refused(changes, says):
    states, head, said, targets = drawn()
    given = {"losses": {"forward_kl": 1.0}, "teacher": dense_of(said), **changes}
    with pytest.raises(RecipeError, match=says):
        language_loss(states, head, given.pop("teacher"), targets, **given)


@pytest.mark.parametrize("name", COMPARED[1:])
def test_drawn_tokens_give_forward_kl_alone(name):
    states, head, said, targets = drawn()
    with pytest.raises(RecipeError, match=f"'{name}' cannot be had from drawn tokens"):
        loss(states, head, signal(said, "sampled"), targets, name)
    with pytest.raises(RecipeError, match="temperature 1"):
        loss(states, head, signal(said, "sampled"), targets, "forward_kl", temperature=2.0)


def test_what_does_not_belong_together_is_refused():
    states, head, said, targets = drawn()
    with pytest.raises(TeacherError, match="speaks of 6 tokens and the student of 7"):
        loss(states, head, dense_of(said[:6]), targets, "forward_kl")
    with pytest.raises(TeacherError, match="among 10 tokens and the student among 11"):
        loss(states, head, dense_of(said[:, :10]), targets, "forward_kl")
    with pytest.raises(ValueError, match="belong together"):
        loss(states, head[:, :3], dense_of(said), targets, "forward_kl")


def test_every_language_loss_is_covered():
    # Once their modules are loaded; see test_language_inside and test_spans.
    others = {"hidden", "relations", "uld"}
    assert set(LANGUAGE_LOSSES) - others == {*COMPARED, "token_cross_entropy"}
