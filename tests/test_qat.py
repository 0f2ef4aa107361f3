"""Quantization-aware training rounds as the exported file does, and leaves nothing behind."""

import copy

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnx import numpy_helper
from torch import nn

from tutelage.export.artifact import ArtifactMeta
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8
from tutelage.pipeline.learning import distill_for_int8
from tutelage.pipeline.material import material_of
from tutelage.pipeline.teaching import Taught
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.tasks import find_task
from tutelage.tasks.vision.base import make_images
from tutelage.tasks.vision.task import arrange
from tutelage.teach.signals import SignalCache
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.train.loop import Trainer
from tutelage.train.qat import quantization_aware
from tutelage.train.schedule import Schedule

SHAPE = (3, 8, 8)


def network(block="plain"):
    torch.manual_seed(0)
    spec = ConvNetSpec(image=SHAPE, classes=4, widths=(4, 6), depths=(1, 1), block=block)
    net = ConvNet(spec)
    with torch.no_grad():  # batch norms that have seen something
        net.train()(inputs(seed=9))
    return net


def inputs(count=6, seed=1):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def layers(net):
    return {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def largest(channel, summed):
    """Return what 127 levels must hold: the largest weight, or sum of two neighbours."""
    flat = [float(x) for x in np.moveaxis(channel, 0, -1).ravel()]
    sums = [abs(a + b) for a, b in zip(flat, flat[1:], strict=False)] if summed else []
    return max(abs(x) for x in [*flat, *sums])


def is_summed(layer):
    return isinstance(layer, nn.Conv2d) and not 1 < layer.groups == layer.in_channels


def rounded(weight, summed):
    """Round as the file does, channel by channel in numpy."""
    out = np.empty_like(weight)
    for number, channel in enumerate(weight):
        scale = np.float32(largest(channel, summed) / 127)
        out[number] = np.clip(np.rint(channel / scale), -127, 127) * scale
    return out


@pytest.mark.parametrize("block", ["plain", "depthwise"])
def test_weights_are_rounded_per_channel(block):
    net = network(block)
    before = {name: layer.weight.detach().numpy().copy() for name, layer in layers(net).items()}
    with quantization_aware(net):
        for name, layer in layers(net).items():
            got = layer.weight.detach().numpy()
            np.testing.assert_allclose(
                got, rounded(before[name], is_summed(layer)), rtol=0, atol=1e-7
            )
            assert not np.array_equal(got, before[name])
            for channel in got:
                assert len(np.unique(channel)) <= 255


def test_a_channel_of_zeros_stays_zero():
    net = network()
    net.head.weight.data[1] = 0.0
    with quantization_aware(net):
        assert (net.head.weight[1] == 0).all() and net.head.weight.isfinite().all()


def test_weights_are_those_of_the_exported_file(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    with quantization_aware(net):
        felt = [(is_summed(m), m.weight.detach().numpy()) for m in layers(net).values()]
    meta = ArtifactMeta(
        task="vision", classes=tuple("abcd"), shape=SHAPE, mean=(0.5,), std=(0.25,), version="1"
    )
    path = export_onnx(net, SHAPE, tmp_path / "float.onnx", meta=meta)
    stored = onnx.load(quantize_int8(path, tmp_path / "int8.onnx", inputs(64).numpy())).graph
    tensors = [numpy_helper.to_array(t) for t in stored.initializer]
    levels = [t for t in tensors if t.dtype == np.int8 and t.ndim > 1]
    assert len(levels) == len(felt) == 3
    original = {m.weight.numel(): m.weight.detach().numpy() for m in layers(net).values()}
    for summed, weight in felt:
        same = [t for t in levels if t.size == weight.size]
        level = same[0] if same[0].shape == weight.shape else same[0].T
        steps = [largest(channel, summed) / 127 for channel in original[weight.size]]
        want = np.rint(weight.reshape(len(weight), -1) / np.array(steps)[:, None])
        np.testing.assert_array_equal(level.reshape(len(weight), -1), want)


def hooks(net):
    return sum(
        len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks)
        for m in net.modules()
    )


def check_clean(net, before, order):
    assert [type(m) for m in net.modules()] == order and hooks(net) == 0
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    net = network()
    before, order = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    parameters = list(net.parameters())
    try:
        with quantization_aware(net):
            assert hooks(net) > 0
            net(inputs())
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    check_clean(net, before, order)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(m.training for m in net.modules())
    net.eval()
    with quantization_aware(net):
        net(inputs())
    assert not any(m.training for m in net.modules())


def test_an_error_in_the_forward_pass_leaves_the_network_clean():
    net = network()
    before, order = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    with pytest.raises(RuntimeError), quantization_aware(net):
        net(torch.zeros(2, 5, 8, 8))
    check_clean(net, before, order)


def test_batch_norms_are_frozen_inside():
    net = network()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(n.running_mean.clone(), n.running_var.clone()) for n in norms]
    with quantization_aware(net):
        net.train()
        for seed in range(3):
            net(inputs(seed=seed))
        assert not any(n.training for n in norms)
        one, other = net(inputs(2)), net(inputs(6))[:2]  # no example hangs on its neighbours
    for norm, (mean, variance) in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, variance)
    assert one.shape == other.shape


def test_inputs_of_convolutions_are_rounded_to_255_levels():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    x = torch.linspace(-1, 3, 5_001).view(1, 1, 1, -1)
    with quantization_aware(layer):
        layer.train()(x)
        layer.eval()
        got = layer(x).detach()
        wide = layer(x * 2).detach()
        values = np.unique(got.numpy())
    step = 4 / 255
    assert len(values) in (255, 256)
    assert float((got - x).abs().max()) <= step / 2 + 1e-6
    np.testing.assert_allclose(values, np.rint(values / step) * step, atol=1e-5)
    # What falls outside the range that was seen is clipped to it.
    assert float(wide.max()) == float(got.max()) and float(wide.min()) == float(got.min())
    assert 0.0 in values  # padding stays exact


def test_the_range_moves_slowly_and_only_in_training():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    with quantization_aware(layer):
        low, high = (dict(layer.named_buffers())[n] for n in ("rounded_low", "rounded_high"))
        layer.eval()(torch.full((1, 1, 1, 1), 7.0))
        assert float(high) == 0
        layer.train()(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1))
        assert (float(low), float(high)) == (-1, 2)
        layer(torch.tensor([1.0, 4.0]).view(2, 1, 1, 1))
        assert float(low) == pytest.approx(0.95 * -1) and float(high) == pytest.approx(
            0.95 * 2 + 0.05 * 4
        )


def test_before_anything_was_seen_inputs_pass_unrounded():
    net = network().eval()
    with quantization_aware(net):
        got = net(inputs())
        weights = {name: layer.weight.detach() for name, layer in layers(net).items()}
    for name, layer in layers(net).items():
        layer.weight.data = weights[name]
    torch.testing.assert_close(got, net(inputs()))


def test_gradients_flow_straight_through():
    net = network()
    with quantization_aware(net):
        for _ in range(2):
            net.zero_grad()
            nn.functional.cross_entropy(net(inputs()), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    with quantization_aware(layer):
        layer.train()(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2))
        layer.eval()
        x = torch.tensor([-3.0, 0.3, 3.0]).view(1, 1, 1, 3).requires_grad_()
        layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0.0, 2.0, 0.0]))


class Lesson:
    key = "rounding"

    def __init__(self, net):
        self.modules = (net,)
        self.targets = torch.arange(6) % 4
        self.figures = []

    def doubt(self, figure):
        return 0.0

    def steps(self):
        return 5

    def batches(self, epoch, first):
        yield from range(5 * epoch + first, 5 * epoch + 5)

    def loss(self, batch):
        logits = self.modules[0](inputs(seed=batch % 3))
        return nn.functional.cross_entropy(logits, self.targets), {}

    def evaluate(self, modules):
        said = torch.cat([modules[0](inputs(seed=s)) for s in range(3)])
        self.figures.append(said.std(0).mean().item())
        return float((said.argmax(-1) == self.targets.repeat(3)).float().mean())


def train(path=None, stop=None):
    net = network()
    with quantization_aware(net):
        trainer = Trainer(
            Lesson(net),
            Schedule(epochs=6, rate=0.02, precision="float32", ema=0.5, checkpoint_s=0.0),
            checkpoint=path,
        )
        one_step = trainer._one_step

        def stopping(batch, total):
            if trainer.step == stop:
                raise KeyboardInterrupt
            return one_step(batch, total)

        trainer._one_step = stopping
        return net, trainer, trainer.train()


def test_the_averaged_copy_feels_the_rounding_over_the_range_that_was_seen():
    """Its ranges follow; with empty ones every input would be nought, and every decision alike."""
    _, trainer, history = train()
    assert min(trainer.lesson.figures) > 1e-3
    assert history.figure[-1] > history.figure[0] and history.figure[-1] > 0.5
    average = dict(trainer.average[0].named_buffers())
    highs = [value for name, value in average.items() if name.endswith("rounded_high")]
    assert len(highs) == len([m for m in trainer.average[0].modules() if _is_conv(m)])
    assert all(float(value) > 0 for value in highs)


def _is_conv(module):
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize("stop", [3, 5, 17])
def test_a_stop_changes_no_bit(tmp_path, stop):
    whole, _, history = train()
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(path, stop)
    again, _, resumed = train(path)
    assert resumed == history
    mine, theirs = again.state_dict(), whole.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_was_learned_stays_after_the_block():
    net, trainer, _ = train()
    assert hooks(net) == 0 and not any("rounded" in name for name in net.state_dict())
    best = trainer.best[0]
    assert torch.equal(net.head.weight, best["head.parametrizations.weight.original"])


@pytest.mark.parametrize("losses", [{"features": 1.0}, {"kl": 1.0, "trajectory": "auto"}])
def test_int8_is_taught_by_the_decision_alone_whatever_the_recipe_reads(tmp_path, losses):
    made = Recipe.parse({**tiny.recipe(), "distill": {"losses": losses, "epochs": 1, "batch": 16}})
    arranged = arrange(
        make_images(*tiny.images(60), source="x"), validation_share=0.2, seed=0
    )  # fmt: skip
    material = material_of(find_task("vision"), arranged, made)
    spec = ConvNetSpec(image=(1, 8, 8), classes=3, widths=(4, 6), depths=(1, 1))
    teacher = TorchTeacher(ConvNet(spec), classes=3, image_shape=(1, 8, 8))
    with Run(tmp_path / "run") as run:
        caches = [
            SignalCache(
                run.file("signals"), part, views=2, features=True, maps=False, teacher=teacher
            )
            for part in (material.train, material.validation)
        ]
        for cache in caches:
            cache.fill(Silent())
        taught = Taught(teacher=teacher, train=caches[0], validation=caches[1])
        net = ConvNet(spec)
        before = net.head.weight.detach().clone()
        figures = distill_for_int8(made, material, taught, net, run, Silent())
    assert len(figures) == 3 and not torch.equal(net.head.weight, before) and hooks(net) == 0
