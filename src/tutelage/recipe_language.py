"""The recipe's part about language models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.recipe_data import Count, Part, Text

LANGUAGE = "causal_lm"  # the task
Format = Literal["f16", "q8_0", "q4_0"]


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
    format: Format = Field("q8_0", description="of the GGUF file")
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
