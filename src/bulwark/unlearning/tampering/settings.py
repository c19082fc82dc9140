"""What tamper-resistant training can be told (TAR, Tamirisa et al. 2024, arXiv 2408.00761). Torch-free.

λ_TR is `resistance.weight`, λ_retain is `retain.weight`, K is `inner.steps`, the stride is `inner.every`, the number of
trajectories of an outer step is `inner.trajectories`, the mixture of attacks A_train is `adversaries`.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from bulwark.settings import Closed
from bulwark.training.finetuning import FineTuningSettings
from bulwark.unlearning.settings import ReferenceSettings

Side = Literal["chosen", "rejected"]
ResistanceLoss = Literal["entropy", "negative_cross_entropy", "dpo", "inverse_cross_entropy", "kl_from_uniform"]


class AdversarySettings(Closed):
    """One of the attacks that are simulated. Its inner steps minimise the next token's cross-entropy.

    name: what records call it. data: what it fine-tunes on (split `train`). side: which response, where the data are
        preferences. before: a data set that it fine-tunes on first (Retain → Forget).
    switch: (a, b) of the Beta distribution of the inner step ⌊Beta(a, b)·K⌋ at which it changes over to `data`.
    held_out: the data set that the resistance loss is taken on after this attack; None takes the step's.
    probability: how often it is drawn, relative to the others.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    data: str
    side: Side | None = None
    before: str | None = None
    switch: tuple[float, float] = (6.0, 3.0)
    held_out: str | None = None
    probability: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _distribution(self) -> AdversarySettings:
        if min(self.switch) <= 0:
            raise ValueError("switch holds the two parameters of a Beta distribution, both above 0")
        return self


class InnerSettings(Closed):
    """The simulated attacks: how many steps (K), at which checkpoints the resistance loss is taken, how they train.

    every: at each how-many-th inner step. trajectories: attacks per outer step. learning_rates: one is drawn uniformly
    per trajectory and held. batch_size, micro_batch_size: as of the training. optimizer: a new one per trajectory, with
    torch's defaults but for weight_decay.
    """

    steps: int = Field(64, ge=1)
    every: int = Field(4, ge=1)
    trajectories: int = Field(1, ge=1)
    learning_rates: tuple[float, ...] = Field(min_length=1)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _has_checkpoints(self) -> InnerSettings:
        if self.every > self.steps:
            raise ValueError(f"every is {self.every}, but there are only {self.steps} steps, so no loss would be taken")
        if min(self.learning_rates) <= 0:
            raise ValueError("learning_rates are above 0")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self

    def checkpoints(self) -> tuple[int, ...]:
        """The inner steps, from 0, after which the resistance loss is taken: every - 1, 2·every - 1, …"""
        return tuple(range(self.every - 1, self.steps, self.every))


class WeightingSettings(Closed):
    """How much the checkpoints of a trajectory count.

    shape: "exponential", w_k = exp(rate·(k - (K-1))) for the inner step k from 0, so that the last one counts most; or
    "uniform", w_k = 1/K. normalised: divide by their sum, so that λ_TR is what all checkpoints together count; the
    authors' code does not, by which their λ_TR of 4 counts 17.75.
    """

    shape: Literal["exponential", "uniform"] = "exponential"
    rate: float = Field(0.0625, ge=0)
    normalised: bool = True

    def weights(self, inner: InnerSettings) -> dict[int, float]:
        """The weight of each checkpoint, by its inner step."""
        steps, at = inner.steps, inner.checkpoints()
        exponential = self.shape == "exponential"
        raw = {k: math.exp(self.rate * (k - (steps - 1))) if exponential else 1.0 / steps for k in at}
        total = sum(raw.values()) if self.normalised else 1.0
        return {k: weight / total for k, weight in raw.items()}


class ResistanceSettings(Closed):
    """The loss at the attacked weights (L_TR) on held-out data of the domain.

    loss: "entropy" (its negative); "negative_cross_entropy" (clamped at ln V, MLAC-AR; `clamped: false` for without);
        "dpo" on preferences; "inverse_cross_entropy" and "kl_from_uniform" (SOPHON's two).
    weight: λ_TR. beta: of DPO. count_padding: fill held-out examples up to training.max_tokens and take the entropy
        there, too, as the authors' code does.
    lower_bound: the resistance gradient is left out of outer steps whose weighted mean loss is below; None for never.
    """

    loss: ResistanceLoss = "entropy"
    weight: float = Field(4.0, ge=0)
    clamped: bool = True
    count_padding: bool = False
    beta: float = Field(0.1, gt=0)
    lower_bound: float | None = None


class RetainSettings(Closed):
    """The loss at the defender's own weights: cross-entropy + distance of hidden states from those of a frozen model.

    weight: λ_retain. representations: whether there is the second term, a mean over all hidden states and tokens of
    ‖h_ref - h‖ (norm "plain", as the authors' code has it) or of its square ("squared", as the paper's Eq. 2).
    """

    weight: float = Field(1.0, ge=0)
    representations: bool = True
    norm: Literal["plain", "squared"] = "plain"
    reference: ReferenceSettings = ReferenceSettings(of="base")

    def inputs(self) -> dict[str, str]:
        return super().inputs() if self.representations else {}


class TamperingSettings(FineTuningSettings):
    """data, training: the retain set and the outer loop. held_out: what the resistance loss is taken on.

    adversaries: the mixture A_train. alternating: odd outer steps train on the retain set only, even ones only for
        resistance (SOPHON), in place of both in each. park_optimizer: the outer optimizer's state waits in the host's
        memory while an attack is simulated.
    """

    held_out: str
    held_out_split: str = "held_out"
    adversaries: tuple[AdversarySettings, ...] = Field(min_length=1)
    inner: InnerSettings
    weighting: WeightingSettings = WeightingSettings()
    resistance: ResistanceSettings = ResistanceSettings()
    retain: RetainSettings = RetainSettings()
    alternating: bool = False
    park_optimizer: bool = False

    @model_validator(mode="after")
    def _possible(self) -> TamperingSettings:
        if self.training.keep_best:
            raise ValueError("the loss on the retain set does not tell how resistant weights are: keep_best is false")
        if self.training.lora is not None:
            raise ValueError(
                "training.lora trains adapters, which anyone can take off; tamper resistance has to train the weights"
            )
        if self.resistance.loss == "dpo" and self.training.packing:
            raise ValueError('the resistance loss "dpo" is of whole responses: make training.packing false')
        if self.resistance.loss == "dpo" and any(adversary.held_out is not None for adversary in self.adversaries):
            raise ValueError(
                'with the resistance loss "dpo" all adversaries share the step\'s held_out: leave theirs out'
            )
        if self.resistance.count_padding and (self.training.max_tokens is None or self.training.packing):
            raise ValueError(
                "resistance.count_padding fills examples up to training.max_tokens: give it, and set packing: false"
            )
        names = [adversary.name for adversary in self.adversaries]
        if len({*names}) < len(names):
            raise ValueError(f"adversaries have names of their own; here they are {', '.join(names)}")
        if any(adversary.side is not None and adversary.before is not None for adversary in self.adversaries):
            raise ValueError("an adversary that begins with other data (before) attacks conversations or passages")
        return self

    def inputs(self) -> dict[str, str]:
        files = {"held_out": f"data/{self.held_out}/{self.held_out_split}.jsonl"}
        for adversary in self.adversaries:
            files[f"attack_{adversary.name}"] = f"data/{adversary.data}/train.jsonl"
            if adversary.before is not None:
                files[f"before_{adversary.name}"] = f"data/{adversary.before}/train.jsonl"
            if adversary.held_out is not None:
                files[f"held_out_{adversary.name}"] = f"data/{adversary.held_out}/{self.held_out_split}.jsonl"
        return files | super().inputs()
