"""The recipe's part about language models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.recipe_data import Count, Part, Positive, Share, Text, Weight

LANGUAGE = "causal_lm"  # the task
Quantization = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Format = Literal["auto", Quantization]


class OnPolicyPart(Part):
    """Batches that the student writes itself, and the teacher judges token by token."""

    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="of all batches")
    after: Share = Field(0.0, description="share of the teaching that is over when they begin")
    longest: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="most tokens of a continuation; 64 when unset, or half of data.length"
    )
    temperature: Positive = Field(1.0, description="at which the student draws its tokens")
    losses: dict[str, Weight] | None = Field(
        None,
        min_length=1,
        description="what is learned from them; when unset, distill.losses but for those of texts",
    )


class LanguagePart(Part):
    """Of `task: causal_lm`: how much is taught, what is kept of the teacher, what ships."""

    tokens: Count = Field(
        500_000, description="tokens to teach on; the data is gone through as often as that takes"
    )
    signal: Literal["auto", "dense", "topk", "sampled"] = Field(
        "auto", description="what is kept of the teacher's answer about a token"
    )
    kept: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="of topk and sampled: how many outcomes a token"
    )
    answers_only: bool = Field(
        True, description="of chats: learn what the assistant says, and read the rest"
    )
    on_policy: Annotated[float, Field(ge=0.0, le=1.0)] | OnPolicyPart = Field(
        0.0, description="share of the batches that the student writes itself; or keys of its own"
    )
    rehearse: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="share of the tokens taught that the teacher writes freely itself, so that the "
        "student forgets less of other text",
    )
    refit: bool = Field(
        True,
        description="fit a slice's projections to the network it was cut from, by least squares, "
        "before it is taught",
    )
    format: Format = Field(
        "auto",
        description="of the GGUF file; auto: q8_0, q5_1 or q4_1, by which slice of the same bytes "
        "says most like the teacher",
    )
    recompute: bool = Field(
        False,
        description="layers compute their inside again in the backward pass: a third slower, far "
        "less memory",
    )
    prompts: list[Text] | None = Field(
        None, description="what teacher and student answer side by side; held-out ones when unset"
    )
    answer: Annotated[int, Field(ge=1, le=2048)] = Field(
        64, description="longest answer shown, in tokens"
    )

    @property
    def usual(self) -> Quantization:
        """The format asked for, else the one that figures of no student's file are in."""
        return "q8_0" if self.format == "auto" else self.format

    @property
    def formats(self) -> tuple[Quantization, ...]:
        """What may ship, the finest first; with the same bytes, two numbers a block beat one."""
        return ("q8_0", "q5_1", "q4_1") if self.format == "auto" else (self.format,)

    @property
    def own(self) -> OnPolicyPart | None:
        """What is asked of batches that the student writes; None where there are none."""
        if isinstance(self.on_policy, OnPolicyPart):
            return self.on_policy
        return OnPolicyPart.model_validate({"share": self.on_policy}) if self.on_policy else None
