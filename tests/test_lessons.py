"""The recipe's words become terms, needs, objectives and schedules."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tutelage.errors import RecipeError
from tutelage.losses import LOSSES, Term
from tutelage.losses.decision import dist
from tutelage.pipeline.lessons import (
    batch_for,
    bounded_by,
    epochs_for,
    further_of,
    objective_of,
    rate_for,
    schedule_of,
    terms_of,
    usual_losses,
    wants,
    with_usual,
)
from tutelage.recipe import Recipe
from tutelage.students.spec import StudentSpec
from tutelage.tasks import find_task


def recipe(**distill):
    given = {"data": {"train": "digits"}, "teacher": {"fit": True}, "distill": distill}
    return Recipe.parse(given)


def terms(**losses):
    return terms_of(recipe(losses=losses).distill)


def test_weights_and_options_are_taken_over_in_order():
    found = terms(kl={"weight": 0.5, "temperature": 2.0}, dist=1, trajectory="auto",
                  features={"weight": "auto"}, rkd={})  # fmt: skip
    assert found == (
        Term(name="kl", weight=0.5, options={"temperature": 2.0}),
        Term(name="dist", weight=1.0),
        Term(name="trajectory", weight=None),
        Term(name="features", weight=None),
        Term(name="rkd", weight=1.0),
    )


@pytest.mark.parametrize(
    ("family", "width", "inherits", "rate"),
    [("encoder", 160, True, 1e-3), ("vit", 20, True, 1e-3), ("encoder", 160, False, 3e-3),
     ("vit", 384, False, 1.25e-3), ("encoder", 20, False, 1e-2), ("convnet", 160, True, 1e-2),
     ("textconv", 160, False, 1e-2), (None, 0, True, 1e-2)],
)  # fmt: skip
def test_transformers_are_taught_gently_that_inherit_or_are_wide(family, width, inherits, rate):
    knobs = SimpleNamespace(hidden=width)
    spec = None if family is None else StudentSpec(family=family, knobs=knobs)
    assert rate_for(recipe(), spec, inherits=inherits) == pytest.approx(rate)
    assert rate_for(recipe(rate=5e-3), spec, inherits=inherits) == 5e-3


@pytest.mark.parametrize(
    ("stays", "rate", "epochs", "changes"),
    [(0.8, 1e-2, 10, {"rate": 1e-2 / 3}), (0.8, 1e-3, 10, {"rate": 1e-3}), (0.2, 1e-2, 20, {}),
     (None, 1e-2, 40, {})],
)  # fmt: skip
def test_what_begins_near_is_taught_further_and_no_faster_than_others(stays, rate, epochs, changes):
    found, changed = further_of(recipe(), 40, stays, rate)
    assert found == epochs and changed == pytest.approx(changes)


def test_texts_are_taught_in_small_batches_unless_the_recipe_says_otherwise():
    text, vision = find_task("text"), find_task("vision")
    assert with_usual(recipe(), "classes", text, 3).distill.batch == 32
    assert with_usual(recipe(batch=100), "classes", text, 3).distill.batch == 100
    assert with_usual(recipe(), "classes", vision, 3).distill.batch == 128


def test_by_default_dist_teaches():
    assert terms_of(recipe().distill) == (Term(name="dist", weight=1.0),)


def test_by_default_images_learn_the_features_of_taps_too_where_there_are_some():
    usual = with_usual(recipe(), "classes", find_task("vision"), 3)
    found = terms_of(usual.distill)
    assert [(t.name, t.weight, t.optional) for t in found] == [
        ("dist", 1.0, False), ("features", 4.0, True),
    ]  # fmt: skip
    assert [t.name for t in objective(*found).terms] == ["dist", "features"]
    assert [t.name for t in objective(*found, pairs=()).terms] == ["dist"]


def test_two_classes_are_taught_kl_as_well_since_dist_knows_no_threshold():
    for task, names in (
        ("vision", ["dist", "features", "kl"]), ("text", ["kl", "cross_entropy"]),
        ("series", ["kl"]),
    ):  # fmt: skip
        assert list(usual_losses("classes", find_task(task), 2)) == names
    asked = with_usual(recipe(losses={"dist": 1.0}), "classes", find_task("vision"), 2)
    assert list(asked.distill.losses) == ["dist"]
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]])
    moved = logits + torch.tensor([0.0, 5.0])
    moved.requires_grad_(True)
    dist(moved, logits, gamma=0.0).sum().backward()
    assert moved.grad is not None and moved.grad.abs().max() < 1e-5  # no way back


def test_texts_learn_their_labels_too_where_there_are_some():
    text = find_task("text")
    usual = with_usual(recipe(), "classes", text, 3).distill.losses
    assert usual == {"kl": 1.0, "cross_entropy": 0.5}
    assert with_usual(recipe(), "classes", text, 3, labelled=False).distill.losses == {"dist": 1.0}
    assert list(usual_losses("classes", text, 2, labelled=False)) == ["dist", "kl"]
    vision = find_task("vision")
    assert usual_losses("classes", vision, 3, labelled=False) == vision.losses


def test_beside_branches_images_learn_no_features_unless_asked_to():
    part = {"data": {"train": "digits"}, "teacher": {"fit": True}, "student": {"exits": "1 %"}}
    for losses, names in (
        ({}, ["dist", "trajectory"]),
        ({"features": 1}, ["features", "trajectory"]),
    ):
        given = Recipe.parse({**part, "distill": {"losses": losses} if losses else {}})
        usual = with_usual(given, "classes", find_task("vision"), 3)
        assert list(usual.distill.losses) == names


def test_a_loss_that_was_asked_for_is_not_left_out():
    with pytest.raises(RecipeError, match="no taps are paired"):
        objective(*terms(dist=1, features=4), pairs=())
    optional = terms(dist=1, features={"weight": 4, "optional": True})
    assert [t.name for t in objective(*optional, pairs=()).terms] == ["dist"]


@pytest.mark.parametrize(
    ("losses", "want"),
    [
        ({"kl": 1}, set()), ({"cross_entropy": 1}, set()), ({"deep_supervision": 1}, set()),
        ({"trajectory": 1}, {"features"}), ({"srd": 1, "kl": 1}, {"features"}),
        ({"attention": 1}, {"maps"}), ({"attention": 1, "features": 1}, {"maps", "features"}),
    ],
)  # fmt: skip
def test_the_cache_holds_what_the_losses_read_and_no_more(losses, want):
    assert wants(terms(**losses)) == want


def test_every_loss_that_reads_taps_is_stored_for():
    for name in LOSSES:
        entry, stored = LOSSES[name], wants((Term(name=name),))
        assert stored == {
            "trajectory": {"features"}, "features": {"features"}, "maps": {"maps"},
        }.get(entry.reads, set())  # fmt: skip


def objective(*found, pairs=((0, 0),)):
    return objective_of(found, pairs=pairs, student_widths=(4,), teacher_widths=(6,), seed=3)


def test_the_objective_has_projectors_drawn_from_the_seed():
    one, other = (objective(*terms(features=1)) for _ in range(2))
    weights = [list(o.parameters()) for o in (one, other)]
    assert [tuple(w.shape) for w in weights[0]] == [(6, 4), (6,)]
    assert torch.equal(weights[0][0], weights[1][0])


@pytest.mark.parametrize(
    ("found", "pairs", "says"),
    [
        ((Term(name="dsit"),), (), "dist"),
        ((Term(name="kl", options={"temprature": 2}),), (), "temperature"),
        ((Term(name="kl", weight=float("nan")),), (), "finite"),
        ((Term(name="kl", weight=-1.0),), (), "finite"),
        ((Term(name="features"),), (), "no taps are paired"),
        ((Term(name="features"),), ((0, 1),), "correct the pairing"),
        ((), (), "no losses"),
    ],
)
def test_a_wrong_objective_is_refused_in_one_line(found, pairs, says):
    with pytest.raises(RecipeError, match=says) as info:
        objective(*found, pairs=pairs)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("examples", "batch", "epochs"),
    [
        (999, 100, 267),
        (1_000, 128, 300),
        (1_080, 128, 300),
        (2_560, 128, 120),
        (5_000, 128, 120),
        (12_800, 128, 90),
        (60_000, 128, 20),
        (10_000_000, 128, 20),
        (50, 128, 400),
        (4, 128, 2_400),
    ],
)
def test_unset_epochs_make_about_nine_thousand_steps_and_fewer_on_small_data(
    examples, batch, epochs
):
    assert epochs_for(recipe(batch=batch), examples) == epochs


def test_steps_grow_with_the_examples_without_a_leap():
    """From few to many examples: about 2,400 steps, then 120 epochs, then about 9,000 steps."""
    counts = [round(500 * 1.02**i) for i in range(220)]
    made = recipe()
    steps = [epochs_for(made, n) * (n // batch_for(made, n)) for n in counts]
    assert 2_400 <= min(steps) and steps[0] < 2_500 and 9_000 <= steps[-1]
    for one, other in zip(steps, steps[1:], strict=False):
        assert 0.8 < other / one < 1.2


def test_epochs_that_are_set_are_kept():
    assert epochs_for(recipe(epochs=3), 1_000_000) == 3
    assert epochs_for(recipe(epochs=300), 4_000, 1e12) == 300
    assert bounded_by(recipe(epochs=300), 4_000, 1e12) == ""


@pytest.mark.parametrize(
    ("macs", "epochs"),
    [
        (None, 120), (1e6, 120),  # 3 x 1e6 x 4,000 x 120 = 1.4e12
        (2.5e8, 10), (2.51e8, 9),  # 3 x 2.5e8 x 4,000 x 10 = 3e13
        (1e9, 4), (1e12, 4),
    ],
)  # fmt: skip
def test_a_token_model_s_operations_bound_its_epochs(macs, epochs):
    """On 4,000 texts; 120 epochs make the usual 2,400 steps and more."""
    assert epochs_for(recipe(), 4_000, macs) == epochs
    said = bounded_by(recipe(), 4_000, macs)
    assert bool(said) == (epochs < 120)
    assert not said or said.startswith(f"{epochs} epochs, not 120: ") and "MAC" in said


def test_a_bound_never_asks_for_more_than_the_usual():
    assert epochs_for(recipe(), 10_000_000, 1.0) == epochs_for(recipe(), 10_000_000) == 20


def test_the_schedule_takes_every_key_of_the_recipe():
    part = {
        "batch": 32, "optimizer": "sgd", "schedule": "cosine", "rate": 0.5, "weight_decay": 0.25,
        "ema": 0.5, "clip": 2.0, "patience": 4, "precision": "bf16", "checkpoint": "2 ms",
    }  # fmt: skip
    made = schedule_of(recipe(**part), epochs=7, seed=9)
    want = {**part, "shape": "cosine", "checkpoint_s": 0.002, "epochs": 7, "seed": 9}
    shown = dataclasses.asdict(made)
    for name in ("schedule", "checkpoint"):
        del want[name]
    assert {name: shown[name] for name in want} == want


def test_changes_come_before_the_recipe():
    made = schedule_of(recipe(rate=0.5), epochs=7, seed=9, rate=0.05, precision="float32")
    assert (made.rate, made.precision, made.batch) == (0.05, "float32", 128)
