"""The recipe: strict, in units as people write them, with errors that name key and line."""

from __future__ import annotations

import json
import math
import os
import typing

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tutelage.errors import RecipeError
from tutelage.plain_yaml import load_yaml
from tutelage.recipe import Recipe

LEAST = {"data": {"train": "digits"}, "teacher": {"fit": True}}
HEAD = "data: {train: digits}\nteacher: {fit: true}\n"


@pytest.fixture
def read(tmp_path):
    def read(text, head=HEAD):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else (head + text).encode())
        return Recipe.read(path)

    return read


def said(call, *args, **options) -> str:
    with pytest.raises(RecipeError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_the_least_recipe_fills_in_the_rest(read):
    recipe = read("")
    assert recipe.task == "vision" and recipe.distill.losses == {"dist": 1.0}
    assert recipe.budget.limits() == () and recipe.device == "host"


def test_units_become_si(read):
    recipe = read(
        "budget:\n  storage: 100 kB\n  memory: 64 KiB\n  latency: 2 ms\n  energy: 5 mJ\n"
        "  accuracy: {limit: 95 %, hard: false}\n"
    )
    found = {limit.metric: (limit.value, limit.hard) for limit in recipe.budget.limits()}
    assert found == {
        "storage_bytes": (pytest.approx(100_000), True),
        "ram_bytes": (65_536.0, True),
        "latency_s": (pytest.approx(0.002), True),
        "energy_j": (pytest.approx(0.005), True),
        "accuracy": (pytest.approx(0.95), False),
    }


def test_a_number_may_be_written_with_an_exponent(read):
    assert read("distill: {rate: 1e-3}").distill.rate == 0.001


NEAR = {
    "divice: host": ("divice", "device", 3),
    "data:\n  trian: digits": ("data.trian", "train", 2),
    "augment:\n  flip: true\n  mixupp: 0.1": ("augment.mixupp", "mixup", 5),
    "budget:\n  storage:\n    limt: 1 kB": ("budget.storage.limt", "limit", 5),
    "budget:\n  storrage: 1 kB": ("budget.storrage", "storage", 4),
    "distill:\n  epoch: 3": ("distill.epoch", "epochs", 4),
}


@pytest.mark.parametrize("text", NEAR)
def test_an_unknown_key_names_the_nearest_and_its_line(text, read):
    key, near, line = NEAR[text]
    head = "teacher: {fit: true}\n" if text.startswith("data") else HEAD
    line = line + 1 if text.startswith("data") else line
    message = said(read, text, head)
    assert f"'{key}'" in message and f"Did you mean '{near}'?" in message
    assert f"recipe.yaml:{line}:" in message


# Keys that look like the tags pydantic gives the arms of a union, or like nothing at all.
@pytest.mark.parametrize("key", ["my-key", "float", "str", "data.x", "<<", "=", "LossPart", ""])
def test_any_unknown_key_is_named_as_it_was_written(key, read):
    assert f"unknown key '{key}'" in said(read, f"'{key}': 1")
    assert f"unknown key 'data.{key}'" in said(read, f"data: {{'{key}': 1}}", "")


WRONG = {
    "seed: true": "seed",
    "seed: 1.0": "seed",
    "seed: '1'": "seed",
    "seed: -1": "seed",
    "seed: 2147483648": "seed",
    f"seed: 1{'0' * 5000}": "seed",
    "threads: 0": "threads",
    "threads: 010": "threads",
    "tracking: tensorbord": "tracking",
    "augment: {flip: 1}": "augment.flip",
    "augment: {views: true}": "augment.views",
    "augment: {mixup: 0.6}": "augment.mixup",
    "augment: {erase: .nan}": "augment.erase",
    "augment:": "augment",
    "budget: null": "budget",
    "budget: {storage: true}": "budget.storage",
    "budget: {storage: 0}": "budget.storage",
    "budget: {storage: -1}": "budget.storage",
    "budget: {storage: .nan}": "budget.storage",
    "budget: {memory: .inf}": "budget.memory",
    "budget: {memory: 0 kB}": "budget.memory",
    "budget: {memory: 64 ms}": "budget.memory",
    f"budget: {{memory: 1{'0' * 400}}}": "budget.memory",
    "budget: {latency: {limit: .nan}}": "budget.latency",
    "budget: {latency: {limit: 2 ms, hard: 1}}": "budget.latency.hard",
    "budget: {accuracy: 1.5}": "budget.accuracy",
    "budget: {accuracy: 0}": "budget.accuracy",
    "budget: {accuracy: nan}": "budget.accuracy",
    "budget: {speed: 20 ms}": "budget.speed",
    "budget: {speed: 0}": "budget.speed",
    "budget: {speed: 20 token/s, latency: 2 ms}": "budget",
    "distill: {losses: {}}": "distill.losses",
    "distill: {losses: {kl: -1}}": "distill.losses.kl",
    "distill: {losses: {kl: .inf}}": "distill.losses.kl",
    "distill: {losses: {kl: true}}": "distill.losses.kl",
    "distill: {losses: {kl: {weight: -1}}}": "distill.losses.kl.weight",
    "distill: {losses: {kl: {temperature: .nan}}}": "distill.losses.kl",
    "distill: {pairs: [[a, b, c]]}": "distill.pairs.0",
    "distill: {checkpoint: soon}": "distill.checkpoint",
    "distill: {checkpoint: 0 s}": "distill.checkpoint",
    "distill: {rate: 0}": "distill.rate",
    "distill: {ema: 1}": "distill.ema",
    "distill: {clip: .inf}": "distill.clip",
    f"distill: {{batch: 1{'0' * 20}}}": "distill.batch",
    "student: {spec: {family: convnet, x: .nan}}": "student.spec",
    "student: {spec: {family: a}, source: b.py:c}": "student",
    "export: {precision: INT8}": "export.precision",
    "device: ''": "device",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_refused_by_its_key(text, read):
    assert f"recipe.yaml:3: {WRONG[text]}: " in said(read, text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("teacher: {fit: true}\ndata: {}", ":2: the key 'data.train' is missing"),
        ("teacher: {fit: true}", ": the key 'data' is missing"),
        ("data: {train: digits}\nteacher: {}", ":2: teacher: give either"),
        ("data: {train: digits}\nteacher: {fit: true, source: x}", ":2: teacher: give either"),
        ("teacher: {fit: true}\ndata: {train: ''}", ":2: data.train: "),
        ("teacher: {fit: true}\ndata: {train: d, size: [0, 5]}", ":2: data.size.0: "),
        ("teacher: {fit: true}\ndata: {train: d, size: [true, 5]}", ":2: data.size.0: "),
        ("teacher: {fit: true}\ndata: {train: d, validation: .nan}", ":2: data.validation: "),
        ("data: {train: d}\nteacher: {fit: true, mean: [1]}", ":2: teacher: give 'mean'"),
        ("data: {train: d}\nteacher: {fit: true, mean: [1], std: [0]}", ":2: teacher.std.0: "),
        ("data: {train: d}\nteacher: {fit: true, mean: [.nan], std: [1]}", ":2: teacher.mean.0: "),
        ("data: {train: d}\nteacher: {fit: true, mean: [1], std: [1, 1]}", ":2: teacher: give"),
    ],
)
def test_data_and_teacher_are_checked_too(text, what, read):
    assert f"recipe.yaml{what}" in said(read, text, "")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "must hold keys"),
        (b"[]", "must hold keys"),
        (b"just text", "must hold keys"),
        (b"# only a comment\n", "must hold keys"),
        (bytes(range(256)), "is not text"),
        ("data: x".encode("utf-16"), "is not text"),
        (b"a: \x00", "not YAML"),
        (b"#" * 200_000, "larger than 100 kB"),
    ],
)
def test_what_is_no_recipe_is_refused(data, what, read):
    assert what in said(read, data)


@pytest.mark.parametrize("data", [None, [], "text", 3, {1: 2}, {"data": {1: 2}}])
def test_parse_refuses_what_is_no_mapping_of_words(data):
    said(Recipe.parse, data)


def test_a_missing_file_names_a_near_one(tmp_path):
    (tmp_path / "recipe.yaml").write_text(HEAD)
    assert "Did you mean 'recipe.yaml'?" in said(Recipe.read, tmp_path / "recip.yaml")
    assert "tutelage init" in said(Recipe.read, tmp_path / "none" / "x.yaml")
    said(Recipe.read, tmp_path)


def test_relative_paths_start_at_the_recipe(tmp_path, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "r.yaml").write_text(
        "data: {train: images, test: ../held, labels: l, test_labels: m}\n"
        "teacher: {source: net.py:build, weights: /abs/w.safetensors}\n"
        "student: {source: own.py:build}\ndevice: board.yaml\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("there/r.yaml", folder / "r.yaml"):
        recipe = Recipe.read(name)
        assert recipe.data.train == str(folder / "images")
        assert recipe.data.test == str(tmp_path / "held")
        assert recipe.data.labels == str(folder / "l")
        assert recipe.data.test_labels == str(folder / "m")
        assert recipe.teacher.source == str(folder / "net.py:build")
        assert recipe.teacher.weights == "/abs/w.safetensors"
        assert recipe.student.source == str(folder / "own.py:build")
        assert recipe.device == str(folder / "board.yaml")


def test_names_are_not_taken_for_paths(read, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = read("data: {train: digits}\nteacher: {source: 'timm:vit'}\ndevice: nucleo-l4r5", "")
    assert (recipe.data.train, recipe.teacher.source) == ("digits", "timm:vit")
    assert recipe.device == "nucleo-l4r5"
    home = read("data: {train: ~/images}\nteacher: {fit: true}", "")
    assert home.data.train == str(tmp_path / "home" / "images")
    assert "home folder" in said(read, "student: {source: '~no-such-user-here/x.py:f'}")


VARIABLES = {"mlflow": "MLFLOW_TRACKING_URI", "trackio": "TRACKIO_DIR"}
# Every key whose value is free text. None of them says where to write: a recipe from elsewhere
# must not be able to make anything land outside the run directory. A new one must be added here,
# by someone who has looked at what is done with it.
READ_ONLY_TEXT = {
    "language.prompts",
    "task", "device", "data.train", "data.test", "data.labels", "data.test_labels",
    "data.image_column", "data.label_column", "teacher.source", "teacher.weights",
    "teacher.taps", "budget.latency", "budget.memory", "budget.storage", "budget.energy",
    "budget.accuracy", "budget.speed", "student.source", "student.spec", "student.taps",
    "distill.losses", "distill.pairs", "distill.checkpoint", "measure.power_csv", "teacher.classes",
    "data.text_column", "data.tokenizer", "data.series_column", "data.time_column",
    "data.unlabelled", "student.exits",
}  # fmt: skip


def takes_text(annotation) -> bool:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return False
    return annotation is str or any(takes_text(a) for a in inner if a is not Ellipsis)


def fields(model=Recipe, prefix=""):
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_no_key_names_an_output():
    assert {name for name, field in fields() if takes_text(field.annotation)} == READ_ONLY_TEXT


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_tracker_is_told_to_write_under_the_run(name, tmp_path, monkeypatch):
    from accelerate import tracking

    from tutelage.train import trackers

    seen = []

    class Fake:
        def __init__(self, project, **options):
            seen.append(str(options) + os.environ.get(VARIABLES.get(name, ""), ""))

        def finish(self):
            pass

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda module: module)
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    for run in ("one", "two"):
        folder = tmp_path / run
        trackers.open_tracker(name, folder).close()
        assert str(folder) in seen.pop() and folder.is_dir()
    assert not any(variable in os.environ for variable in VARIABLES.values())
    if name in VARIABLES:
        monkeypatch.setenv(VARIABLES[name], "the user's own")
        trackers.open_tracker(name, tmp_path / "three").close()
        assert "the user's own" in seen.pop() and os.environ[VARIABLES[name]] == "the user's own"


def test_every_key_is_described():
    assert [name for name, field in fields() if not field.description] == []


FULL = """data: {train: images, test: held, format: folder, size: [28, 30], validation: 0.2}
teacher: {source: net.py:build, weights: w.safetensors, mean: [0.5], std: [0.25], taps: [a.0, b]}
device: nucleo-l4r5
budget: {storage: 100 kB, latency: {limit: 2 ms, hard: false}, accuracy: 95 %, energy: 0.005}
augment: {views: 2, shift: 1, flip: true, mixup: 0.5}
student: {spec: {family: convnet, widths: [4, 8], date: 2020-01-01, small: 1e-9}}
distill:
  losses: {kl: {weight: auto, temperature: 4.0}, dist: 1, features: auto}
  pairs: [[stages.0, "1e-2"], [stages.1, "no"]]
  rate: 1e-05
threads: 1
tracking: tensorboard
"""


@pytest.mark.parametrize("text", [HEAD, FULL])
def test_to_yaml_comes_back_the_same(text, read, tmp_path):
    recipe = read(text, "")
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert Recipe.read(again) == recipe
    # Any other YAML reader sees the same values.
    assert yaml.safe_load(recipe.to_yaml()) == load_yaml(recipe.to_yaml(), "again")


def test_the_json_schema_is_valid_and_complete(read):
    schema = Recipe.json_schema()
    json.dumps(schema, allow_nan=False)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for text in (HEAD, FULL):
        validator.validate(load_yaml(text, "x"))
    validator.validate(json.loads(json.dumps(yaml.safe_load(read(FULL, "").to_yaml()))))
    for wrong in ({}, {**LEAST, "sed": 1}, {**LEAST, "seed": -1}, {**LEAST, "data": {"train": 1}}):
        assert not validator.is_valid(wrong)
    named = {key for part in (schema, *schema["$defs"].values()) for key in part["properties"]}
    assert {name.split(".")[-1] for name, _ in fields()} <= named


words = st.text(max_size=8) | st.sampled_from(
    ["data", "train", "teacher", "fit", "budget", "storage", "limit", "losses", "weight", "kl"]
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates()
    | st.sampled_from(["100 kB", "2 ms", "95 %", "auto", 10**400, -1, 0, math.nan])
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | scalars, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted(Recipe.model_fields))
parts = {
    name: st.dictionaries(
        st.sampled_from(sorted(field.annotation.model_fields)) | words, anything, max_size=3
    )
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
almost = st.fixed_dictionaries(
    {"data": st.just(LEAST["data"]) | anything, "teacher": st.just(LEAST["teacher"]) | anything},
    optional={name: part for name, part in parts.items() if name not in LEAST},
)


@settings(max_examples=150, deadline=None)
@given(almost | anything | st.dictionaries(names, anything, max_size=3).map(lambda d: LEAST | d))
@example({**LEAST, "budget": {"accuracy": 10**400}})
@example({**LEAST, "distill": {"losses": {"kl": {"weight": 10**400}}}})
def test_any_data_parses_or_is_refused_in_one_line(tmp_path_factory, data):
    try:
        texts = [yaml.safe_dump(data, allow_unicode=True)]
    except (ValueError, TypeError, yaml.YAMLError):
        texts = []  # safe_dump cannot write it
    for attempt in (lambda: Recipe.parse(data), *(lambda t=t: read_text(t) for t in texts)):
        try:
            recipe = attempt()
        except RecipeError as error:
            assert "\n" not in str(error) and str(error)
        else:
            assert comes_back(recipe)


def comes_back(recipe: Recipe) -> bool:
    try:
        return Recipe.parse(load_yaml(recipe.to_yaml(), "again")) == recipe
    except RecipeError as no:  # text from Python may hold what no file may
        return "cannot be printed" in str(no)


def read_text(text: str) -> Recipe:
    return Recipe.parse(load_yaml(text, "fuzz"), where="fuzz", text=text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-?[]{},&*!|>'\"#%@`~ \n0.e<", max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        read_text(text)
    except RecipeError as error:
        assert "\n" not in str(error)
