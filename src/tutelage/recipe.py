"""The recipe: what a user asks for, as strict pydantic models and YAML."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tutelage.errors import RecipeError
from tutelage.records import Limit, Metric
from tutelage.registry import near_matches
from tutelage.units import parse_quantity

_LARGEST_BYTES = 1_000_000
_BUDGET: dict[str, tuple[Metric, str]] = {
    "latency": ("latency_s", "s"),
    "memory": ("ram_bytes", "B"),
    "storage": ("storage_bytes", "B"),
    "energy": ("energy_j", "J"),
    "accuracy": ("accuracy", "1"),
}


class Part(BaseModel):
    """A part of the recipe: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _size(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Floats = Annotated[tuple[float, ...], BeforeValidator(_size)]
Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class DataPart(Part):
    """Where the examples lie and how they are read."""

    train: str = Field(description="folder, IDX, .npz, .parquet, .csv, saved dataset, or 'digits'")
    test: str | None = Field(None, description="held-out examples; without it a fifth is set aside")
    labels: str | None = Field(None, description="IDX labels file, when it is not found by name")
    test_labels: str | None = Field(None, description="the same for the test examples")
    format: Literal["auto", "idx", "folder", "npz", "parquet", "csv", "hf", "digits"] = Field(
        "auto", description="how to read it; told from the path when auto"
    )
    image_column: str | None = Field(None, description="of a table; found when unset")
    label_column: str | None = Field(None, description="of a table; found when unset")
    size: Size | None = Field(None, description="[height, width] to resize every image to")
    validation: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.1, description="share of the training examples to choose by"
    )


class AugmentPart(Part):
    """How training images are varied; a pure function of seed, view and index."""

    views: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="variants of each image that the teacher is asked about, once each"
    )
    shift: Annotated[int, Field(ge=0)] | None = Field(
        None, description="largest move in pixels; 7 % of the side when unset"
    )
    flip: bool = Field(False, description="mirror left and right; never for digits or letters")
    erase: Share = Field(0.0, description="share of the image blanked by a random rectangle")
    mixup: Share = Field(0.0, description="largest weight of a second image mixed in, to 0.5")
    scale: Share = Field(0.0, description="largest zoom in or out, as a share of the side")


class TeacherPart(Part):
    """Who teaches."""

    source: str | None = Field(
        None,
        description="file.py:function, timm:NAME, torchvision:NAME, model.onnx, or a folder with "
        "spec.json and model.safetensors",
    )
    weights: str | None = Field(None, description=".safetensors, or .pt without pickled code")
    fit: bool = Field(False, description="train a built-in teacher on the data first")
    epochs: Count | None = Field(None, description="for fit: passes over the data")
    width: Annotated[int, Field(ge=4, le=512)] = Field(32, description="for fit: first-stage width")
    channels: Literal["keep", "repeat"] = Field("keep", description="repeat grey images to RGB")
    mean: Floats | None = Field(None, description="the teacher's own normalisation, per channel")
    std: Floats | None = Field(None, description="given together with mean")
    taps: list[str] | None = Field(None, description="module paths to read; found when unset")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="in which a torch teacher is asked; bf16 is faster where native"
    )

    @model_validator(mode="after")
    def _one_teacher(self) -> TeacherPart:
        if self.fit == (self.source is not None):
            raise ValueError("give either 'source' or 'fit: true'")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give 'mean' and 'std' together")
        return self


class BudgetLimit(Part):
    """One limit, with its softness."""

    limit: float | str
    hard: bool = True


class BudgetPart(Part):
    """Limits on the artifact. Each is a quantity, or `{limit: 100 kB, hard: false}`."""

    latency: float | str | BudgetLimit | None = Field(None, description="for instance 2 ms")
    memory: float | str | BudgetLimit | None = Field(None, description="for instance 64 kB")
    storage: float | str | BudgetLimit | None = Field(None, description="for instance 100 kB")
    energy: float | str | BudgetLimit | None = Field(None, description="for instance 5 mJ")
    accuracy: float | str | BudgetLimit | None = Field(None, description="at least, 0.95 or 95 %")

    @model_validator(mode="after")
    def _quantities(self) -> BudgetPart:
        self.limits()
        return self

    def limits(self) -> tuple[Limit, ...]:
        """Return the limits in SI units."""
        found = []
        for name, (metric, unit) in _BUDGET.items():
            given = getattr(self, name)
            if given is None:
                continue
            raw, hard = (
                (given.limit, given.hard) if isinstance(given, BudgetLimit) else (given, True)
            )
            try:
                value = _share(raw) if metric == "accuracy" else parse_quantity(raw, unit)
            except RecipeError as error:
                raise ValueError(f"{name}: {error}") from None
            found.append(Limit(metric=metric, value=value, hard=hard, source="recipe"))
        return tuple(found)


class StudentPart(Part):
    """Who learns: chosen among the compact family, a fixed spec, or one's own function."""

    source: str | None = Field(None, description="file.py:function of your own student")
    spec: dict[str, Any] | None = Field(None, description="a fixed spec, e.g. {family: convnet, …}")
    candidates: Annotated[int, Field(ge=1, le=32)] = Field(
        4, description="how many are compared by a short distillation"
    )
    taps: list[str] | None = Field(None, description="module paths that learn; found when unset")

    @model_validator(mode="after")
    def _one_student(self) -> StudentPart:
        if self.source is not None and self.spec is not None:
            raise ValueError("give 'source' or 'spec', not both")
        return self


class LossPart(Part):
    """Weight and options of one loss; `auto` balances it against the decision."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    weight: float | Literal["auto"] = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Return the loss's own options."""
        return dict(self.__pydantic_extra__ or {})


class DistillPart(Part):
    """How the student is taught."""

    losses: dict[str, Annotated[float, Field(ge=0)] | Literal["auto"] | LossPart] = Field(
        default_factory=lambda: dict[str, Any]({"dist": 1.0}),
        description="loss: weight, or loss: {weight: 1, temperature: 4}",
    )
    pairs: list[Annotated[tuple[str, str], BeforeValidator(_size)]] | None = Field(
        None, description="[student tap, teacher tap] by hand; matched by similarity when unset"
    )
    epochs: Count | None = Field(None, description="passes over the data; by its size when unset")
    batch: Count = Field(128, description="examples a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has Nesterov momentum 0.9")
    schedule: Literal["cosine", "onecycle"] = Field("onecycle", description="of the rate")
    rate: Positive = Field(1e-2, description="highest learning rate")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1e-2, description="of weight matrices, not of biases and norms"
    )
    ema: Share = Field(0.99, description="decay of the averaged weights that ship; 0: off")
    clip: Positive = Field(5.0, description="largest gradient norm")
    patience: Annotated[int, Field(ge=0)] = Field(0, description="epochs without gain; 0: never")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="of training; auto: bf16 where the machine has it and layers are wide"
    )
    checkpoint: str = Field("30 s", description="time between checkpoints")


class ExportPart(Part):
    """What is shipped."""

    precision: Literal["auto", "int8", "float32"] = Field(
        "auto", description="auto: int8 unless float32 also fits and measures faster and better"
    )
    largest_loss: Share = Field(0.01, description="accuracy that int8 may cost on validation")
    dynamic_batch: bool = Field(False, description="leave the batch axis of float32 ONNX free")


class Recipe(Part):
    """Everything a run needs to know."""

    task: str = Field("vision", description="what an example is")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of splits, views, weights")
    data: DataPart
    teacher: TeacherPart
    device: str = Field("host", description="a known device, or a profile's path")
    budget: BudgetPart = BudgetPart.model_construct()
    student: StudentPart = StudentPart.model_construct()
    augment: AugmentPart = AugmentPart.model_construct()
    distill: DistillPart = Field(default_factory=lambda: DistillPart.model_validate({}))
    export: ExportPart = ExportPart.model_construct()
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="processor threads; all cores when unset"
    )
    tracking: Literal["tensorboard", "mlflow", "wandb", "trackio"] | None = Field(
        None, description="experiment tracker, written under the run directory"
    )

    @classmethod
    def parse(cls, data: Any, *, where: str = "recipe", text: str | None = None) -> Recipe:
        """Check plain data; raises `RecipeError` with the key (and the line, given `text`)."""
        if not isinstance(data, dict):
            raise RecipeError(f"{where} must hold keys such as data: and teacher:, and holds none")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(_explain(error, where, text)) from None

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a YAML file; its relative paths are taken from the file's own folder."""
        path = Path(path)
        text = _read_text(path)
        recipe = cls.parse(_load_yaml(text, path), where=str(path), text=text)
        return recipe.resolved(path.resolve().parent)

    def resolved(self, folder: Path) -> Recipe:
        """Return the recipe with its relative paths made absolute against `folder`."""
        data, teacher = self.data, self.teacher
        changes: dict[str, Any] = {
            "data": data.model_copy(
                update={
                    k: _absolute(getattr(data, k), folder)
                    for k in ("train", "test", "labels", "test_labels")
                }
            ),
            "teacher": teacher.model_copy(
                update={k: _absolute(getattr(teacher, k), folder) for k in ("source", "weights")}
            ),
            "student": self.student.model_copy(
                update={"source": _absolute(self.student.source, folder)}
            ),
        }
        if self.device.endswith((".yaml", ".yml")):
            changes["device"] = _absolute(self.device, folder)
        return self.model_copy(update=changes)

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """Return the JSON Schema that editors use for completion."""
        return Recipe.model_json_schema()


def _share(raw: Any) -> float:
    text = raw.strip() if isinstance(raw, str) else raw
    try:
        value = (
            float(text[:-1]) / 100 if isinstance(text, str) and text[-1:] == "%" else float(text)
        )
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise RecipeError(f"'{raw}' must lie between 0 and 1; write it like '0.95' or '95 %'")
    return value


def _absolute(value: str | None, folder: Path) -> str | None:
    if value is None or value == "digits" or value.startswith(("timm:", "torchvision:")):
        return value
    return str(folder / Path(value).expanduser())


def _read_text(path: Path) -> str:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        there = [p.name for p in sorted(folder.glob("*.y*ml"))]
        near = f"{near_matches(path.name, there)} " if there else ""
        raise RecipeError(f"no recipe at {path}. {near}Write one with: tutelage init TEACHER DATA")
    if path.stat().st_size > _LARGEST_BYTES:
        raise RecipeError(f"{path} is larger than 1 MB; that is no recipe")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not text; a recipe is a YAML file in UTF-8") from None


def _load_yaml(text: str, path: Path) -> Any:
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError(f"{path} uses YAML aliases (*name); write the values out")
        _refuse_repeats(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{path}{line}: {problem}; a recipe is plain YAML") from None
    except RecursionError:
        raise RecipeError(f"{path} is nested too deeply; a recipe is plain YAML") from None


def _refuse_repeats(node: Any, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise RecipeError(f"{path}:{line}: the key '{key.value}' stands twice; keep one")
            seen.add(key.value)
            _refuse_repeats(value, path)


def _explain(error: ValidationError, where: str, text: str | None) -> str:
    """Write the first problem as one line: where, which key, what is wrong, what is right."""
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    loc = tuple(part for part in first["loc"] if isinstance(part, int) or _is_key(part))
    key = ".".join(str(part) for part in loc) or "recipe"
    line = _line_of(text, loc) if text else None
    place = f"{where}:{line}" if line else where
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key '{key}'. {_near_key(loc)}"
    if first["type"] == "missing":
        return f"{place}: the key '{key}' is missing; add it (see: tutelage init --help)"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{place}: {key}: {message}{shown}"


def _is_key(part: str) -> bool:
    """Tell a recipe key from the tags that pydantic adds to `loc` for the arms of a union."""
    return part.isidentifier() and part not in ("float", "str", "int", "BudgetLimit", "LossPart")


def _near_key(loc: tuple[Any, ...]) -> str:
    model: Any = Recipe
    for part in loc[:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = BudgetLimit if "budget" in loc else Recipe
    return near_matches(str(loc[-1]), list(model.model_fields))


def _line_of(text: str, loc: tuple[Any, ...]) -> int | None:
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    line: int | None = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
