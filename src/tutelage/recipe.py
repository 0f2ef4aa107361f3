"""The recipe: what a user asks for, as strict pydantic models and YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)  # fmt: skip

from tutelage.errors import RecipeError
from tutelage.plain_yaml import check_plain, dump_yaml, load_yaml
from tutelage.recipe_budget import BudgetLimit, BudgetPart
from tutelage.recipe_data import (
    AugmentPart,
    Count,
    DataPart,
    Finite,
    Part,
    Positive,
    Share,
    Text,
    Weight,
    as_tuple,
)
from tutelage.recipe_errors import explain
from tutelage.recipe_language import LANGUAGE, LanguagePart
from tutelage.recipe_student import StudentPart
from tutelage.registry import near_matches
from tutelage.units import parse_quantity

_LARGEST_BYTES = 100_000


class TeacherPart(Part):
    """Who teaches."""

    source: Text | None = Field(
        None,
        description="file.py:function, timm:NAME, torchvision:NAME, model.onnx, a Hugging Face "
        "folder (texts, images), or a folder with spec.json and model.safetensors",
    )
    weights: Text | None = Field(None, description=".safetensors, or .pt without pickled code")
    fit: bool | Literal["head", "all"] = Field(
        False,
        description="true: train a built-in teacher on the data first; head or all: fit a Hugging "
        "Face encoder (source) to the labels, its new head alone or everything",
    )
    network: Literal["minirocket", "inception", "resnet1d", "convnet"] | None = Field(
        None,
        description="for fit: true, of series: minirocket (fixed convolutions and a ridge, solved "
        "for in seconds), inception or resnet1d (trained); by the data when unset",
    )
    epochs: Count | None = Field(None, description="for fit: passes over the data")
    width: Annotated[int, Field(ge=4, le=512)] = Field(32, description="for fit: first-stage width")
    members: Annotated[int, Field(ge=1, le=8)] = Field(
        1, description="for fit: true: so many teachers, each from a seed of its own, asked as one"
    )
    channels: Literal["keep", "repeat"] = Field("keep", description="repeat grey images to RGB")
    mean: Annotated[tuple[Finite, ...], BeforeValidator(as_tuple)] | None = Field(
        None, description="the teacher's own normalisation, per channel"
    )
    std: Annotated[tuple[Positive, ...], BeforeValidator(as_tuple)] | None = Field(
        None, description="given together with mean"
    )
    classes: list[Text] | None = Field(
        None, description="the data's class names in the teacher's own order, where it differs"
    )
    taps: list[str] | None = Field(None, description="module paths to read; found when unset")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="in which a torch teacher is asked; auto: bf16 where the machine has "
        "it and decisions stay alike",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_teacher(self) -> TeacherPart:
        if self.fit in ("head", "all") and self.source is None:
            raise ValueError(f"'fit: {self.fit}' needs the encoder's folder in 'source'")
        if isinstance(self.fit, bool) and self.fit == (self.source is not None):
            raise ValueError("give either 'source' or 'fit: true'")
        if self.members > 1 and self.fit is not True:
            raise ValueError(
                f"'members: {self.members}' is for built-in teachers ('fit: true'); remove it"
            )
        if self.network is not None and self.fit is not True:
            raise ValueError(
                f"'network: {self.network}' is for built-in teachers ('fit: true'); remove it"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("give 'mean' and 'std' together")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("give 'mean' and 'std' as many values each: one a channel")
        return self


class LossPart(Part):
    """Weight and options of one loss; `auto` balances it against the decision."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    weight: Weight | Literal["auto"] = 1.0
    optional: bool = Field(False, description="left out where teacher or student has no taps")

    @model_validator(mode="after")
    def _plain_options(self) -> LossPart:
        check_plain(self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Return the loss's own options."""
        return dict(self.__pydantic_extra__ or {})


class DistillPart(Part):
    """How the student is taught."""

    losses: dict[str, Weight | Literal["auto"] | LossPart] = Field(
        default_factory=lambda: dict[str, Any]({"dist": 1.0}),
        min_length=1,
        description="loss: weight, or loss: {weight: 1, temperature: 4}",
    )
    pairs: list[Annotated[tuple[str, str], BeforeValidator(as_tuple)]] | None = Field(
        None, description="[student tap, teacher tap] by hand; matched by similarity when unset"
    )
    epochs: Count | None = Field(
        None,
        description="passes over the data; by its size when unset, of texts by the student's "
        "operations too",
    )
    batch: Count = Field(128, description="examples a step; unset: 32 of texts")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has Nesterov momentum 0.9")
    schedule: Literal["cosine", "onecycle"] = Field("onecycle", description="of the rate")
    rate: Positive = Field(
        1e-2,
        description="highest learning rate; unset: 0.001 where a transformer begins with the "
        "teacher's weights, 0.48 by its numbers a token where it is fresh and wider than 48",
    )
    weight_decay: Weight = Field(1e-2, description="of weight matrices, not of biases and norms")
    ema: Share = Field(0.99, description="decay of the averaged weights that ship; 0: off")
    clip: Positive = Field(5.0, description="largest gradient norm")
    patience: Annotated[int, Field(ge=0)] = Field(0, description="epochs without gain; 0: never")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="of training; auto: bf16 where the machine has it and layers are wide, or "
        "with AMX of 10 channels and more",
    )
    balance_classes: bool = Field(
        False,
        description="weigh losses that read labels by the inverse frequency of each class",
    )
    checkpoint: str = Field("30 s", description="time between checkpoints")

    @field_validator("checkpoint")
    @classmethod
    def _time(cls, given: str) -> str:
        try:
            parse_quantity(given, "s")
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return given


class ExportPart(Part):
    """What is shipped."""

    precision: Literal["auto", "int8", "float16", "float32"] = Field(
        "auto",
        description="int8, float16 (weights stored in half the bytes, computed with in float32) or "
        "float32; auto: what fits; then the faster on this machine, else the smaller",
    )
    largest_loss: Share = Field(
        0.01,
        description="accuracy (R2 of values) that int8 or float16 may cost on validation, and on "
        "training examples besides where that has fewer than 1,000; one example always may turn",
    )
    dynamic_batch: bool = Field(False, description="leave the batch axis of float32 ONNX free")


class MeasurePart(Part):
    """A power meter's record of the artifact on the device, for measured energy."""

    power_csv: Text | None = Field(None, description="columns time_s and power_w")
    inferences: Count | None = Field(None, description="how many ran while it was recorded")

    @model_validator(mode="after")
    def _both(self) -> MeasurePart:
        if (self.power_csv is None) != (self.inferences is None):
            raise ValueError("give 'power_csv' and 'inferences' together")
        return self


class Recipe(Part):
    """Everything a run needs to know."""

    task: str = Field("vision", description="what an example is")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of splits, views, weights")
    metric: Literal["accuracy", "macro_f1", "balanced_accuracy"] = Field(
        "accuracy",
        description="by which validation chooses, and which heads the report; macro_f1 or "
        "balanced_accuracy where classes are rare",
    )
    data: DataPart
    teacher: TeacherPart
    device: Text = Field("host", description="a known device, or a profile's path")
    budget: BudgetPart = BudgetPart.model_construct()
    student: StudentPart = StudentPart.model_construct()
    augment: AugmentPart = AugmentPart.model_construct()
    distill: DistillPart = Field(default_factory=lambda: DistillPart.model_validate({}))
    export: ExportPart = ExportPart.model_construct()
    measure: MeasurePart = MeasurePart.model_construct()
    language: LanguagePart = LanguagePart.model_construct()
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="processor threads; all cores when unset"
    )
    tracking: Literal["tensorboard", "mlflow", "wandb", "trackio"] | None = Field(
        None, description="experiment tracker, written under the run directory"
    )

    @model_validator(mode="after")
    def _written_by_a_language_model(self) -> Recipe:
        if self.data.generate is not None and self.task != LANGUAGE:
            raise ValueError(f"'data.generate' is for 'task: {LANGUAGE}'; remove the key")
        return self

    @classmethod
    def parse(cls, data: Any, *, where: str = "recipe", text: str | None = None) -> Recipe:
        """Check plain data; raises `RecipeError` with the key (and the line, given `text`)."""
        if not isinstance(data, dict):
            raise RecipeError(f"{where} must hold keys such as data: and teacher:, and holds none")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            parts = (Recipe, BudgetLimit)
            raise RecipeError(explain(error, data, where, text, *parts)) from None

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a YAML file; its relative paths are taken from the file's own folder."""
        path = Path(path)
        text = _read_text(path)
        recipe = cls.parse(load_yaml(text, str(path)), where=str(path), text=text)
        return recipe.resolved(path.resolve().parent)

    def resolved(self, folder: Path) -> Recipe:
        """Return the recipe with its relative paths made absolute against `folder`."""
        data, teacher = self.data, self.teacher
        changes: dict[str, Any] = {
            "data": data.model_copy(
                update={
                    k: _absolute(getattr(data, k), folder)
                    for k in ("train", "test", "unlabelled", "labels", "test_labels", "tokenizer")
                }
                | _asked(data, folder)
            ),
            "teacher": teacher.model_copy(
                update={k: _absolute(getattr(teacher, k), folder) for k in ("source", "weights")}
            ),
            "student": self.student.model_copy(
                update={"source": _absolute(self.student.source, folder)}
            ),
        }
        csv = _absolute(self.measure.power_csv, folder)
        changes["measure"] = self.measure.model_copy(update={"power_csv": csv})
        if self.device.endswith((".yaml", ".yml")):
            changes["device"] = _absolute(self.device, folder)
        return self.model_copy(update=changes)

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML."""
        return dump_yaml(json.loads(self.model_dump_json()))

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """Return the JSON Schema that editors use for completion."""
        return Recipe.model_json_schema()


def _asked(data: DataPart, folder: Path) -> dict[str, Any]:
    part = data.generate
    if part is None or not isinstance(part.prompts, str):
        return {}
    return {"generate": part.model_copy(update={"prompts": _absolute(part.prompts, folder)})}


def _absolute(value: str | None, folder: Path) -> str | None:
    if value is None or value == "digits" or value.startswith(("timm:", "torchvision:")):
        return value
    try:
        path = Path(value).expanduser()
        while path.parts[:1] == ("..",):  # as it is read in a report: without a way back
            folder, path = folder.parent, Path(*path.parts[1:])
        return str(folder / path)
    except RuntimeError:
        raise RecipeError(f"{value}: there is no such home folder; write the whole path") from None


def _read_text(path: Path) -> str:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        there = [p.name for p in sorted(folder.glob("*.y*ml"))]
        near = f"{near_matches(path.name, there)} " if there else ""
        raise RecipeError(f"no recipe at {path}. {near}Write one with: tutelage init TEACHER DATA")
    if path.stat().st_size > _LARGEST_BYTES:
        raise RecipeError(f"{path} is larger than 100 kB; that is no recipe")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not text; a recipe is a YAML file in UTF-8") from None
