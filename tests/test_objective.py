"""The objective masks, averages, weights, applies T^2, and resumes bit for bit."""

import copy
import math
from typing import Any, cast

import pytest
import torch

from tutelage.errors import RecipeError, TeacherError
from tutelage.losses import LOSSES, Objective, Term
from tutelage.types import Reading

BATCH, CLASSES = 8, 5
STUDENT_WIDTHS, TEACHER_WIDTHS = (3, 6), (4, 5, 7)
PAIRS = ((0, 1), (1, 2))
LABELS = torch.arange(BATCH) % CLASSES
WHOLE = {"pairs": PAIRS, "student_widths": STUDENT_WIDTHS, "teacher_widths": TEACHER_WIDTHS}


def reading(widths=STUDENT_WIDTHS, *, seed=0, grad=False, outputs=CLASSES) -> Reading:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw).requires_grad_(grad)

    return Reading(
        decision=normal(BATCH, outputs),
        trajectory=tuple(normal(BATCH, outputs) for _ in widths),
        features=tuple(normal(BATCH, width) for width in widths),
        maps=tuple(normal(BATCH, 4, 4).square() for _ in widths),
        states=tuple(normal(BATCH, 5, width) for width in widths[-2:]),  # one a pair
        scores=tuple(normal(BATCH, 5, 5) for _ in PAIRS),
        relations=(normal(BATCH, 3, 5, 4 * len(widths)),),
        keep=torch.arange(5) < torch.arange(BATCH)[:, None] % 5 + 1,
    )


def teacher_reading(seed=100) -> Reading:
    return reading(TEACHER_WIDTHS, seed=seed)


def suited(name):
    """Return readings of student and teacher, and labels, of the kind that the loss is for."""
    if LOSSES[name].decides != "values":
        return reading(), teacher_reading(), LABELS
    student, teacher = reading(outputs=1), reading(TEACHER_WIDTHS, seed=100, outputs=1)
    return student, teacher, LABELS / 2


def fields(source: Reading):
    token = [*source.states, *source.scores, *source.relations]
    return [source.decision, *source.trajectory, *source.features, *source.maps, *token]


def rebuilt(source: Reading, change) -> Reading:
    return source.changed(lambda x: change(x) if x.is_floating_point() else x)


@pytest.mark.parametrize("name", list(LOSSES))
def test_masking_equals_slicing(name):
    objective = Objective((Term(name=name, weight=2.0),), **WHOLE)
    keep = torch.tensor([True, False, True, True, False, True, True, False])
    student, teacher, labels = suited(name)
    sliced = objective(
        student.changed(lambda x: x[keep]), teacher.changed(lambda x: x[keep]), labels[keep]
    )
    # What is masked may be anything at all: it moves neither value nor gradient.
    wild = rebuilt(student, lambda x: x.masked_fill(~keep.view(-1, *[1] * (x.ndim - 1)), math.nan))
    wild = rebuilt(wild, lambda x: x.requires_grad_())
    masked = objective(wild, teacher, labels, keep)
    assert torch.equal(masked.total, sliced.total)
    assert masked.total.item() == 2 * masked.parts[name].item()
    masked.total.backward()
    grads = [x.grad for x in fields(wild) if x.grad is not None]
    assert grads
    for grad in grads:
        assert grad.isfinite().all() and (grad[~keep] == 0).all() and grad[keep].abs().sum() > 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_permuting_the_batch_changes_nothing(name):
    objective = Objective((Term(name=name, weight=1.0),), **WHOLE)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    student, teacher, labels = suited(name)
    straight = objective(student, teacher, labels).total
    permuted = objective(
        student.changed(lambda x: x[order]), teacher.changed(lambda x: x[order]), labels[order]
    ).total
    torch.testing.assert_close(permuted, straight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_needs_are_exactly_what_is_read(name):
    """A reading with only what is needed suffices, and nothing in it can be left out."""
    objective = Objective((Term(name=name),), **WHOLE)
    student, teacher = reading(), teacher_reading()

    def only(source: Reading, wanted: frozenset[str]) -> Reading:
        kinds = ("trajectory", "features", "maps", "states", "scores", "relations")
        kept = {k: getattr(source, k) for k in kinds if k in wanted}
        return Reading(decision=source.decision, keep=source.keep, **kept)

    labels = LABELS if "labels" in objective.needs else None
    asked = objective.needs - {"labels"}
    bare = only(teacher, asked) if asked else None
    objective(only(student, objective.student_needs), bare, labels)
    for missing in objective.needs - {"decision"}:
        with pytest.raises(RecipeError, match=f"'{name}' reads"):
            objective(
                student,
                only(teacher, objective.needs - {missing}),
                None if missing == "labels" else LABELS,
            )
    if asked:
        with pytest.raises(RecipeError, match="there is no teacher"):
            objective(student, None, LABELS)
    for missing in objective.student_needs:
        with pytest.raises(RecipeError, match=f"reads the student's {missing}"):
            objective(only(student, objective.student_needs - {missing}), teacher, LABELS)


def test_needs_are_joined():
    terms = (Term(name="dkd"), Term(name="srd"), Term(name="deep_supervision"))
    objective = Objective(terms, **WHOLE)
    assert objective.needs == {"labels", "decision", "features"}
    assert objective.student_needs == {"features", "trajectory"}


def test_t_squared_is_applied_once_and_only_here():
    student, teacher = reading(), teacher_reading()
    for temperature in (1.0, 3.0):
        term = Term(name="kl", weight=1.0, options={"temperature": temperature})
        got = Objective((term,))(student, teacher, None)
        bare = LOSSES["kl"](student.decision, teacher.decision, temperature=temperature).mean()
        assert got.total.item() == pytest.approx(temperature**2 * bare.item())
    untempered = Objective((Term(name="cross_entropy", weight=1.0),))(student, None, LABELS)
    expected = torch.nn.functional.cross_entropy(student.decision, LABELS)
    assert untempered.total.item() == pytest.approx(expected.item())


def test_pairs_and_branches_are_averaged():
    student, teacher = reading(), teacher_reading()
    names = ("trajectory", "decision_everywhere", "deep_supervision")
    terms = tuple(Term(name=name, weight=1.0) for name in names)
    parts = Objective(terms, pairs=PAIRS)(student, teacher, LABELS).parts
    dist, entropy = LOSSES["dist"], LOSSES["cross_entropy"]
    s, t = student.trajectory, teacher.trajectory
    paired = (dist(s[0], t[1]).mean() + dist(s[1], t[2]).mean()) / 2
    final = (dist(s[0], teacher.decision).mean() + dist(s[1], teacher.decision).mean()) / 2
    control = (entropy(s[0], LABELS).mean() + entropy(s[1], LABELS).mean()) / 2
    for name, expected in zip(names, (paired, final, control), strict=True):
        assert parts[name].item() == pytest.approx(expected.item()), name


def test_total_is_the_weighted_sum_of_the_parts():
    terms = (
        Term(name="dist", weight=0.5),
        Term(name="cross_entropy", weight=0.0),
        Term(name="features", weight=3.0),
    )
    objective = Objective(terms, **WHOLE)
    got = objective(reading(grad=True), teacher_reading(), LABELS)
    weights = objective.weights()
    assert weights == {"dist": 0.5, "cross_entropy": 0.0, "features": 3.0}
    expected = sum(weights[name] * part.item() for name, part in got.parts.items())
    assert got.total.item() == pytest.approx(expected)
    assert got.total.requires_grad and not any(p.requires_grad for p in got.parts.values())


def test_automatic_weights_follow_their_definition():
    terms = (Term(name="cross_entropy"), Term(name="kl", weight=2.0), Term(name="rkd"))
    objective = Objective(terms, share=0.5, balance_steps=3, **WHOLE)
    assert objective.weights() == {"cross_entropy": 1.0, "kl": 2.0, "rkd": 1.0}
    seen = []
    for step in range(5):
        got = objective(reading(seed=step), teacher_reading(step + 50), LABELS)
        if step < 3:
            seen.append({name: part.item() for name, part in got.parts.items()})
        mean = {n: sum(parts[n] for parts in seen) / len(seen) for n in seen[0]}
        weights = objective.weights()
        assert weights["kl"] == 2.0
        for name in ("cross_entropy", "rkd"):
            expected = 0.5 * 2.0 * mean["kl"] / mean[name]
            assert weights[name] == pytest.approx(expected, rel=1e-5)
        total = sum(weights[n] * part.item() for n, part in got.parts.items())
        assert got.total.item() == pytest.approx(total, rel=1e-5)


def test_the_reference_is_the_first_decision_that_weighs_something():
    def reference(*terms):
        objective = Objective(terms, **WHOLE)
        return terms[objective.reference].name

    assert reference(Term(name="srd"), Term(name="dkd"), Term(name="kl")) == "dkd"
    assert reference(Term(name="kl", weight=0.0), Term(name="srd"), Term(name="dist")) == "dist"
    assert reference(Term(name="kl", weight=0.0), Term(name="cross_entropy")) == "cross_entropy"
    alone = Objective((Term(name="dist"),))
    alone(reading(), teacher_reading(), None)
    assert alone.weights() == {"dist": 1.0}


def test_only_training_steps_with_finite_values_move_the_balance():
    objective = Objective((Term(name="kl"), Term(name="cka")), **WHOLE)
    objective(reading(), teacher_reading(), None)
    before = copy.deepcopy(objective.state_dict())
    objective.eval()
    objective(reading(seed=1), teacher_reading(), None)
    objective.train()
    objective(reading(seed=2), teacher_reading(), None, torch.zeros(BATCH, dtype=torch.bool))
    broken = rebuilt(reading(seed=3), lambda x: x * math.nan)
    assert objective(broken, teacher_reading(), None).total.isnan()
    after = objective.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_balanced_weight_is_bounded():
    objective = Objective((Term(name="kl"), Term(name="features")), **WHOLE)
    objective.sums.copy_(torch.tensor([1.0, 0.0]))
    objective.steps.fill_(1)
    assert objective.weights()["features"] == pytest.approx(1e4)


def train(objective, student, optimizer, steps):
    """Take `steps` steps of a toy student; return the totals."""
    totals = []
    for step in steps:
        inputs = reading((3,), seed=step).decision
        outputs = student(inputs)
        said = Reading(decision=outputs[:, :CLASSES], features=(outputs[:, 5:8], outputs[:, 8:]))
        total = objective(said, teacher_reading(step), LABELS).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


def test_state_resumes_bit_for_bit():
    def fresh():
        torch.manual_seed(0)
        terms = (Term(name="dist"), Term(name="srd"), Term(name="cross_entropy"))
        objective = Objective(terms, balance_steps=20, **WHOLE)
        student = torch.nn.Linear(CLASSES, CLASSES + sum(STUDENT_WIDTHS))
        parameters = [*student.parameters(), *objective.parameters()]
        return objective, student, torch.optim.SGD(parameters, lr=0.05)

    straight = fresh()
    expected = train(*straight, range(30))
    first = fresh()
    begun = train(*first, range(12))
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    resumed = fresh()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert begun + train(*resumed, range(12, 30)) == expected
    assert resumed[0].weights() == straight[0].weights()
    ours, theirs = straight[0].state_dict(), resumed[0].state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert len({round(weight, 6) for weight in straight[0].weights().values()}) == 3


def test_projectors_are_the_objectives_own_and_depend_on_the_seed_alone():
    terms = (Term(name="features"), Term(name="dist"), Term(name="srd"))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = Objective(terms, **WHOLE).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    two = Objective(terms, **WHOLE).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    shapes = {key: tuple(one[key].shape) for key in one if key.startswith("projectors")}
    assert shapes == {
        f"projectors.{name}.{pair}.{part}": size
        for name in ("features", "srd")
        for pair, part, size in (
            (0, "weight", (5, 3)), (0, "bias", (5,)), (1, "weight", (7, 6)), (1, "bias", (7,)),
        )
    }  # fmt: skip
    other = Objective(terms, seed=1, **WHOLE).state_dict()
    key = "projectors.srd.1.weight"
    assert not torch.equal(one[key], other[key])


def test_projectors_of_features_begin_as_they_are_fitted():
    begins = [(torch.ones(5, 3), torch.arange(5.0)), (torch.zeros(7, 6), torch.ones(7))]
    objective = Objective((Term(name="features"),), projections=begins, **WHOLE)
    first, second = cast(Any, objective.projectors["features"])
    assert first(torch.ones(1, 3)).tolist() == [[3.0, 4.0, 5.0, 6.0, 7.0]]
    assert second(torch.ones(1, 6)).tolist() == [[1.0] * 7]


def test_projectors_learn():
    objective = Objective((Term(name="features", weight=1.0),), **WHOLE)
    objective(reading(), teacher_reading(), None).total.backward()
    for parameter in objective.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_autocast_changes_nothing():
    terms = tuple(Term(name=name, weight=1.0) for name in LOSSES)
    objective = Objective(terms, **WHOLE)
    student = rebuilt(reading(), lambda x: x.bfloat16())
    teacher = rebuilt(teacher_reading(), lambda x: x.bfloat16())
    plain = objective(student, teacher, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = objective(student, teacher, LABELS)
    assert torch.equal(plain.total, cast.total) and plain.total.dtype == torch.float32
    assert plain.total.isfinite()


def test_a_mask_of_nothing_is_zero_with_a_gradient():
    objective = Objective((Term(name="dist"), Term(name="cka")), **WHOLE)
    student = reading(grad=True)
    got = objective(student, teacher_reading(), None, torch.zeros(BATCH, dtype=torch.bool))
    assert got.total.item() == 0 and set(got.parts) == {"dist", "cka"}
    got.total.backward()
    assert student.decision.grad is not None and (student.decision.grad == 0).all()


@pytest.mark.parametrize(
    ("terms", "shape", "says"),
    [
        ((), {}, "no losses"),
        ((Term(name="dst"),), {}, "unknown loss 'dst'. Did you mean 'dist'?"),
        ((Term(name="kl"), Term(name="kl")), {}, "listed twice"),
        ((Term(name="kl", weight=math.nan),), {}, "the weight of loss 'kl' is nan"),
        ((Term(name="kl", weight=-1.0),), {}, "the weight of loss 'kl' is -1.0"),
        ((Term(name="kl", weight=True),), {}, "the weight of loss 'kl' is True"),
        ((Term(name="kl", weight=0.0),), {}, "every loss has the weight 0"),
        ((Term(name="kl", options={"temp": 2.0}),), {}, "Did you mean 'temperature'?"),
        ((Term(name="trajectory"),), {}, "no taps are paired"),
        ((Term(name="srd"),), {**WHOLE, "pairs": ((2, 0),)}, "student tap 2 with teacher tap 0"),
        ((Term(name="srd"),), {**WHOLE, "pairs": ((0, -1),)}, "correct the pairing"),
    ],
)
def test_a_wrong_objective_is_refused_in_one_line(terms, shape, says):
    with pytest.raises(RecipeError) as caught:
        Objective(terms, **shape)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pairing_beyond_the_taps_is_refused():
    objective = Objective((Term(name="cka"),), pairs=((0, 3),))
    with pytest.raises(RecipeError, match="the student has 2 taps and the teacher 3"):
        objective(reading(), teacher_reading(), None)


def test_different_classes_are_refused():
    fewer = Reading(decision=torch.zeros(BATCH, CLASSES - 1))
    with pytest.raises(TeacherError, match="among 5 classes but the teacher among 4"):
        Objective((Term(name="kl"),))(reading(), fewer, None)
