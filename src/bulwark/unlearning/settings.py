"""What steps that unlearn can be told. Torch-free: the workflow reads it when it plans.

Every such step has two data sets: `data`, which it has to keep (the retain set), and `forget`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bulwark.settings import Closed
from bulwark.training.finetuning import FineTuningSettings


class ForgettingSettings(FineTuningSettings):
    """data: the retain set. forget: the set that is to be forgotten; its split `train` is read.

    side: which response of a forget set of preferences is meant; None for a set of any other kind.
    forget_batch_size: sequences of the forget set per optimizer step over all ranks; None takes training.batch_size.
    forget_micro_batch_size: how many of them one rank puts through the model at once; None takes that of the training.
    retain_weight, forget_weight: what the two losses are multiplied by.
    """

    forget: str
    side: Literal["chosen", "rejected"] | None = None
    forget_batch_size: int | None = Field(None, ge=1)
    forget_micro_batch_size: int | None = Field(None, ge=1)
    retain_weight: float = Field(1.0, ge=0)
    forget_weight: float = Field(1.0, ge=0)

    def inputs(self) -> dict[str, str]:
        return {"forget": f"data/{self.forget}/train.jsonl"} | super().inputs()


class ReferenceSettings(Closed):
    """The frozen model that a loss compares with: "base" is the model before any step, "parent" what is trained on."""

    of: Literal["base", "parent"] = "parent"

    def inputs(self) -> dict[str, str]:
        return {"reference": "checkpoints/{model}/base/seed{seed}/checkpoint.json"} if self.of == "base" else {}
