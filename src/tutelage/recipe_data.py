"""The recipe's parts about the data, and what all its parts share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError


class Part(BaseModel):
    """A part of the recipe: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=1, le=16384)]
Size = Annotated[tuple[Side, Side], BeforeValidator(as_tuple)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Half = Annotated[float, Field(ge=0.0, le=0.5, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class GeneratePart(Part):
    """Of `task: causal_lm`: prompts that the teacher answers, where there are too few texts."""

    prompts: Text | list[Text] | None = Field(
        None, description="a file of prompts (.txt: one a line; else the column prompt), or a list"
    )
    topics: list[Text] | None = Field(None, description="each is put into each template")
    templates: list[Text] | None = Field(
        None,
        min_length=1,
        description="prompts with {topic} in them; six of our own in English when unset",
    )
    examples: Count | None = Field(
        None, description="answers asked for in all; one a prompt when unset"
    )
    longest: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="most tokens of an answer; what is longer is left out"
    )
    temperature: Weight = Field(0.8, description="of the draws; 0: the likeliest token each time")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.95, description="the share of the likeliest tokens that is drawn from"
    )
    system: Text | None = Field(None, description="what the teacher is told before each prompt")

    @model_validator(mode="after")
    def _something_to_ask(self) -> GeneratePart:
        if not self.prompts and not self.topics:
            raise ValueError("there is nothing to ask; give 'prompts' or 'topics'")
        if self.templates is not None and not self.topics:
            raise ValueError("'templates' are filled with 'topics'; give some, or remove the key")
        return self


class DataPart(Part):
    """Where the examples lie and how they are read."""

    generate: GeneratePart | None = Field(
        None, description="of language models: texts that the teacher writes, beside train or alone"
    )
    train: Text | None = Field(
        None,
        validate_default=True,
        description="folder, IDX, .npz, .parquet, .csv, .jsonl, .ts, saved dataset, or 'digits'; "
        "may be left out with generate",
    )
    test: Text | None = Field(
        None, description="held-out examples; without it a fifth is set aside"
    )
    unlabelled: Text | None = Field(
        None, description="more examples to teach on; their labels, if any, are not read"
    )
    labels: Text | None = Field(None, description="IDX labels file, when it is not found by name")
    test_labels: Text | None = Field(None, description="the same for the test examples")
    format: Literal[
        "auto", "idx", "folder", "npz", "parquet", "csv", "jsonl", "ts", "saved_dataset", "digits"
    ] = Field("auto", description="how to read it; told from the path when auto")
    image_column: str | None = Field(None, description="of a table; found when unset")
    label_column: str | None = Field(
        None, description="of a table; found when unset; none: labels are not read"
    )
    size: Size | None = Field(None, description="[height, width] to resize every image to")
    text_column: str | None = Field(None, description="of a table of texts; found when unset")
    tokenizer: Text | None = Field(
        None, description="folder or tokenizer.json for texts; the teacher's own when unset"
    )
    vocabulary: Literal["pruned", "whole"] = Field(
        "pruned", description="of texts: what the training texts use, or all of the tokenizer's"
    )
    series_column: str | None = Field(
        None, description="of a table of series in long form: which rows belong together"
    )
    time_column: str | None = Field(None, description="of the long form: must ascend")
    length: Count | None = Field(
        None, description="most tokens of a text, or steps of a series; by the data when unset"
    )
    hop: Count | None = Field(
        None, description="steps between two windows of a stream; the window's length when unset"
    )
    rate: Positive | None = Field(
        None, description="steps a second of a stream: then energy an hour is reported"
    )
    target: Literal["auto", "classes", "values"] = Field(
        "auto",
        description="of series: what a label is; auto: as a .ts file's header says, else classes",
    )
    validation: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.1, description="share of the training examples to choose by"
    )

    @field_validator("train")
    @classmethod
    def _some_examples(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is None and info.data.get("generate") is None:
            raise PydanticKnownError("missing")
        return given

    @property
    def source(self) -> str:
        """The path of the training examples; empty where the teacher writes all of them."""
        return self.train or ""

    def options(self) -> dict[str, Any]:
        """Return the keys that were set, but for those that every task has."""
        given = {key: getattr(self, key) for key in type(self).model_fields}
        return {
            key: value
            for key, value in given.items()
            if key not in ("train", "test", "validation", "generate")
            and value != type(self).model_fields[key].default
        }


class AugmentPart(Part):
    """How training examples are varied; a pure function of seed, view and index."""

    views: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="variants of each example that the teacher is asked about, once each; unset: "
        "4, and 24 below 1,000 examples",
    )
    shift: Annotated[int, Field(ge=0)] | None = Field(
        None, description="largest move in pixels; 7 % of the side when unset"
    )
    flip: bool = Field(False, description="mirror left and right; never for digits or letters")
    erase: Share = Field(0.0, description="share of the image blanked by a random rectangle")
    mixup: Half | None = Field(
        None,
        description="largest weight of a second image, or series, mixed in, to 0.5; unset: 0.5 of "
        "series with classes where no loss reads labels, else 0",
    )
    scale: Half = Field(0.0, description="largest zoom in or out, as a share of the side")
    jitter: Share | None = Field(
        None, description="of series: noise, as a share of a channel's spread"
    )
    stretch: Half | None = Field(None, description="of series: largest change of height")
    warp: Half | None = Field(None, description="of series: largest change of speed in a window")
