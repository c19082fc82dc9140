"""What steps that immunise can be told. Torch-free: the workflow reads it when it plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bulwark.attacks.settings import GcgSettings
from bulwark.settings import Closed, Text
from bulwark.training.finetuning import FineTuningSettings


class AdversarialTrainingSettings(FineTuningSettings):
    """cases: a data set of the kind preference; its split `train` is read, `rejected` is what an attacker wants.

    gcg: the attack; its `steps` are the iterations on a drawn case in one optimizer step.
    pool: test cases. cases_per_step: how many are drawn in an optimizer step, over all ranks.
    case_micro_batch_size: how many of them one rank puts through the model at once; None takes its whole part.
    reset_every, reset_share: after so many optimizer steps, this share of the pool begins anew.
    refusal: the answer that the model is moved towards; None takes each record's `chosen`.
    target_tokens: only so many tokens of an attacker's answer count; None for all.
    away_threshold: tokens whose log-probability lies below it are far enough and give no gradient.
    """

    cases: str
    gcg: GcgSettings = GcgSettings(steps=5)
    pool: int = Field(180, ge=1)
    cases_per_step: int = Field(8, ge=1)
    case_micro_batch_size: int | None = Field(None, ge=1)
    reset_every: int = Field(50, ge=1)
    reset_share: float = Field(0.2, ge=0, le=1)
    refusal: Text | None = "I'm sorry, I can't do that."
    target_tokens: int | None = Field(32, ge=1)
    sft_weight: float = Field(1.0, ge=0)
    away_weight: float = Field(1.0, ge=0)
    toward_weight: float = Field(1.0, ge=0)
    away_threshold: float = Field(-5.0, lt=0)

    def inputs(self) -> dict[str, str]:
        return {"cases": f"data/{self.cases}/train.jsonl"} | super().inputs()

    @model_validator(mode="after")
    def _enough_cases(self) -> AdversarialTrainingSettings:
        if self.cases_per_step > self.pool:
            raise ValueError(f"cases_per_step {self.cases_per_step} is more than the pool of {self.pool}")
        return self


class AttenuationSettings(FineTuningSettings):
    """data: harmful requests with safe answers. attack: a data set of the kind preference, whose `rejected` answers an
        attacker trains on; its split `train` is read.

    lambda_: λ, the weight of the term. alpha: α, how far the harmful step goes, the norm over all trained weights.
    attack_batch_size, attack_micro_batch_size: of the harmful batch; None takes the training's.
    """

    attack: str
    lambda_: float = Field(5.0, ge=0)
    alpha: float = Field(0.1, gt=0)
    attack_batch_size: int | None = Field(None, ge=1)
    attack_micro_batch_size: int | None = Field(None, ge=1)

    def inputs(self) -> dict[str, str]:
        return {"attack": f"data/{self.attack}/train.jsonl"} | super().inputs()


class TargetedSettings(Closed):
    """T-Vaccine (arXiv 2410.09760): only some layers are perturbed.

    harmful: a data set of the kind preference; the probabilities are measured on its `rejected` answers.
    layers: γ, how many are perturbed at a time. redraw_every, measure_every: optimizer steps between draws of the
        layers, and between measurements of their probabilities.
    batch_size: of the harmful batch, a multiple of training.micro_batch_size times ranks; None takes the training's.
    """

    harmful: str
    layers: int = Field(8, ge=1)
    redraw_every: int = Field(20, ge=1)
    measure_every: int = Field(200, ge=1)
    batch_size: int | None = Field(None, ge=1)

    def inputs(self) -> dict[str, str]:
        return {"harmful": f"data/{self.harmful}/train.jsonl"} | super().inputs()


class VaccineSettings(FineTuningSettings):
    """data: harmful requests with safe answers. rho: ρ, the perturbation's norm over all layers of an optimizer step.

    site: what is perturbed, each block's "attention" before it is added to the residual stream, or the whole "block".
    """

    rho: float = Field(2.0, gt=0)
    site: Literal["attention", "block"] = "attention"
    targeted: TargetedSettings | None = None


class AlternationSettings(FineTuningSettings):
    """alignment: harmful requests with safe answers; its `train` is read. rho: ρ, how strongly weights are held.

    alignment_steps, user_steps: optimizer steps of the phases. proximal_after: the share of the training before weights
    are held at all.
    """

    alignment: str
    alignment_steps: int = Field(100, ge=1)
    user_steps: int = Field(900, ge=1)
    rho: float = Field(1.0, ge=0)
    proximal_after: float = Field(0.1, ge=0, le=1)

    def inputs(self) -> dict[str, str]:
        return {"alignment": f"data/{self.alignment}/train.jsonl"} | super().inputs()
