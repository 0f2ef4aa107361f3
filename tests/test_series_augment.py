"""Views of series: pure functions of seed, view and index."""

# pyright: reportArgumentType=false, reportIndexIssue=false

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_series_data import NAN, refused, some_series, some_values

from tutelage.errors import RecipeError
from tutelage.recipe import AugmentPart
from tutelage.tasks import find_task
from tutelage.tasks.series.augment import (
    NO_SERIES_AUGMENT,
    SeriesAugment,
    SeriesNormalisation,
    augment_series,
    fitted,
)
from tutelage.tasks.series.base import make_series


def test_inner_gaps_are_closed_and_outer_ones_stay():
    x = np.float32([[[NAN, 1, NAN, NAN, 4, NAN], [0, 0, 0, 0, NAN, NAN]], [[1] * 6, [NAN] * 6]])
    series = fitted(make_series(x, [0, 1], source="s"), 6)
    want = np.float32([[NAN, 1, 2, 3, 4, NAN], [0, 0, 0, 0, NAN, NAN]])
    np.testing.assert_array_equal(series.values[0], want)
    np.testing.assert_array_equal(series.values[1], x[1])
    np.testing.assert_array_equal(fitted(series, 6).values, series.values)
    np.testing.assert_array_equal(series.lengths, [5, 6])


def test_normalisation_leaves_out_nan_and_spares_constant_channels():
    x = np.float32([[[1, 3, NAN], [7, 7, 7]], [[5, NAN, NAN], [7, NAN, 7]]])
    fit = SeriesNormalisation.fit(x)
    assert fit.mean == (3.0, 7.0) and fit.std == (pytest.approx(np.sqrt(8 / 3), rel=1e-8), 1.0)
    out = fit.apply(x)
    assert out.dtype == torch.float32 and not out.isnan().any()
    assert out[0, 0, 2] == 0 and out[0, 0, 1] == 0 and (out[:, 1] == 0).all()
    assert float(out[1, 0, 0]) == pytest.approx(2 / np.sqrt(8 / 3))
    refused("have 1 channels but", fit.apply, x[:, :1])
    tenth = np.full((7, 1, 3), 0.1, np.float32)  # its mean is not exact
    assert SeriesNormalisation.fit(tenth).std == (1.0,)
    tiny = SeriesNormalisation.fit(x * np.float32(1e-12))
    assert float(tiny.apply(x * np.float32(1e-12))[1, 0, 0]) == pytest.approx(2 / np.sqrt(8 / 3))


def batch_of(series, index, view, **config):
    return find_task("series").batch(
        series, np.asarray(index), view=view, seed=5, augment=SeriesAugment(**config),
        normalisation=SeriesNormalisation.fit(series.values),
    )  # fmt: skip


@pytest.mark.parametrize(
    "config", [{"jitter": 0.1}, {"stretch": 0.2}, {"warp": 0.4}, {"shift": 3}, {"mixup": 0.5},
               {"jitter": 0.1, "stretch": 0.2, "warp": 0.4, "shift": 3, "mixup": 0.3}],
)  # fmt: skip
def test_views_are_a_function_of_seed_view_and_index_alone(config):
    x = some_values(12)
    x[3, :, 15:] = NAN
    series = fitted(make_series(x, np.arange(12) % 3, source="s"), 20)
    plain = batch_of(series, range(12), 0)
    torch.testing.assert_close(batch_of(series, range(12), 0, **config).inputs, plain.inputs)
    whole = batch_of(series, range(12), 2, **config)
    part = batch_of(series, [7, 3], 2, **config)
    assert torch.equal(part.inputs, whole.inputs[[7, 3]])
    assert part.labels is not None and part.labels.tolist() == [1, 0] and part.view == 2
    assert not torch.equal(whole.inputs, batch_of(series, range(12), 3, **config).inputs)
    assert not torch.equal(whole.inputs, plain.inputs) and whole.inputs.isfinite().all()
    if "shift" not in config:
        assert (whole.inputs[3, :, 15:] == 0).all()  # padding stays


def test_noise_is_centred_and_of_the_size_asked_for():
    series = make_series(some_values(400), np.arange(400) % 2, source="s")
    plain, noisy = (batch_of(series, range(400), view, jitter=0.05).inputs for view in (0, 1))
    noise = (noisy - plain) / 0.05
    assert abs(float(noise.mean())) < 0.03 and float(noise.std()) == pytest.approx(1, abs=0.02)
    flat = noise.flatten(1)
    assert abs(float((flat[0] * flat[1]).mean())) < 0.5 and float(noise.abs().max()) < 3.5


def test_stretch_and_warp_and_shift_do_what_they_say():
    line = np.tile(np.linspace(-1, 1, 41, dtype=np.float32), (64, 1, 1))
    series = make_series(line, np.arange(64) % 2, source="s")
    plain = batch_of(series, range(64), 0).inputs
    factor = batch_of(series, range(64), 1, stretch=0.2).inputs / plain
    factor = torch.where(plain.abs() > 0.1, factor, factor[..., :1])
    assert 0.8 <= float(factor.min()) < 0.85 and 1.15 < float(factor.max()) <= 1.2
    assert float((factor.amax(2) - factor.amin(2)).max()) < 1e-5  # one factor a series
    warped = batch_of(series, range(64), 1, warp=0.5).inputs
    assert (warped.diff(dim=2) > 0).all()  # time never runs backwards
    torch.testing.assert_close(warped[..., [0, -1]], plain[..., [0, -1]])
    moved = batch_of(series, range(64), 1, shift=4).inputs
    steps = {int((row == 0).sum()) for row in moved[:, 0]}
    assert max(steps) <= 5 and min(steps) >= 1  # one zero is the line's own middle
    assert len(steps) > 3


def test_mixup_adds_less_than_half_of_another_series_where_it_has_values():
    levels = np.full((200, 2, 6), 10, np.float32) * np.arange(200, dtype=np.float32)[:, None, None]
    levels[1::2, 1] = NAN  # half of them have no second channel
    series = make_series(levels, np.arange(200) % 2, source="s")
    fit = SeriesNormalisation.fit(levels)
    own = fit.scaled(levels)
    mixed = batch_of(series, range(200), 1, mixup=0.4).inputs.numpy()
    far = np.abs(mixed - own)[:, 0]
    np.testing.assert_allclose(far, far[:, :1].repeat(6, 1), atol=1e-5)  # one share a series
    spread = own[:, 0, 0].max() - own[:, 0, 0].min()
    assert 0.05 < far.mean() / spread < 0.085 and far.max() < 0.4 * spread  # a third times 0.2
    assert (mixed[1::2, 1] == 0).all()  # what is missing stays so
    second = np.abs(mixed - own)[::2, 1, 0]
    assert (second == 0).sum() == pytest.approx(50, abs=20) and second.max() > 0.1
    with pytest.raises(RecipeError, match="pass all_values"):
        augment_series(
            levels, np.full(200, 6), np.arange(200), seed=0, view=1,
            config=SeriesAugment(mixup=0.1), normalisation=fit,
        )  # fmt: skip


def test_augment_takes_its_gaps_from_the_data():
    task, series = find_task("series"), some_series()
    mild = task.augment(series, AugmentPart.model_validate({}))
    assert mild == SeriesAugment(mixup=0.5, jitter=0.03, stretch=0.1) and mild
    assert not NO_SERIES_AUGMENT
    none = SimpleNamespace(mixup=0, jitter=0, stretch=0, warp=0, shift=0)
    assert not task.augment(series, none)
    refused("augment.shift is 20 steps", task.augment, series, SimpleNamespace(shift=20))
    refused("augment.flip is not for series", task.augment, series, SimpleNamespace(flip=True))
    assert task.augment(series, AugmentPart.model_validate({"mixup": 0.25})).mixup == 0.25
    refused("augment.mixup is 0.7", task.augment, series, SimpleNamespace(mixup=0.7))
    refused("augment.warp is 0.7", task.augment, series, SimpleNamespace(warp=0.7))
    refused("whole number of steps", task.augment, series, SimpleNamespace(shift=1.5))


def test_augment_series_without_a_view_is_the_scaled_series():
    x = some_values(4)
    fit = SeriesNormalisation.fit(x)
    out = augment_series(
        x, np.full(4, 20), np.arange(4), seed=0, view=3, config=NO_SERIES_AUGMENT,
        normalisation=fit,
    )  # fmt: skip
    torch.testing.assert_close(out, fit.apply(x))
