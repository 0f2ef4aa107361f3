"""Labels that are values: read, refused, split, standardised and scored."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.audit.values import Valued, largest_differences, value_fidelity
from tutelage.errors import DataError, TeacherError
from tutelage.pipeline.lessons import with_usual
from tutelage.recipe import Recipe
from tutelage.tasks import find_task
from tutelage.tasks.series.base import SeriesOptions, make_series
from tutelage.tasks.series.files import read_series
from tutelage.tasks.series.task import arrange, load
from tutelage.tasks.values import Target, score, strata
from tutelage.teach.lenses import fit_lens
from tutelage.teach.torch_teacher import Rescaled, TorchTeacher

TS = """@problemName Hours
@univariate true
@equalLength true
@targetLabel true
@data
1,2,3,4:12.5
1,?,NaN,5:-3
2.5,-1e-3,0,4:1e3
"""
VALUES = SeriesOptions(target="values")


def series(n=60, seed=0, values=None):
    random = np.random.default_rng(seed)
    items = random.normal(size=(n, 2, 12)).astype(np.float32)
    labels = random.gamma(2.0, 50.0, n) if values is None else values
    return make_series(items, labels, decides="values", source="made")


def test_a_ts_header_says_that_labels_are_values(tmp_path):
    (tmp_path / "hours.ts").write_text(TS)
    read = read_series(tmp_path / "hours.ts", options=SeriesOptions()).train
    assert read.decides == "values" and read.classes == ()
    assert read.labels.dtype == np.float64
    assert read.labels.tolist() == [12.5, -3.0, 1000.0]
    numbered = TS.replace("@targetLabel true", "@classLabel true 12.5 -3 1e3")
    (tmp_path / "hours.ts").write_text(numbered)
    assert read_series(tmp_path / "hours.ts", options=VALUES).train.labels.tolist()[0] == 12.5


@pytest.mark.parametrize(
    ("old", "new", "options", "says"),
    [
        (":-3", ":nan", {}, "the series of line 7 has no label: fill it in"),
        (":-3", ":inf", {}, "the series of line 7 has the label 'inf', which is no finite number"),
        (":-3", ":1e39", {}, "line 7 has the label '1e39', which is no finite number of single"),
        (":-3", ":soon", {}, "line 7 has the label 'soon', which is no finite number"),
        (":-3", ":1,2", {}, "line 7 does not end in ':' and one label"),
        (":-3", ":-3", {"target": "classes"}, "@targetLabel true, so its labels are values, and d"),
        ("@targetLabel true", "@targetLabel false", {}, "has no labels: add a line '@classLabel"),
    ],
)
def test_a_bad_ts_of_values_is_refused_by_line(old, new, options, says, tmp_path):
    path = tmp_path / "hours.ts"
    path.write_text(TS.replace(old, new))
    with pytest.raises(DataError) as caught:
        read_series(path, options=SeriesOptions(**options))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_npz_csv_and_parquet_of_values(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(4, 6)), [0.5, -2.0, 3.25, 1e6]
    np.savez(tmp_path / "t.npz", x=x, y=np.array(y, np.float32)[:, None])
    rows = "\n".join(",".join(map(str, [*a, b])) for a, b in zip(x.round(3), y, strict=True))
    (tmp_path / "t.csv").write_text("a,b,c,d,e,f,target\n" + rows + "\n")
    for name in ("t.npz", "t.csv"):
        assert read_series(tmp_path / name, options=VALUES).train.labels.tolist() == y
    whole = make_series(x, np.array([1, 2, 3, 3]), decides="values", source="made")
    assert whole.labels.tolist() == [1.0, 2.0, 3.0, 3.0]
    assert whole.fingerprint != make_series(x, np.array([1, 2, 3, 3]), source="made").fingerprint


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.ones((4, 2)), "labels of shape [4, 2] are several values an example, and one is"),
        ([1.0, [1.0, 2.0], 3.0, 4.0], "series 1 has several values as its label"),
        ([1.0, None, 3.0, 4.0], "series 1 has no label"),
        (np.array([1.0, 2.0, np.nan, 4.0]), "series 2 has no label"),
        (np.array([1.0, 2.0, np.inf, 4.0]), "series 2 has the label 'inf', which is no finite"),
        (np.array(["2024-01-01"] * 4, "M8[ns]"), "series 0 has the label '2024-01-01"),
        ([1.0, 2.0], "4 series but 2 labels"),
    ],
)
def test_labels_that_are_no_values_are_refused_by_index(labels, says):
    with pytest.raises(DataError) as caught:
        make_series(np.random.default_rng(0).normal(size=(4, 6)), labels, decides="values",
                    source="made")  # fmt: skip
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_data_that_cannot_be_learned_from_is_refused():
    with pytest.raises(DataError, match="every training example has the value 7, so there is not"):
        arrange(series(values=np.full(60, 7.0)))
    with pytest.raises(DataError, match="leaves 1 training examples where values need 2"):
        arrange(series(1))
    with pytest.raises(DataError, match="validation examples"):
        arrange(series(4))
    classes = make_series(series().values, np.arange(60) % 2, source="classes")
    with pytest.raises(DataError, match="made has values as labels and classes classes"):
        arrange(series(), test=classes)


def test_so_many_numbers_that_the_split_fails_are_taken_for_values(tmp_path):
    np.savez(tmp_path / "t.npz", x=series().values, y=np.arange(60))
    with pytest.raises(DataError, match="; if the labels are values to predict, write data.target"):
        load(tmp_path / "t.npz")
    assert load(tmp_path / "t.npz", target="values").train.decides == "values"


def test_splits_are_even_over_the_range_and_do_not_hang_on_the_order():
    whole = series(400)
    data = arrange(whole, seed=3)
    assert (len(data.train), len(data.validation), len(data.test)) == (290, 30, 80)
    for part in (data.validation, data.test):
        below = (part.labels[:, None] < np.quantile(whole.labels, [0.25, 0.5, 0.75])).mean(0)
        assert np.allclose(below, [0.25, 0.5, 0.75], atol=0.04)
    turned = arrange(whole.take(np.random.default_rng(1).permutation(400)), seed=3)
    assert sorted(turned.test.labels) == sorted(data.test.labels)
    assert sorted(turned.validation.labels) == sorted(data.validation.labels)
    assert sorted(arrange(whole, seed=4).test.labels) != sorted(data.test.labels)


def test_equal_series_with_other_values_stay_on_one_side():
    whole = series(200)
    values = whole.values.copy()
    values[100:] = values[:100]  # the same windows, labelled anew
    data = arrange(dataclasses.replace(whole, values=values))
    sides = [{row.tobytes() for row in part.values} for part in (data.train, data.test)]
    assert len(data.test) > 20 and not sides[0] & sides[1]


def test_strata_by_hand():
    ranks = np.array([4, 1, 9, 1, 7, 5], np.uint64)
    values = np.array([10.0, 60.0, 20.0, 0.0, 50.0, 30.0])
    # the two of rank 1 go with their least, 0: order 1, 1, 4, 9, 5, 7, in two groups of three
    assert strata(values, ranks, 0.4).tolist() == [0, 0, 1, 0, 1, 1]
    assert strata(values, ranks, 0.1).tolist() == [0] * 6


def test_score_by_hand():
    assert score(torch.tensor([1, 2, 0]), torch.tensor([1, 2, 2]), "classes") == 2 / 3
    # residuals 1, 0, -1 against deviations -2, 0, 2
    assert score(np.array([2.0, 3, 4]), np.array([1.0, 3, 5]), "values") == pytest.approx(0.75)
    assert score([1e8, np.nan, 0], [0.0, 1, 2], "values") == -1e6
    assert score([1e8, 0, 0], [0.0, 1, 2], "values") == -1e6


def test_batches_are_in_units_of_the_training_spread(tmp_path):
    from tutelage.pipeline.material import material_of

    given = {"task": "series", "data": {"train": "x"}, "teacher": {"fit": True}}
    recipe = Recipe.parse(given)
    data = arrange(series(200))
    material = material_of(find_task("series"), data, recipe)
    assert (material.outputs, material.metric, material.knobs["classes"]) == (1, "r2", 1)
    got = material.train.batch(torch.arange(material.train.count), 0).labels
    assert got.dtype == torch.float32
    assert got.mean().item() == pytest.approx(0, abs=1e-5)
    assert got.square().mean().item() == pytest.approx(1, abs=1e-5)
    held = material.validation.batch(torch.arange(material.validation.count), 0).labels
    assert np.allclose(material.said(held[:, None].numpy()), data.validation.labels, rtol=1e-4)
    assert material.augment.stretch == 0.0 and material.augment.jitter > 0
    assert dict(with_usual(recipe, "values", material.task, 0).distill.losses) == {
        "squared_error": 1.0, "value_error": 1.0,
    }  # fmt: skip
    usual = with_usual(recipe, "classes", material.task, 3).distill
    assert dict(usual.losses) == {"kl": 1.0}


def test_a_lens_of_values_is_the_least_squares_fit():
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (300, 5))
    y = x @ [1.0, -2, 0.5, 0, 3] + 7 + random.normal(0, 0.1, 300)
    tensors = [torch.from_numpy(v).float() for v in (x, y[:, None])]
    lens = fit_lens(tensors[0][:200], tensors[1][:200], (tensors[0][200:], tensors[1][200:]))
    design = np.c_[x[:200], np.ones(200)]
    expected = np.linalg.lstsq(design, y[:200], rcond=None)[0]
    assert np.allclose(lens.weight.numpy()[0], expected[:-1], atol=2e-3)
    assert lens.bias.item() == pytest.approx(expected[-1], abs=0.02)
    assert lens.agreement > 0.99


def test_fidelity_by_hand():
    labels = np.array([0.0, 2, 4, 6])  # sum of squared deviations 20
    teacher = np.array([0.0, 2, 4, 4])  # R2 = 1 - 4/20 = 0.8
    student = np.array([0.0, 2, 2, 4])  # R2 = 1 - 8/20 = 0.6
    valued = Valued(student=student, teacher=teacher, labels=labels)
    found = {f.name: f.value for f in value_fidelity(valued)}
    # against the teacher: deviations -2.5, -0.5, 1.5, 1.5 (sum of squares 11), one residual of 2
    assert found == pytest.approx({"difference": 0.5, "r2_to_teacher": 1 - 4 / 11, "kept": 0.75})
    assert largest_differences(valued) == [2]
    useless = Valued(student=student, teacher=labels[::-1].copy(), labels=labels)
    assert {f.name for f in value_fidelity(useless)} == {"difference", "r2_to_teacher"}


class Sums(nn.Module):
    """Answers with the sum of a series, `[n]` as regressors often do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, series):
        return series.sum((1, 2)) * self.scale


def test_a_teacher_in_the_users_unit_is_rescaled():
    inputs = torch.arange(24.0).reshape(3, 2, 4)
    teacher = TorchTeacher(Sums(), classes=1, image_shape=(2, 4))
    said = Rescaled(teacher, Target(mean=100.0, std=4.0)).read(inputs).decision
    assert said.tolist() == [[(28 - 100) / 4], [(92 - 100) / 4], [(156 - 100) / 4]]
    own = Rescaled(teacher, Target(mean=100.0, std=4.0), Target(mean=10.0, std=2.0))
    assert own.read(inputs).decision[0].item() == (28 * 2 + 10 - 100) / 4
    assert own.fingerprint not in (teacher.fingerprint, Rescaled(
        teacher, Target(mean=100.0, std=4.0)).fingerprint)  # fmt: skip
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(TeacherError, match="answers with 3 numbers and the data's label is one"):
        TorchTeacher(classifier, classes=1, image_shape=(2, 4))


def test_classes_are_untouched_by_what_is_new():
    """The fingerprint of labels that are classes is the one it always was."""
    made = make_series(np.arange(24.0).reshape(3, 8), ["b", "a", "b"], source="x")
    assert made.decides == "classes"
    assert made.fingerprint.startswith("31fdb462e23b7e00")
    task = find_task("vision")
    assert task.decides(SimpleNamespace()) == "classes"
