"""Every registered loss is held to the same rules; each adds one value worked out by hand."""

import math
from typing import get_args, get_type_hints

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import AbstractArray
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.losses import LOSSES, Loss, loss
from tutelage.losses.base import Reads
from tutelage.losses.language_spans import ULD

BATCH, CLASSES = 6, 5
ON_LABELS = {"cross_entropy", "deep_supervision"}

CASES = [(name, {}) for name in LOSSES]
CASES += [("trajectory", {"by": "kl"}), ("decision_everywhere", {"by": "kl"})]
CASES += [("cross_entropy", {"label_smoothing": 0.1}), ("rkd", {"angle": 0.0})]
every_loss = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in CASES]
)


def arguments(entry: Loss, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Return what `entry` is called with: the student's tensor, then its targets."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    labels = torch.arange(BATCH) % CLASSES
    if entry.decides == "values":
        return [normal(BATCH, 1), normal(BATCH) if entry.reads == "labels" else normal(BATCH, 1)]
    if entry.reads == "features":
        return [normal(BATCH, 7), normal(BATCH, 7 if entry.projector else 4)]
    if entry.reads == "maps":
        return [normal(BATCH, 4, 4).square(), normal(BATCH, 8, 3).square()]
    keep = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    if entry.reads == "states":
        return [normal(BATCH, 5, 7), normal(BATCH, 5, 7), keep]
    if entry.reads == "scores":
        return [normal(BATCH, 5, 5), normal(BATCH, 5, 5), keep]
    if entry.reads == "relations":
        return [normal(BATCH, 3, 5, 8), normal(BATCH, 3, 5, 4), keep]
    student, teacher = normal(BATCH, CLASSES), normal(BATCH, CLASSES)
    if "label" not in entry.reads:
        return [student, teacher]
    return [student, teacher, labels] if entry.reads == "labelled_decision" else [student, labels]


def test_every_kind_of_reading_is_covered():
    covered = {LOSSES[name].reads for name in LOSSES} | {ULD.reads}
    assert covered == set(get_args(Reads))  # spans are of language models alone


@every_loss
def test_one_value_an_example_in_the_annotated_shapes(name, options):
    entry = LOSSES[name]
    values = arguments(entry)
    hints = get_type_hints(entry.function)
    with jaxtyping.jaxtyped("context"):  # one context: `batch` must be the same everywhere
        result = entry(*values, **options)
        shapes = [h for h in hints.values() if isinstance(h, type) and issubclass(h, AbstractArray)]
        assert len(shapes) == len(values) + 1
        for value, shape in zip([*values, result], shapes, strict=True):
            assert isinstance(value, shape)
    assert result.shape == (BATCH,)
    assert result.dtype == torch.float32


@every_loss
def test_zero_for_self_distillation(name, options):
    entry = LOSSES[name]
    student, *targets = arguments(entry)
    if name == "value_error":
        assert entry(student, student[:, 0]).abs().max() == 0 < entry(student, *targets).mean()
        return
    if name in ON_LABELS:  # nothing to imitate: zero where the label is certain
        sure = torch.nn.functional.one_hot(targets[0], CLASSES) * 1e4
        expected = 0.1 * 1e4 * (1 - 1 / CLASSES) if options else 0.0
        assert entry(sure, *targets, **options).mean().item() == pytest.approx(expected)
        return
    assert entry(student, student, *targets[1:], **options).mean().item() == pytest.approx(
        0, abs=2e-5
    )
    assert entry(student, *targets, **options).mean() > 1e-3


@every_loss
def test_finite_at_ten_thousand_with_finite_gradients(name, options):
    entry = LOSSES[name]
    for seed in range(3):
        student, *targets = arguments(entry, seed=seed)
        student = (student.sign() * 1e4).requires_grad_()
        targets = [t.sign() * 1e4 if t.is_floating_point() else t for t in targets]
        value = entry(student, *targets, **options)
        value.mean().backward()
        assert value.isfinite().all()
        assert student.grad is not None and student.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_finite_where_nothing_varies(name, options, constant):
    """A student fresh from zero-initialised layers says the same of every example."""
    entry = LOSSES[name]
    student, *targets = arguments(entry)
    student = torch.full_like(student, constant).requires_grad_()
    value = entry(student, *targets, **options)
    value.mean().backward()
    assert value.isfinite().all()
    assert student.grad is not None and student.grad.isfinite().all()
    # A step must not be thrown by a division by almost nothing.
    assert student.grad.abs().max() < 1e7


@every_loss
def test_a_batch_of_one_is_finite(name, options):
    entry = LOSSES[name]
    student, *targets = (value[:1] for value in arguments(entry))
    assert entry(student, *targets, **options).isfinite().all()


@every_loss
def test_gradient_reaches_the_student_and_never_the_teacher(name, options):
    entry = LOSSES[name]
    student, *targets = arguments(entry)
    student.requires_grad_()
    teachers = [t.requires_grad_() for t in targets if t.is_floating_point()]
    entry(student, *targets, **options).mean().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert all(teacher.grad is None for teacher in teachers)


@every_loss
def test_gradient_is_the_derivative(name, options):
    entry = LOSSES[name]
    student, *targets = arguments(entry, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: entry(s, *targets, **options), (student,))


@every_loss
def test_permuting_the_batch_only_permutes_the_values(name, options):
    entry = LOSSES[name]
    values = arguments(entry)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight = entry(*values, **options)
    permuted = entry(*(value[order] for value in values), **options)
    torch.testing.assert_close(permuted, straight[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(permuted.mean(), straight.mean(), rtol=1e-5, atol=1e-6)


@every_loss
def test_half_precision_is_computed_in_float32(name, options):
    entry = LOSSES[name]
    halves = arguments(entry, dtype=torch.bfloat16)
    whole = entry(*(v.float() if v.is_floating_point() else v for v in halves), **options)
    assert torch.equal(entry(*halves, **options), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(entry(*halves, **options), whole)


def value(name: str, *tensors: object, **options: object) -> float:
    return LOSSES[name](*(torch.as_tensor(t) for t in tensors), **options).mean().item()


def test_kl_by_hand():
    student, teacher = [[0.0, 0.0]], [[math.log(3), 0.0]]  # (1/2, 1/2) against (3/4, 1/4)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert value("kl", student, teacher, temperature=1.0) == pytest.approx(expected)
    doubled = [[2 * math.log(3), 0.0]]  # the same at twice the temperature, with no T^2 here
    assert value("kl", student, doubled, temperature=2.0) == pytest.approx(expected)
    for name in ("trajectory", "decision_everywhere"):
        got = value(name, student, teacher, by="kl", temperature=1.0)
        assert got == pytest.approx(expected)


def test_dkd_by_hand():
    student, label = [[0.0, 0.0, 0.0]], torch.tensor([0])
    binary = [[math.log(2), 0.0, 0.0]]  # (1/2, 1/4, 1/4): only the true class differs
    expected = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert value("dkd", student, binary, label, temperature=1.0) == pytest.approx(expected)
    tripled = value("dkd", student, binary, label, alpha=3.0, temperature=1.0)
    assert tripled == pytest.approx(3 * expected)
    others = [[math.log(2), math.log(3), 0.0]]  # (1/3, 1/2, 1/6): only the others differ
    expected = 8 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert value("dkd", student, others, label, temperature=1.0) == pytest.approx(expected)


def test_dkd_with_beta_of_the_rest_is_kl():
    """Equation 5 of the paper: KL = TCKD + (1 - p_true) NCKD."""
    student, teacher, labels = (v[:1] for v in arguments(LOSSES["dkd"]))
    rest = 1 - teacher.softmax(1)[0, labels[0]].item()
    got = value("dkd", student, teacher, labels, beta=rest, temperature=1.0)
    assert got == pytest.approx(value("kl", student, teacher, temperature=1.0), rel=1e-5)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_dist_by_numpy():
    student, teacher = (v.numpy() for v in arguments(LOSSES["dist"], dtype=torch.float64))
    p_s, p_t = softmax(student / 2), softmax(teacher / 2)
    inter = np.mean([1 - np.corrcoef(p_s[i], p_t[i])[0, 1] for i in range(BATCH)])
    intra = np.mean([1 - np.corrcoef(p_s[:, c], p_t[:, c])[0, 1] for c in range(CLASSES)])
    got = value("dist", student, teacher, beta=2.0, gamma=3.0, temperature=2.0)
    assert got == pytest.approx(2 * inter + 3 * intra, rel=1e-5)
    for name in ("trajectory", "decision_everywhere"):
        assert value(name, student, teacher, temperature=2.0) == pytest.approx(
            inter + intra, rel=1e-5
        )


def test_logit_standardised_by_numpy():
    student, teacher = (v.numpy() for v in arguments(LOSSES["kl"], dtype=torch.float64))
    p_s, p_t = (
        softmax((z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True) / 2)
        for z in (student, teacher)
    )
    expected = (p_t * np.log(p_t / p_s)).sum(1).mean()
    assert value("logit_standardised", student, teacher) == pytest.approx(expected)
    # Shift and scale of the logits do not count.
    assert value("logit_standardised", 7 * student - 3, teacher) == pytest.approx(expected)


def test_losses_of_values_by_hand():
    assert value("squared_error", [[3.0], [0.0]], [[1.0], [1.0]]) == pytest.approx((4 + 1) / 2)
    assert value("value_trajectory", [[3.0]], [[1.0]]) == pytest.approx(4.0)
    # Huber: 0.5^2 / 2 within delta; beyond, delta (|e| - delta / 2)
    student, labels = [[0.5], [-3.0]], [0.0, 1.0]
    assert value("value_error", student, labels) == pytest.approx((0.125 + 3.5) / 2)
    assert value("value_error", student, labels, delta=2.0) == pytest.approx((0.125 + 6.0) / 2)


def test_losses_say_which_decisions_they_are_for():
    of_values = {name for name in LOSSES if LOSSES[name].decides == "values"}
    both = {name for name in LOSSES if LOSSES[name].decides == "both"}
    assert of_values == {"squared_error", "value_error", "value_trajectory"}
    assert both == {"features", "srd", "attention", "rkd", "cka"}


def test_cross_entropy_by_hand():
    logits, label = [[math.log(3), 0.0]], torch.tensor([0])  # (3/4, 1/4)
    smooth = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25))
    for name in ("cross_entropy", "deep_supervision"):
        assert value(name, logits, label) == pytest.approx(-math.log(0.75))
        assert value(name, logits, label, label_smoothing=0.2) == pytest.approx(smooth)


def test_features_by_hand():
    # mean squares away: (1 + 0) / 2 and (0 + 4) / 2; the teacher's variance: (1 + 1 + 4 + 4) / 4
    student, teacher = torch.tensor([[0.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [3, 6]])
    assert LOSSES["features"](student, teacher).tolist() == pytest.approx([0.5 / 2.5, 2 / 2.5])


def test_features_of_a_teacher_that_never_varies_teach_nothing():
    student = torch.ones(4, 3, requires_grad=True)
    LOSSES["features"](student, torch.zeros(4, 3)).sum().backward()
    assert student.grad is not None and not student.grad.any()


def test_a_student_that_says_the_mean_of_features_loses_one():
    teacher = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    said = teacher.mean(dim=0).expand(64, -1)
    assert LOSSES["features"](said, teacher).mean().item() == pytest.approx(1.0, abs=1e-5)


def test_srd_by_hand():
    # bn gives +-1 / sqrt(1.0001); opposite signs differ by 2 of these, twice
    expected = math.log(1 + 2 * 16 / 1.0001**2)
    assert value("srd", [[1.0], [-1.0]], [[-1.0], [1.0]]) == pytest.approx(expected)


def test_srd_is_the_published_loss_on_a_real_batch():
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 64, 32, generator=draw)
    norm = torch.nn.BatchNorm1d(32, eps=1e-4, affine=False)
    published = (norm(student) - norm(teacher)).abs().pow(4).sum().log().item()
    assert value("srd", student, teacher) == pytest.approx(published, rel=1e-5)


def test_attention_by_hand():
    assert value("attention", [[[3.0, 4.0]]], [[[10.0, 0.0]]]) == pytest.approx(0.8)
    # A 2 x 4 map averaged to 1 x 2: rows and column pairs give 3 and 4.
    larger = [[[2.0, 4.0, 4.0, 4.0], [3.0, 3.0, 3.0, 5.0]]]
    assert value("attention", larger, [[[10.0, 0.0]]]) == pytest.approx(0.8)
    assert value("attention", [[[10.0, 0.0]]], larger) == pytest.approx(0.8)


def test_rkd_by_hand():
    right = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]  # sides 3, 4, 5, over their mean: 3/4, 1, 5/4
    equal = [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, math.sqrt(3), 0.0]]
    pairs = 2 * 2 * 0.5 * 0.25**2 / 9
    # cosines 0, 3/5, 4/5 against 1/2, each twice, among 27 triples
    triples = 2 * 0.5 * (0.5**2 + 0.1**2 + 0.3**2) / 27
    assert value("rkd", equal, right, angle=0.0) == pytest.approx(pairs)
    assert value("rkd", equal, right) == pytest.approx(pairs + 2 * triples)


def test_cka_by_numpy():
    student, teacher = (v.numpy() for v in arguments(LOSSES["cka"], dtype=torch.float64))
    x, y = student - student.mean(0), teacher - teacher.mean(0)
    norm = np.linalg.norm
    expected = 1 - norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert value("cka", student, teacher) == pytest.approx(expected)


def test_options_come_from_the_signature():
    assert LOSSES["kl"].options == {"temperature": 4.0}
    assert LOSSES["cka"].options == {}
    assert LOSSES["dkd"].checked({"beta": 2}) == {"alpha": 1.0, "beta": 2.0, "temperature": 4.0}


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_can_be_built_from_its_own_defaults(name):
    entry = LOSSES[name]
    assert entry.checked(entry.options) == entry.options
    entry(*arguments(entry), **entry.checked({}))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("kl", {"temprature": 2.0}, "loss 'kl' has no option 'temprature'. Did you mean 'temper"),
        ("cka", {"alpha": 2.0}, "loss 'cka' takes no options; remove 'alpha'"),
        ("kl", {"temperature": 0}, "greater than 0"),
        ("kl", {"temperature": math.nan}, "finite number"),
        ("kl", {"temperature": True}, "finite number"),
        ("kl", {"temperature": "hot"}, "'hot'; give a finite number"),
        ("kl", {"temperature": None}, "finite number"),
        ("cross_entropy", {"label_smoothing": 1.5}, "from 0 to 1"),
        ("dist", {"beta": -1}, "0 or more"),
        ("trajectory", {"by": "mse"}, "give one of 'dist', 'kl'"),
        ("trajectory", {"by": []}, "give one of 'dist', 'kl'"),
    ],
)
def test_a_wrong_option_is_named(name, options, says):
    with pytest.raises(RecipeError) as caught:
        LOSSES[name].checked(options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_loss_lists_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'trajectory'"):
        LOSSES["trajectori"]


def test_the_decorator_refuses_what_could_not_be_used():
    def kl(student, teacher):
        return student

    with pytest.raises(ValueError, match="registered twice"):
        loss(reads="decision")(kl)

    def unbuildable(student, teacher, *, power):
        return student

    with pytest.raises(ValueError, match="without a default: power"):
        loss(reads="decision")(unbuildable)

    def cold(student, teacher):
        return student

    with pytest.raises(ValueError, match="no option 'temperature'"):
        loss(reads="decision", tempered=True)(cold)
    assert "cold" not in LOSSES and "unbuildable" not in LOSSES
