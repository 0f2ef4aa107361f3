"""Teachers of every kind: loaded, asked, and refused with one line."""

import sys
import types
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tutelage.errors import TeacherError
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.teach import torch_teacher
from tutelage.teach.checks import PROBABILITY_NOTE, REPEAT_NOTE
from tutelage.teach.teachers import load_teacher
from tutelage.teach.torch_teacher import TorchTeacher, fingerprint

SHAPE = (1, 8, 8)
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                  nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def make(classes):
    return Net(classes)

def ten():
    return Net(10)
"""


def network(channels=1, classes=10) -> Any:
    torch.manual_seed(0)
    spec = ConvNetSpec(image=(channels, 8, 8), classes=classes, widths=(4, 6), depths=(1, 1))
    return ConvNet(spec)


def teacher(module=None, **options):
    options = {"classes": 10, "image_shape": SHAPE, **options}
    return TorchTeacher(network() if module is None else module, **options)


def load(source, **options) -> Any:
    return load_teacher(source, **{"classes": 10, "image_shape": SHAPE, **options})


def refused(source, error: type[Exception] = TeacherError, **options):
    with pytest.raises(error) as info:
        load(source, **options)
    text = str(info.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return path


def write_onnx(path, batch="batch", channels=1, classes=10, softmax=False, poison=False):
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(channels * 64, classes)).astype(np.float32)
    if poison:
        weight[0, 0] = np.nan
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["said"], axis=1))
    out = "said" if softmax else "logits"
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, channels, 8, 8])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return torch.from_numpy(weight)


# TorchTeacher ---------------------------------------------------------------------------------


def test_torch_teacher_is_frozen_and_says_what_the_module_says():
    module, x = network().train(), torch.rand(5, *SHAPE)
    asked = teacher(module)
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert [tap.path for tap in asked.taps] == ["stages.0", "stages.1"]
    read = asked.read(x, features=True, maps=True)
    assert torch.equal(read.decision, module(x))
    assert [f.shape[1] for f in read.features] == [4, 6] and len(read.maps) == 2
    assert asked.read(x).features == () and asked.notes == ()


def test_what_it_says_can_be_learned_from():
    read = teacher().read(torch.rand(3, *SHAPE), features=True)
    assert not read.decision.is_inference() and not read.decision.requires_grad
    weight: Any = torch.ones(4, requires_grad=True)
    (read.features[0] * weight).sum().backward()
    assert torch.allclose(weight.grad, read.features[0].sum(0))


def test_answers_do_not_depend_on_the_batch_or_on_train_mode():
    asked, x = teacher(), torch.rand(6, *SHAPE)
    whole = asked.read(x, features=True)
    asked.module.train()
    ones = [asked.read(x[i : i + 1], features=True) for i in range(6)]
    assert torch.allclose(torch.cat([r.decision for r in ones]), whole.decision, atol=1e-6)
    assert torch.allclose(torch.cat([r.features[1] for r in ones]), whole.features[1], atol=1e-6)


def test_a_batch_of_one_squeezed_away_and_trailing_axes_are_mended():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x).squeeze()

    assert teacher(Squeezed()).read(torch.rand(1, *SHAPE)).decision.shape == (1, 10)
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8))
    assert teacher(convolutional).read(torch.rand(3, *SHAPE)).decision.shape == (3, 10)
    with pytest.raises(TeacherError, match="answered 2 examples with 2 x 10 x 8 x 8; wanted"):
        teacher(nn.Conv2d(1, 10, 1))


def test_bf16_answers_in_float32_and_is_another_teacher():
    x = torch.rand(4, *SHAPE)
    plain, half = teacher(), teacher(bf16=True)
    one, two = plain.read(x, features=True), half.read(x, features=True)
    assert two.decision.dtype == two.features[0].dtype == torch.float32
    assert not torch.equal(one.decision, two.decision)
    assert torch.allclose(one.decision, two.decision, atol=0.05)
    assert plain.fingerprint != half.fingerprint


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(torch_teacher, "native_bf16", lambda device: True)


def test_bf16_is_taken_by_itself_where_decisions_stay_alike(native):
    x = torch.rand(4, *SHAPE)
    alike, asked = teacher(bf16=None, example=x), teacher(bf16=True)
    assert alike.bf16 and torch.equal(alike.read(x).decision, asked.read(x).decision)
    assert alike.fingerprint == asked.fingerprint
    (note,) = alike.notes
    assert "bfloat16: its decisions move by 0." in note and not asked.notes


def test_bf16_is_not_taken_where_it_moves_decisions(native):
    class Fine(nn.Linear):
        def forward(self, x):
            return torch.sin(1_000 * super().forward(x.flatten(1)))

    x = torch.rand(4, *SHAPE)
    fine = teacher(Fine(64, 10), bf16=None, example=x)
    assert not fine.bf16 and fine.notes == ()
    assert fine.fingerprint == teacher(fine.module).fingerprint


def test_bf16_is_not_taken_where_an_operator_has_none(native):
    class Only32(nn.Linear):
        def forward(self, x):
            if (said := super().forward(x.flatten(1))).dtype != torch.float32:
                raise RuntimeError("not implemented for 'BFloat16'")
            return said

    assert not teacher(Only32(64, 10), bf16=None).bf16


def test_bf16_is_not_taken_of_a_network_that_says_so(native):
    network_of = network()
    network_of.full_precision = True
    assert not teacher(nn.Sequential(network_of), bf16=None).bf16


def test_without_native_bf16_none_is_taken(monkeypatch):
    monkeypatch.setattr(torch_teacher, "native_bf16", lambda device: False)
    assert not teacher(bf16=None).bf16


def test_filters_are_laid_out_channels_last_unless_the_module_cannot_bear_it():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 10)

        def forward(self, x):
            return self.head(self.net(x).view(len(x), -1))

    def laid_out(asked):
        weight = next(p for p in asked.module.parameters() if p.ndim == 4)
        return weight.is_contiguous(memory_format=torch.channels_last)

    assert laid_out(teacher(network(3), image_shape=(3, 8, 8)))
    viewing = teacher(Viewing(), image_shape=(3, 8, 8))
    assert not laid_out(viewing)
    assert viewing.read(torch.rand(5, 3, 8, 8)).decision.shape == (5, 10)


def test_a_half_precision_module_is_asked_in_its_own_type():
    read = teacher(network().to(torch.bfloat16)).read(torch.rand(2, *SHAPE))
    assert read.decision.dtype == torch.float32


def test_nan_and_infinity_name_the_batch_and_the_example():
    asked, x = teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), torch.rand(4, *SHAPE)
    asked.read(x)
    x[2, 0, 0, 0] = float("nan")
    with pytest.raises(TeacherError, match="says NaN at batch 1 .*1 of 4 examples.*number 2"):
        asked.read(x)
    x[2, 0, 0, 0] = float("inf")
    with pytest.raises(TeacherError, match="says (infinity|NaN) at batch 2"):
        asked.read(x)


def test_poisoned_weights_are_found_at_the_first_batch():
    module = network()
    module.head.bias.data[3] = float("nan")
    with pytest.raises(TeacherError, match="NaN at batch 0 .*for 2 of 2 examples"):
        teacher(module).read(torch.rand(2, *SHAPE))


def test_another_class_count_names_both():
    with pytest.raises(TeacherError, match="among 7 classes and the data has 10"):
        teacher(network(classes=7))


def test_three_channel_teacher_wants_the_recipe_to_say_repeat():
    with pytest.raises(TeacherError, match="teacher.channels: repeat"):
        teacher(network(3))
    asked, x = teacher(network(3), channels="repeat"), torch.rand(2, *SHAPE)
    assert asked.notes == (REPEAT_NOTE,)
    assert torch.equal(asked.read(x).decision, asked.module(x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (network(1), {"image_shape": (3, 8, 8)}, "cannot read an input of 3 x 8 x 8"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            {"image_shape": (1, 9, 9)},
            "cannot read an input of 1 x 9 x 9",
        ),
        (network(3), {"channels": "repeat", "image_shape": (2, 8, 8)}, "these have 2"),
        (network(3), {"channels": "thrice"}, "'thrice' is unknown. Known: keep, repeat"),
        (network(), {"taps": ["stage.1"]}, "Did you mean 'stages.1'"),
    ],
)
def test_what_does_not_fit_is_said_at_once(module, options, said):
    with pytest.raises(TeacherError, match=said) as info:
        teacher(module, **options)
    assert "\n" not in str(info.value)


def test_another_size_later_is_one_line_too():
    asked = teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(TeacherError, match="fails at batch 0 .*inputs of 2 x 1 x 9 x 9: Runtime"):
        asked.read(torch.rand(2, 1, 9, 9))


def test_taps_by_hand():
    asked = teacher(taps=["stem", "stages.1"])
    assert [(tap.path, tap.shape) for tap in asked.taps] == [
        ("stem", (4, 8, 8)),
        ("stages.1", (6, 4, 4)),
    ]
    assert asked.fingerprint != teacher().fingerprint


def test_probabilities_become_logits_with_a_note():
    x = torch.rand(3, *SHAPE)
    asked = teacher(nn.Sequential(network(), nn.Softmax(1)))
    assert asked.notes == (PROBABILITY_NOTE,)
    probabilities = network().eval()(x).softmax(1)
    assert torch.allclose(asked.read(x).decision.softmax(1), probabilities, atol=1e-6)


def test_fingerprint_follows_weights_architecture_and_code():
    plain = fingerprint(network())
    assert plain == fingerprint(network()) and len(plain) == 64
    changed = network()
    changed.stages[1][0].first[1].running_mean[0] += 1e-6
    other = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    same_tensors = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    same_tensors.load_state_dict(other.state_dict())
    prints = [plain, fingerprint(changed), fingerprint(other), fingerprint(same_tensors)]
    assert len({*prints, fingerprint(network(), b"code")}) == 5


def test_the_global_random_state_stays_as_it_was():
    module = network()
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    teacher(module)
    assert torch.equal(torch.rand(1), wanted)


# Python functions -----------------------------------------------------------------------------


def test_function_runs_only_when_trusted(tmp_path):
    path, proof = tmp_path / "net.py", tmp_path / "ran"
    path.write_text(f"open({str(proof)!r}, 'w').close()\n" + SOURCE)
    assert "--trust-code" in refused(f"{path}:make")
    assert not proof.exists()
    load(f"{path}:make", trust_code=True)
    assert proof.exists()


def test_function_gets_classes_when_it_takes_them(source):
    assert load(f"{source}:make", trust_code=True, classes=4).classes == 4
    ten = load(f"{source}:ten", trust_code=True)
    assert [tap.path for tap in ten.taps] == ["body.1", "body.4"]
    assert "among 10 classes and the data has 4" in refused(
        f"{source}:ten", trust_code=True, classes=4
    )


def test_function_may_import_its_neighbours_and_leaves_no_trace(tmp_path, source):
    user = tmp_path / "user.py"
    user.write_text(
        "from net import make as inner\ndef make(classes):\n    return inner(classes)\n"
    )
    path = list(sys.path)
    try:
        load(f"{user}:make", trust_code=True)
    finally:
        sys.modules.pop("net", None)
    assert sys.path == path and "user" not in sys.modules


def test_an_edited_file_is_another_teacher(source):
    def ask():
        torch.manual_seed(0)
        return load(f"{source}:make", trust_code=True).fingerprint

    first = ask()
    assert ask() == first
    source.write_text(SOURCE.replace(".mean((2, 3))", ".amax((2, 3))"))
    second = ask()
    source.write_text(SOURCE + "\nSCALE = 2  # beside the class, where a forward pass may look\n")
    assert len({first, second, ask()}) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nraise ValueError('no\\nmoon')\n", "line 2: ValueError: no. "),
        ("def make():\n    y = 1\n    return y.nothing\n", "line 3: AttributeError"),
        ("def make(:\n", "line 1: SyntaxError"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit"),
        ("def make(size):\n    return size\n", "TypeError: make\\(\\) missing 1 required"),
        ("def make():\n    return 3\n", "'bad.py:make' returned a int"),
        ("def maker():\n    return 3\n", "no function 'make'. Did you mean 'maker'"),
        ("x = 1\n", "no function 'make'. It defines no function"),
    ],
)
def test_a_file_that_fails_is_one_line(tmp_path, text, said):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(TeacherError, match=said) as info:
        load(f"{path}:make", trust_code=True)
    assert "\n" not in str(info.value) and "bad.py" in str(info.value)


# Weights --------------------------------------------------------------------------------------


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


# Paths and names ------------------------------------------------------------------------------


def test_wrong_paths_list_what_is_near(tmp_path, source):
    (tmp_path / "teacher.safetensors").write_bytes(b"x")
    said = refused(f"{tmp_path}/nets.py:make", trust_code=True)
    assert "nets.py' does not exist. That folder has: net.py" in said
    said = refused(network(), weights=tmp_path / "teachr.safetensors")
    assert "That folder has: teacher.safetensors" in said
    assert "there is no folder" in refused(f"{tmp_path}/no/net.onnx")
    assert "is a folder" in refused(network(), weights=tmp_path)


def test_sources_of_no_known_kind_say_what_to_write(tmp_path, source):
    (tmp_path / "w.safetensors").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert f"Write {source}:function" in refused(str(source))
    assert "holds weights and no network" in refused(str(tmp_path / "w.safetensors"))
    assert "without spec.json" in refused(str(tmp_path))
    assert "of no known kind. Write file.py:function" in refused(str(tmp_path / "notes.txt"))
    assert "of no known kind. Save them as" in refused(network(), weights=tmp_path / "notes.txt")


def test_a_folder_is_opened_by_whom_knows_how(tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    opened = []
    asked = load(str(tmp_path), open_folder=lambda path: opened.append(path) or network())
    assert opened == [tmp_path] and len(asked.taps) == 2


def fake_libraries(monkeypatch, calls):
    timm: Any = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet18", "vit_tiny"]
    timm.is_model = lambda name: name in timm.list_models()

    def create_model(name, **options):
        calls.append(options)
        return network(options["in_chans"], options["num_classes"])

    timm.create_model = create_model
    vision: Any = types.ModuleType("torchvision")
    models: Any = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["resnet18"] if module is models else ["fasterrcnn"]

    def get_model(name, **options):
        calls.append(options)
        return network(1, options["num_classes"])

    models.get_model, vision.models = get_model, models
    for name, module in (("timm", timm), ("torchvision", vision), ("torchvision.models", models)):
        monkeypatch.setitem(sys.modules, name, module)


# ONNX -----------------------------------------------------------------------------------------
