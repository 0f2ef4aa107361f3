"""Taps found in networks of many makes, and read from them."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.errors import StudentError, TeacherError
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.taps import TapReader, describe_taps, find_taps, first_tensor, reading
from tutelage.types import energy_map, pooled

IMAGE = (2, 3, 32, 32)


def paths(model, shape=IMAGE, limit=8):
    return [tap.path for tap in find_taps(model, torch.randn(shape), limit)]


def convnet(widths=(8, 12, 16), depths=(1, 2, 1), block: Any = "plain", image=(3, 32, 32)):
    return ConvNet(ConvNetSpec(image=image, classes=10, widths=widths, depths=depths, block=block))


class Basic(nn.Module):
    """torchvision's BasicBlock in small, with a convolutional shortcut chain."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.downsample = None
        if stride > 1 or cin != cout:
            self.downsample = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x):
        out = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depths=(2, 2, 2, 2)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        cin = 8
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(Basic(cin, 8 * 2**i, 2 if i and not j else 1))
                cin = 8 * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(cin, 10)

    def forward(self, x):
        x = self.maxpool(self.conv1(x))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


class VitBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x):
        y = self.norm(x)
        return x + self.mlp(self.attn(y, y, y, need_weights=False)[0])


class Vit(nn.Module):
    def __init__(self, depth=4, chain: Any = nn.Sequential, dim=8):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        blocks = [VitBlock(dim) for _ in range(depth)]
        self.blocks = chain(*blocks) if chain is nn.Sequential else chain(blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Inverted(nn.Module):
    """MobileNet's block: a chain inside that holds a composite (squeeze and excite)."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), Squeeze(cout))

    def forward(self, x):
        return self.conv(x)


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, 2, 1)
        self.up = nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3), keepdim=True))).sigmoid()


class Flat(nn.Module):
    """Blocks as plain attributes, no chain anywhere; stride on the block's second layer."""

    def __init__(self):
        super().__init__()
        self.a = Basic(3, 8, 1)
        self.b = Basic(8, 8, 1)
        self.c = Inverted(8, 16, 2)
        self.d = Basic(16, 16, 1)
        self.e = Basic(16, 32, 2)
        self.out = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x):
        return self.out(self.e(self.d(self.c(self.b(self.a(x))))))


class Normalize(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.5


@dataclass
class Output:
    loss: torch.Tensor | None
    hidden: torch.Tensor
    logits: torch.Tensor


class Hugging(nn.Module):
    """Answers as a dataclass, its layers as tuples, as Hugging Face models do."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(6, 6)

        def forward(self, x):
            return (self.dense(x), None)

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList([self.Layer() for _ in range(3)])
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)[0]
        return Output(loss=None, hidden=x, logits=self.classifier(x))


def plain_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@pytest.mark.parametrize("block", ["plain", "depthwise"])
@pytest.mark.parametrize("depths", [(1, 1, 1), (1, 2, 1), (3, 3, 3)])
def test_convnet_taps_are_its_stages(block, depths):
    model = convnet(depths=depths, block=block)
    assert paths(model) == ["stages.0", "stages.1", "stages.2"]
    shapes = [tap.shape for tap in find_taps(model, torch.randn(IMAGE))]
    assert shapes == [(8, 32, 32), (12, 16, 16), (16, 8, 8)]


def test_convnet_stages_found_at_one_pixel_and_for_uneven_depths():
    model = convnet((4, 4, 4, 4, 4), (1, 1, 1, 1, 1), image=(1, 8, 8))
    assert paths(model, (1, 1, 8, 8)) == [f"stages.{i}" for i in range(5)]
    assert paths(convnet((4, 8), (1, 5))) == ["stages.0", "stages.1"]


def test_resnet_taps_are_its_layers():
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert paths(ResNet(), (2, 3, 64, 64)) == layers
    assert paths(ResNet((1, 1, 6, 1)), (2, 3, 64, 64)) == layers


def test_wrapped_resnet_keeps_its_layers():
    model = nn.Sequential(OrderedDict(norm=Normalize(), net=ResNet()))
    assert paths(model, (2, 3, 64, 64)) == [f"net.layer{i}" for i in range(1, 5)]


@pytest.mark.parametrize("chain", [nn.Sequential, nn.ModuleList])
def test_vit_taps_are_its_blocks_and_thinned_to_the_limit(chain):
    assert paths(Vit(4, chain)) == [f"blocks.{i}" for i in range(4)]
    assert paths(Vit(12, chain), limit=4) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]


def test_plain_cnn_taps_lie_before_each_downsampling():
    assert paths(plain_cnn()) == ["3", "7"]


def test_strided_cnn_taps_are_what_the_stride_reads():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    assert paths(model) == ["1", "6", "8"]


def test_convolutional_head_is_no_tap():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    assert paths(model) == ["1", "4"]


@pytest.mark.parametrize("hidden", [(32, 32, 32), (64, 32, 16)])
def test_mlp_taps_are_its_hidden_layers(hidden):
    layers, width = [nn.Flatten()], 3 * 32 * 32
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(0.5)]
        width = size
    assert paths(nn.Sequential(*layers, nn.Linear(width, 10))) == ["3", "6", "9"]


def test_linear_model_has_no_tap():
    assert paths(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))) == []


def test_one_chain_of_blocks_ends_where_the_shape_changes():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
        Inverted(4, 4, 1), Inverted(4, 8, 2), Inverted(8, 8, 1), Inverted(8, 12, 1),
        Inverted(12, 12, 1), Inverted(12, 16, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    assert paths(model) == ["1", "3", "5", "6"]


def test_blocks_outside_chains_end_where_the_resolution_changes():
    assert paths(Flat()) == ["b", "d", "e"]


def test_order_is_execution_order_not_that_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late = nn.Sequential(Basic(8, 16, 2), Basic(16, 16, 1))
            self.early = nn.Sequential(Basic(3, 8, 1), Basic(8, 8, 1))
            self.fc = nn.Linear(16, 10)

        def forward(self, x):
            return self.fc(self.late(self.early(x)).mean((2, 3)))

    assert paths(Backwards()) == ["early", "late"]


def test_finding_leaves_modes_statistics_and_hooks_alone():
    model = convnet().train()
    model.stages[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    find_taps(model, torch.randn(IMAGE))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_cannot_read_the_example_says_so_and_is_left_whole():
    model = convnet().train()
    with pytest.raises(TeacherError, match="ConvNet cannot read an input of 1 x 32 x 32") as info:
        find_taps(model, torch.randn(1, 1, 32, 32), error=TeacherError)
    assert "\n" not in str(info.value)
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_reader_returns_logits_and_outputs_in_the_order_asked():
    model, x = convnet().eval(), torch.randn(IMAGE)
    with TapReader(model, ["stages.2", "stem"]) as reader:
        logits, outputs = reader.read(model, x)
    stem = model.stem(x)
    assert torch.equal(logits, model(x))
    assert torch.equal(outputs[1], stem)
    assert torch.equal(outputs[0], model.stages(stem))
    assert not any(module._forward_hooks for module in model.modules())


def test_reader_works_through_a_wrapper_and_the_network_stays_copyable():
    model, x = convnet().eval(), torch.randn(IMAGE)
    with TapReader(model, ["stages.0"]) as reader:
        copy.deepcopy(model)
        logits, _ = reader.read(nn.Sequential(model, nn.Softmax(1)), x)
    assert torch.allclose(logits.sum(1), torch.ones(2))


def test_reader_takes_the_tensor_from_tuples_and_model_outputs():
    model, x = Hugging(), torch.randn(5, 6)
    assert paths(model, (5, 6)) == ["layer.0", "layer.1", "layer.2"]
    with TapReader(model, ["layer.0"]) as reader:
        logits, (hidden,) = reader.read(model, x)
    assert torch.equal(logits, model(x).logits) and logits.shape == (5, 4)
    assert torch.equal(hidden, model.layer[0](x)[0])
    assert first_tensor({"loss": x, "logits": logits}) is logits
    assert first_tensor(([None, {"a": x}],)) is x
    assert first_tensor("text") is None


def test_unknown_paths_name_near_ones():
    with pytest.raises(StudentError, match="no tap 'stage.1' in ConvNet. Did you mean 'stages.1'"):
        TapReader(convnet(), ["stage.1"])
    with pytest.raises(TeacherError, match="It has: stem, stages, pool, head"):
        TapReader(convnet(), ["zzzzzzzz"], error=TeacherError)
    with pytest.raises(StudentError, match="no tap ''"):
        TapReader(convnet(), [""])


def test_a_module_never_called_names_its_last_part():
    model = Vit(3, nn.ModuleList)
    with pytest.raises(StudentError, match="'blocks' gave no tensor.*such as 'blocks.2'"):
        reading(model, torch.randn(IMAGE), ["blocks"], features=True, maps=False)


def test_reading_pools_and_maps():
    model, x = convnet().eval(), torch.randn(IMAGE)
    taps = find_taps(model, x)
    read = reading(model, x, taps, features=True, maps=True)
    with TapReader(model, [tap.path for tap in taps]) as reader:
        logits, outputs = reader.read(model, x)
    assert torch.equal(read.decision, logits)
    assert [f.shape for f in read.features] == [(2, 8), (2, 12), (2, 16)]
    for feature, energy, output in zip(read.features, read.maps, outputs, strict=True):
        assert torch.equal(feature, pooled(output))
        wanted = energy_map(output)
        assert wanted is not None and torch.equal(energy, wanted)
    bare = reading(model, x, taps, features=False, maps=False)
    assert bare.features == () and bare.maps == () and torch.equal(bare.decision, logits)


def test_reading_lets_the_gradient_through():
    model = convnet().train()
    read = reading(model, torch.randn(IMAGE), ["stages.1"], features=True, maps=True)
    (read.features[0].sum() + read.maps[0].sum()).backward()
    assert model.stem[0].weight.grad is not None and model.head.weight.grad is None


def test_reading_is_safe_from_layers_that_overwrite_their_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(3, 1, 2, 2)
    read = reading(conv, x, ["0"], features=True, maps=False)
    assert torch.equal(read.features[0], conv[0](x).mean((2, 3)))
    flat = torch.randn(3, 4)
    read = reading(model, flat, ["0"], features=True, maps=False)
    assert torch.equal(read.features[0], model[0](flat))


def test_reading_turns_half_precision_into_float32():
    model = convnet().eval().to(torch.bfloat16)
    x = torch.randn(IMAGE, dtype=torch.bfloat16)
    read = reading(model, x, ["stages.0"], features=True, maps=True)
    assert {t.dtype for t in (read.decision, *read.features, *read.maps)} == {torch.float32}


def test_maps_of_tokens_are_refused():
    with pytest.raises(StudentError, match="tap 'blocks.1' gives 16 x 8 an example.*no height"):
        reading(Vit(), torch.randn(IMAGE), ["blocks.1"], features=True, maps=True)


def test_describe_taps_gives_shapes_or_refuses():
    model, x = convnet(), torch.randn(IMAGE)
    (tap,) = describe_taps(model, x, ["stages.1.0"])
    assert (tap.path, tap.shape) == ("stages.1.0", (12, 16, 16))
    with pytest.raises(TeacherError, match="Did you mean 'stages.1.0'"):
        describe_taps(model, x, ["stages.10"], error=TeacherError)
