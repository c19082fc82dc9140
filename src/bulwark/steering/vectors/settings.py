"""How trait vectors are extracted and their layers chosen: settings of config/traits/. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bulwark.models.decoding import Decoding
from bulwark.settings import Closed
from bulwark.steering.settings import Pool


class ContrastSettings(Closed):
    """How each question is answered under the instruction for the trait and under the one against it.

    names: (for, against), to begin the system turn with "You are a <name> assistant."; None leaves that out.
    rollouts: answers to each question under each instruction.
    """

    names: tuple[str, str] | None = None
    rollouts: int = Field(10, ge=1)
    decoding: Decoding = Decoding(max_new_tokens=1000, do_sample=True)

    @model_validator(mode="after")
    def _rollouts_differ(self) -> ContrastSettings:
        if self.rollouts > 1 and not self.decoding.do_sample:
            raise ValueError("several rollouts of one prompt differ only if decoding.do_sample is true")
        return self


class PairFilter(Closed):
    """Which pairs of answers count, on a scale of 0 … 100.

    The trait is at least `threshold` in the one and below 100 - threshold in the other, the coherence at least
    `coherence` in both (null: it is not judged), as in persona vectors' code; the paper says "greater than 50". With
    fewer than `minimum` pairs there is no vector.
    """

    threshold: float = Field(50.0, ge=0, le=100)
    coherence: float | None = Field(50.0, ge=0, le=100)
    minimum: int = Field(50, ge=2)


class LayerChoice(Closed):
    """How layers are compared: the extraction questions, answered under h + coefficient·v at one layer after another.

    positions: of the tokens that are steered. candidates: layer keys; None takes all of 1 … N-1. pool: of the vectors,
    as of the step whose layer is looked for (`vectors.pool`).
    """

    coefficient: float = 2.0
    positions: Literal["all", "prompt", "response"] = "response"
    candidates: tuple[int, ...] | None = Field(None, min_length=1)
    pool: Pool = "response_mean"
    decoding: Decoding = Decoding(max_new_tokens=1000)
