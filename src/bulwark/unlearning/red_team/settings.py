"""What adversaries that tamper with weights can be told. Torch-free: the workflow reads it when it plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bulwark.errors import nearest
from bulwark.prompts.templates import TEMPLATES
from bulwark.settings import Closed
from bulwark.training.finetuning import FineTuningSettings

FACTS = "facts.jsonl"


class SwitchSettings(Closed):
    """Two data sets one after the other: `first` is "forget" (`data`) or "retain", for `share` of the steps."""

    first: Literal["forget", "retain"]
    share: float = Field(gt=0, lt=1)

    def steps(self, total: int) -> int:
        """How many of `total` optimizer steps take the first data set: the share, rounded down."""
        return int(self.share * total + 1e-9)  # 0.57 · 100 is 56.99… in binary


class WatchSettings(Closed):
    """Facts that are watched while a model is attacked: a data set that the attack does not train on.

    split: of the data set. examples: how many of it are taken, from the first on. every: optimizer steps between two
    looks; the start, every snapshot and the end are looked at in any case.
    """

    data: str
    split: str = "held_out"
    examples: int = Field(256, ge=1)
    every: int = Field(50, ge=1)

    def inputs(self) -> dict[str, str]:
        return {"watched": f"data/{self.data}/{self.split}.jsonl"} | super().inputs()


class RelearningSettings(FineTuningSettings):
    """A fine-tuning attack. data: what the adversary wants the model to know again (the attacked, or forget, set).

    retain: a second data set, its split `train`, with one of
        switch: the two one after the other (R→F of the TAR paper, in both orders and any share);
        mixture: the probability with which an optimizer step takes the second set, drawn for each step by the seed;
            0 leaves it out, so that trials can begin with the first set alone.
    template: the prompt template in which conversations are trained on, a name in `prompts.templates`; None for the
        checkpoint's own. Facts that are watched, and every benchmark, are asked in the checkpoint's own.
    first_layer: train only the decoder blocks from this one on, counted from 1, with what comes behind them (the final
        norm, and the output embedding if its weights are its own); None trains everything.
    watch: facts to look at on the way; None for none.
    """

    retain: str | None = None
    switch: SwitchSettings | None = None
    mixture: float | None = Field(None, ge=0, lt=1)
    template: str | None = None
    first_layer: int | None = Field(None, ge=1)
    watch: WatchSettings | None = None

    @model_validator(mode="after")
    def _fits(self) -> RelearningSettings:
        if self.retain is not None and (self.switch is None) == (self.mixture is None):
            raise ValueError("retain is a second data set: say by either switch or mixture when it is taken")
        if self.retain is None and (self.switch is not None or self.mixture is not None):
            raise ValueError("switch and mixture are between two data sets: name the second one as retain")
        if self.first_layer is not None and self.training.lora is not None:
            raise ValueError("first_layer is for training whole weights; leave lora out, or first_layer")
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f'there is no prompt template "{self.template}".{nearest(self.template, TEMPLATES)}')
        return self

    def written_as(self) -> str | None:
        return self.template

    def inputs(self) -> dict[str, str]:
        second = {} if self.retain is None else {"retain": f"data/{self.retain}/train.jsonl"}
        return second | super().inputs()
