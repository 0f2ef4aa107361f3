"""The recipe's part about the student."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutelage.errors import RecipeError
from tutelage.plain_yaml import check_plain
from tutelage.recipe_data import Part, Text
from tutelage.units import parse_share


class StudentPart(Part):
    """Who learns: chosen among the spaces of students, a fixed spec, or one's own function."""

    source: Text | None = Field(
        None,
        description="file.py:function of your own student; of a language model its Hugging Face "
        "folder or GGUF file",
    )
    spec: Annotated[dict[str, Any], BeforeValidator(check_plain)] | None = Field(
        None, description="a fixed spec, e.g. {family: convnet, …}"
    )
    space: Literal["auto", "compact", "sliced", "elastic"] = Field(
        "auto",
        description="compact: families of the task; sliced: the teacher with fewer channels, "
        "heads, layers; auto: both compete, where the teacher can be sliced; elastic: one student "
        "of images or series, taught once for all widths, is cut to the budget",
    )
    further: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None,
        description="epochs for a student that begins with a part of one taught before in the run; "
        "unset, of the usual ones a quarter where over half of it stays, else a half; for elastic "
        "a tenth, and 0: it ships as it was cut",
    )
    candidates: Annotated[int, Field(ge=1, le=32)] = Field(
        4,
        description="how many are compared by short distillations, the better quarter of more than "
        "four for longer (successive halving); where slices compete all are tried briefly, and two "
        "of those near the best for longer; above four, some are drawn at random beside the "
        "family's own structures",
    )
    shrink: Annotated[int, Field(ge=1, le=8)] | Literal["auto"] = Field(
        1,
        description="of images: squares of so many pixels a side are averaged first, in the "
        "student alone; auto: 1, 2 and 4 compete",
    )
    taps: list[str] | None = Field(None, description="module paths that learn; found when unset")
    start: Literal["fresh", "teacher", "nearest"] = Field(
        "nearest",
        description="nearest: with a slice of the smallest student taught before in the run, for "
        "another budget, that holds it, else as fresh; teacher: with what fits of its embedding, "
        "layers, channels; fresh: with weights of its own. What the space slices from the teacher "
        "begins with those of the teacher, but for convnets where something nearer holds it",
    )

    exits: float | str | None = Field(
        None,
        description="early decisions ship with the student, and inputs that are sure stop there; "
        "what that may cost on validation, for instance 0.1 %",
    )

    @field_validator("exits")
    @classmethod
    def _small(cls, given: float | str | None) -> float | str | None:
        try:
            small = given is None or parse_share(given) < 1
        except RecipeError:
            small = False
        if not small:
            raise ValueError(
                f"'{str(given)[:40]}' is no share of decisions that may be lost; write it like "
                "'0.001' or '0.1 %'"
            )
        return given

    @property
    def may_lose(self) -> float | None:
        """What stopping early may cost, as a share of decisions; None: there are no exits."""
        return None if self.exits is None else parse_share(self.exits)

    @model_validator(mode="after")
    def _one_student(self) -> StudentPart:
        if self.source is not None and self.start == "teacher":
            raise ValueError("'start: teacher' is for built-in students; remove it, or 'source'")
        searched = self.space in ("sliced", "elastic")
        if searched and (self.source is not None or self.spec is not None):
            raise ValueError("'space' is for students that are searched; remove it, or the student")
        if self.space == "elastic" and self.start == "teacher":
            raise ValueError("'start: teacher': a cut of the elastic student has a start")
        if self.further is not None and self.space != "elastic" and self.start != "nearest":
            raise ValueError(
                f"'further' is for students that begin with another one, and 'start' is "
                f"'{self.start}'; remove one of the two"
            )
        if self.further == 0 and self.space != "elastic":
            raise ValueError("'further: 0' is for 'space: elastic'; raise it, or set the space")
        if self.further == 0 and self.exits is not None:
            raise ValueError(
                "'exits' are taught while the cut is taught further, and 'further' is 0; raise it, "
                "or remove 'exits'"
            )
        if self.shrink != 1 and (self.source or self.spec or searched):
            raise ValueError(
                "'shrink' is for compact students that are searched; remove it, or write it into "
                "'spec'"
            )
        if self.source is not None and self.spec is not None:
            raise ValueError("give 'source' or 'spec', not both")
        return self
