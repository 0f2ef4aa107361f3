"""Distillation as a lesson: what is read, in which order, and that a student learns from it."""

import copy

import pytest
import tiny
import torch

from tutelage.errors import RecipeError, StudentError
from tutelage.losses import Objective, Term
from tutelage.progress import Silent
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.strided import sliced_strides
from tutelage.students.taps import TapReader, find_taps
from tutelage.teach.lenses import fit_lenses
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.train.distill import Distillation, decisions
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule
from tutelage.types import Batch, Tap

CLASSES, COUNT, HELD = tiny.CLASSES, 120, 60
VIEWS = 3


def split(name, count, seed, *, labelled=True):
    pixels, labels = tiny.images(count, seed=seed)
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1
    numbers = torch.from_numpy(labels)

    def batch(index, view):
        seen = torch.roll(inputs[index], view % VIEWS, dims=3)
        return Batch(
            inputs=seen, labels=numbers[index] if labelled else None, index=index, view=view
        )

    return Split(name=name, count=count, content=f"{name}-{seed}-{labelled}", batch=batch)


TRAIN, VALIDATION = split("train", COUNT, 0), split("validation", HELD, 1)


def network(widths=(4, 6), seed=1):
    torch.manual_seed(seed)
    spec = ConvNetSpec(image=(1, 8, 8), classes=CLASSES, widths=widths, depths=(1,) * len(widths))
    return ConvNet(spec)


def lesson(student=None, *losses, signals=None, train=TRAIN, validation=VALIDATION, **options):
    student = student or network()
    taps = find_taps(student, torch.zeros(2, 1, 8, 8))
    objective = Objective(
        tuple(Term(name=name, weight=1.0) for name in losses or ("cross_entropy",)),
        pairs=((0, 0), (1, 1)),
        student_widths=(4, 6),
        teacher_widths=(8, 12),
    )
    given = {"taps": taps, "classes": CLASSES, "views": VIEWS, "batch": 16, "seed": 0, **options}
    return Distillation(student, objective, train, validation, signals=signals, **given)


def schedule(epochs):
    return Schedule(epochs=epochs, rate=0.02, ema=0.9, precision="float32")


@pytest.fixture(scope="module")
def teacher():
    """A good teacher, taught by labels alone; that it learns is a test of its own."""
    net = network((8, 12), seed=0)
    history = Trainer(lesson(net, "cross_entropy", views=1), schedule(8)).train()
    return net, history


def asked(teacher):
    return TorchTeacher(copy.deepcopy(teacher[0]), classes=CLASSES, image_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def cache(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    held = SignalCache(
        folder, TRAIN, views=VIEWS, features=True, maps=True, teacher=asked(teacher)
    )  # fmt: skip
    held.fill(Silent())
    seen = held.read(torch.arange(COUNT), 0)
    held.lenses = fit_lenses(seen.features, seen.decision, seen.features, seen.decision)
    return held


def test_a_network_learns_from_labels(teacher):
    assert teacher[1].figure[-1] > 0.95


def test_an_epoch_is_a_pure_function_of_seed_and_number():
    made = lesson()
    first = [batch.index.tolist() for batch, _ in made.batches(2, 0)]
    assert first == [batch.index.tolist() for batch, _ in lesson().batches(2, 0)]
    assert first != [batch.index.tolist() for batch, _ in made.batches(3, 0)]
    assert first != [batch.index.tolist() for batch, _ in lesson(seed=1).batches(2, 0)]
    assert [batch.index.tolist() for batch, _ in made.batches(2, 4)] == first[4:]
    assert len(first) == made.steps() == COUNT // 16
    flat = sum(first, [])
    assert len(flat) == len(set(flat)) == 112 and set(flat) <= set(range(COUNT))


def test_epochs_go_through_the_views(cache):
    made = lesson(None, "kl", signals=cache)
    for epoch, view in ((0, 0), (1, 1), (2, 2), (3, 0), (7, 1)):
        batch, said = next(made.batches(epoch, 0))
        assert batch.view == view == made.view_of(epoch)
        assert torch.equal(batch.inputs, TRAIN.batch(batch.index, view).inputs)
        assert torch.equal(said.decision, cache.read(batch.index, view).decision)
    live = lesson(None, "kl", signals=LiveSignals(cache.teacher, features=False, maps=False))
    assert live.view_of(7) == 7


def test_a_short_trial_sees_the_same_few_examples_every_epoch():
    made = lesson(examples=40)
    assert made.steps() == 2
    seen = [{i for b, _ in made.batches(e, 0) for i in b.index.tolist()} for e in range(20)]
    assert len(set().union(*seen)) == 40
    assert max(set().union(*seen)) > 60  # spread over the data, not its head
    assert lesson(examples=10**6).count == COUNT
    assert lesson(batch=10**6).steps() == 1


ALL = ("kl", "dist", "cross_entropy", "trajectory", "features", "srd", "attention", "rkd")


@pytest.mark.parametrize("loss", [*ALL, "deep_supervision"])
def test_cached_and_live_signals_give_the_same_loss(cache, loss):
    live = LiveSignals(cache.teacher, features=True, maps=True)
    live.lenses = cache.lenses
    values = []
    for signals in (cache, live):
        made = lesson(None, loss, signals=signals)
        for epoch in range(2):
            total, parts = made.loss(next(made.batches(epoch, 2)))
            assert list(parts) == [loss]
            values.append(float(total.detach()))
    assert values[:2] == pytest.approx(values[2:], rel=5e-3)
    assert values[0] != values[1]


def test_nothing_is_hooked_when_only_decisions_are_needed(cache, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a tap was read")

    made = lesson(None, "kl", "cross_entropy", signals=cache)
    assert made.taps == () and list(made.branches.parameters()) == []
    monkeypatch.setattr(TapReader, "__init__", refuse)
    found = made.read(torch.zeros(2, 1, 8, 8))
    assert found.trajectory == found.features == found.maps == ()


def test_what_is_read_is_what_the_losses_need(cache):
    inputs = torch.zeros(2, 1, 8, 8)
    for loss, filled in (("trajectory", "trajectory"), ("srd", "features"), ("attention", "maps")):
        made = lesson(None, loss, signals=cache)
        found = made.read(inputs)
        for name in ("trajectory", "features", "maps"):
            assert len(getattr(found, name)) == (2 if name == filled else 0)
        assert not any(m._forward_hooks for m in made.student.modules())


def test_the_last_tap_has_no_branch(cache):
    made = lesson(None, "trajectory", "features", signals=cache)
    found = made.read(torch.zeros(2, 1, 8, 8))
    assert found.trajectory[0].shape == (2, CLASSES) and found.trajectory[1].numel() == 0
    assert [f.shape[1] for f in found.features] == [4, 6]
    alone = lesson(None, "deep_supervision", taps=(Tap(path="stages.0", shape=(4, 8, 8)),))
    assert alone.read(torch.zeros(2, 1, 8, 8)).trajectory[0].shape == (2, CLASSES)


def test_branches_hang_on_the_seed_alone():
    torch.manual_seed(1)
    one = lesson(None, "deep_supervision").branches.state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    student = copy.deepcopy(network())
    torch.set_rng_state(before)
    other = lesson(student, "deep_supervision").branches.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    third = lesson(None, "deep_supervision", seed=5).branches.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)


def test_gradients_reach_student_branches_and_projectors(cache):
    made = lesson(None, "trajectory", "features", signals=cache)
    with sliced_strides(made.modules):  # as the loop does
        made.loss(next(made.batches(0, 0)))[0].backward()
    for number, module in enumerate(made.modules):
        parameters = dict(module.named_parameters())
        if number == 0:  # nothing here asks for the decision itself
            parameters = {n: p for n, p in parameters.items() if not n.startswith("head")}
        assert parameters
        for name, parameter in parameters.items():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in cache.teacher.module.parameters())


def test_a_tap_without_a_map_is_named():
    flat = Tap(path="pool", shape=(6,))
    made = lesson(None, "attention", taps=(Tap(path="stages.0", shape=(4, 8, 8)), flat))
    made.student.pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(StudentError, match="'pool' has no height and width"):
        made.read(torch.zeros(2, 1, 8, 8))


def test_a_loss_that_lacks_taps_or_a_teacher_is_told(cache):
    with pytest.raises(RecipeError, match="student gives none"):
        made = lesson(None, "features", signals=cache, taps=())
        made.loss(next(made.batches(0, 0)))
    with pytest.raises(RecipeError, match="there is no teacher"):
        made = lesson(None, "kl")
        made.loss(next(made.batches(0, 0)))


def test_validation_is_accuracy_and_without_labels_agreement(teacher):
    made, net = lesson(), network(seed=4).eval()
    said = decisions(net, VALIDATION)
    labels = VALIDATION.batch(torch.arange(HELD), 0).labels
    assert made.evaluate((net,)) == float((said.argmax(-1) == labels).double().mean())
    bare = split("validation", HELD, 1, labelled=False)
    theirs = decisions(teacher[0], bare)
    blind = lesson(validation=bare, validation_decision=theirs)
    want = float((said.argmax(-1) == theirs.argmax(-1)).double().mean())
    assert blind.evaluate((net,)) == pytest.approx(want)
    assert lesson(validation=bare, validation_decision=said).evaluate((net,)) == 1.0


def test_decisions_are_those_of_the_network_in_evaluation_mode(monkeypatch):
    net = network(seed=4).train()
    monkeypatch.setattr("tutelage.train.distill._EVALUATION_BATCH", 7)
    found = decisions(net, VALIDATION)
    net.eval()
    with torch.no_grad():
        want = net(VALIDATION.batch(torch.arange(HELD), 0).inputs)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_the_key_follows_what_is_taught(cache):
    def changed(**options):
        return lesson(None, *options.pop("losses", ("kl",)), **{"signals": cache, **options}).key

    live = LiveSignals(cache.teacher, features=False, maps=False)
    other = split("train", COUNT, 2)
    keys = [
        changed(), changed(losses=("dist",)), changed(seed=1), changed(views=2), changed(batch=8),
        changed(examples=50), changed(train=other), changed(validation=other),
        changed(signals=live), changed(signals=None),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys) and changed() == keys[0]


def agreement(net, teacher):
    mine, theirs = (decisions(n, VALIDATION).argmax(-1) for n in (net, teacher))
    return float((mine == theirs).float().mean())


@pytest.mark.parametrize("losses", [("kl",), ("dist", "trajectory")])
def test_a_student_without_labels_comes_near_its_teacher(cache, teacher, losses):
    bare = split("train", COUNT, 0, labelled=False)
    student = network(seed=6)
    before = agreement(copy.deepcopy(student), teacher[0])
    made = lesson(student, *losses, signals=cache, train=bare)
    history = Trainer(made, schedule(8)).train()
    assert before < 0.7 and agreement(student, teacher[0]) > 0.9
    assert history.loss[-1] < 0.5 * history.loss[0]


def test_a_teacher_that_errs_is_followed_against_the_labels(teacher, tmp_path):
    """Signals, not labels, teach: a teacher with its classes turned round is obeyed."""
    wrong = copy.deepcopy(teacher[0])
    for tensor in (wrong.head.weight.data, wrong.head.bias.data):
        tensor.copy_(tensor.roll(1, 0))
    held = SignalCache(
        tmp_path, TRAIN, views=VIEWS, features=False, maps=False, teacher=asked((wrong,))
    )  # fmt: skip
    held.fill(Silent())
    bare = split("validation", HELD, 1, labelled=False)
    options = {"validation": bare, "validation_decision": decisions(wrong, bare)}
    student = network(seed=6)
    history = Trainer(lesson(student, "kl", signals=held, **options), schedule(8)).train()
    assert history.figure[-1] == agreement(student, wrong) > 0.9
    assert agreement(student, teacher[0]) < 0.1


def test_distillation_resumes_to_the_very_same_bits(cache, tmp_path):
    """With balanced losses, branches and projectors in the state."""
    options = Schedule(epochs=2, rate=0.02, checkpoint_s=0.0)

    def trainer(path):
        made = lesson(network(seed=6), "dist", "trajectory", "features", signals=cache)
        made.objective.automatic[1:] = True
        return Trainer(made, options, checkpoint=path)

    whole = trainer(None)
    history = whole.train()
    stopped = trainer(tmp_path / "state.safetensors")
    one_step = stopped._one_step

    def stopping(batch, total):
        if stopped.step == 9:
            raise KeyboardInterrupt
        return one_step(batch, total)

    stopped._one_step = stopping
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = trainer(tmp_path / "state.safetensors")
    assert again.train() == history
    assert again.lesson.objective.weights() == whole.lesson.objective.weights()
    for one, other in zip(again.lesson.modules, whole.lesson.modules, strict=True):
        mine, theirs = one.state_dict(), other.state_dict()
        assert mine and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("count", "figure", "doubt"),
    [
        (10_000, 0.5, 0.005),
        (100, 0.9, 0.03),
        (3, 2 / 3, 0.3333),  # a standard error of 0.27 is less than one
        (3, 1.0, 0.3333),  # all right, and yet one of them is chance
        (10_000, 1.0, 0.0001),
    ],
)
def test_a_figure_is_in_doubt_by_its_standard_error_and_one_example_at_least(count, figure, doubt):
    held = split("validation", count, 1)
    assert lesson(validation=held).doubt(figure) == pytest.approx(doubt, abs=5e-5)
    if figure == 1.0:  # one wrong lies within, whatever floats make of it
        assert (count - 1) / count >= figure - lesson(validation=held).doubt(figure)


def test_values_are_not_in_doubt():
    assert lesson(decides="values", classes=1).doubt(0.9) == 0.0
