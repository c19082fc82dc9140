"""What can be set about training. Torch-free: the workflow reads it when it plans.

One vocabulary for every step that trains. The defaults are those of the Hugging Face trainer that the papers'
authors left untouched (AdamW, β 0.9/0.999, ε 1e-8, clipping at norm 1); each configuration file says where its
own values come from.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from bulwark.errors import ConfigurationError
from bulwark.settings import Closed

# Keys of TrainingSettings that cannot change the weights or the report of a training: its state is resumed whatever
# they are. (snapshots only adds checkpoints: a state that lacks one of them is not resumed.)
WITHOUT_EFFECT = frozenset({"save_every", "save_minutes", "log_every", "snapshots"})
MOST_SAVING = 0.03  # the share of a training's time that saving may take


class LoraSettings(Closed):
    """Low-rank adapters (Hu et al. 2021): W + (alpha / rank)·B·A on each target module; merged when training ends.

    target_modules: names of linear modules, or "all-linear" for all but the output embedding. Where a model holds
        several as one (Phi-4's qkv_proj), the name of a part stands for the whole.
    blocks: adapters only in so many decoder blocks from the first; None for all. Needs target_modules by name.
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    blocks: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _named(self) -> LoraSettings:
        if self.blocks is not None and self.target_modules == "all-linear":
            raise ValueError("blocks needs the names of the modules in target_modules, such as q_proj and down_proj")
        return self


class TrainingSettings(Closed):
    """How to train: what an optimizer step is, how many there are, and how they are carried out.

    epochs / max_steps: exactly one of them; `epochs` may be a fraction.
    batch_size: sequences per optimizer step over all ranks. micro_batch_size: sequences (rows, when packed) that one
        rank puts through the model at once; the rest is gradient accumulation.
    optimizer: see `training.optimizers`. betas and eps are AdamW's, with or without a schedule; momentum and nesterov
        are those of sgd; adadelta has torch's own values.
    schedule: shape of the learning rate (see `training.schedules`); warm-up, linear from 0, is warmup_steps, or else
        ceil(warmup_ratio · steps), of optimizer steps.
    min_learning_rate: where cosine ends, and cosine_restarts at the end of each cycle.
    cycle_steps, cycle_mul, cycle_decay: of cosine_restarts: optimizer steps of the first cycle, how many times as many
        the next one has, and by what its highest rate is multiplied.
    max_grad_norm: gradients are scaled down to this global norm; 0 leaves them.
    loss_on: the tokens that are learned: of responses only, or all (ASIDE's authors).
    max_tokens: longer examples are cut; also the length of a packed row.
    packing: examples share rows, each attending only to itself. Which examples form an optimizer step, and so the
        loss, stays the same. Refused for models in which they would not stay apart.
    attention: how attention is computed: "sdpa" (torch's own; "eager" in the classes that lack it), "eager", or
        "flash_attention_2", which needs a GPU, the package flash-attn and bfloat16, and lays packed rows end to end.
    group_by_length: optimizer steps are formed of examples of like length, which saves padding.
    precision: "bfloat16" computes in it and keeps fp32 master weights.
    zero_stage: DeepSpeed's sharding over ranks: 0 none, 1 optimizer state, 2 and gradients, 3 and weights.
    offload: optimizer state (and at stage 3 the weights) live in the CPU's memory.
    evaluate_every: optimizer steps between evaluation losses, or "epoch"; the end is always evaluated.
    keep_best: end with the weights of the lowest evaluation loss.
    save_every, save_minutes: when to write the state that a killed run resumes from; None for neither. By the clock it
        is written less often where that would cost more than MOST_SAVING of the time. A run that is told to end
        writes it in any case. Saving has no effect on the result.
    log_every: optimizer steps between readings of the loss on a GPU, each of which waits for the GPU.
    snapshots: optimizer steps after which the model is kept as a checkpoint of its own, `<step>@<number>`.
    """

    epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)

    optimizer: Literal["adamw", "schedulefree_adamw", "sgd", "adadelta"] = "adamw"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["cosine", "linear", "constant", "cosine_restarts"] = "cosine"
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    warmup_steps: int | None = Field(None, ge=0)
    min_learning_rate: float = Field(0.0, ge=0)
    cycle_steps: int | None = Field(None, ge=1)
    cycle_mul: float = Field(1.0, ge=1)
    cycle_decay: float = Field(1.0, gt=0, le=1)
    max_grad_norm: float = Field(1.0, ge=0)

    loss_on: Literal["response", "all"] = "response"
    max_tokens: int | None = Field(None, ge=1)
    packing: bool = False
    group_by_length: bool = True

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    lora: LoraSettings | None = None

    evaluate_every: int | Literal["epoch"] | None = "epoch"
    keep_best: bool = False
    save_every: int | None = Field(None, ge=1)
    save_minutes: float | None = Field(10.0, gt=0)
    log_every: int = Field(10, ge=1)
    snapshots: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give either epochs or max_steps, and leave the other out (or null)")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}, so that no "
                "number of ranks and micro-batches makes it up"
            )
        if isinstance(self.evaluate_every, int) and self.evaluate_every < 1:
            raise ValueError('evaluate_every is a number of steps from 1, "epoch" or null')
        if self.attention == "flash_attention_2" and self.precision != "bfloat16":
            raise ValueError('flash_attention_2 computes in half precision only; set precision: "bfloat16"')
        if self.optimizer == "schedulefree_adamw" and self.schedule != "constant":
            raise ValueError('schedulefree_adamw averages weights in place of a schedule; set schedule: "constant"')
        if self.optimizer == "schedulefree_adamw" and self.snapshots:
            raise ValueError("schedulefree_adamw keeps no snapshots: to look at its averages changes the training")
        self._check_optimizer()
        if list(self.snapshots) != sorted({*self.snapshots}) or min(self.snapshots, default=1) < 1:
            raise ValueError("snapshots are numbers of optimizer steps, from 1, rising")
        if self.max_steps is not None and self.snapshots and self.snapshots[-1] > self.max_steps:
            raise ValueError(f"snapshots names step {self.snapshots[-1]}, but max_steps is {self.max_steps}")
        return self

    def _check_optimizer(self) -> None:
        if (self.momentum or self.nesterov) and self.optimizer != "sgd":
            raise ValueError(f'momentum and nesterov belong to the optimizer "sgd"; {self.optimizer} has none')
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum; set momentum as well (0.9, say)")
        if self.min_learning_rate and self.schedule not in ("cosine", "cosine_restarts"):
            raise ValueError(
                f"min_learning_rate is where a cosine ends; the schedule {self.schedule} has no such floor"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above the learning_rate {self.learning_rate:g}"
            )
        if self.schedule == "cosine_restarts" and self.cycle_steps is None:
            raise ValueError("cosine_restarts needs cycle_steps, the optimizer steps of its first cycle")
        if self.schedule != "cosine_restarts" and (self.cycle_steps, self.cycle_mul, self.cycle_decay) != (None, 1, 1):
            raise ValueError('cycle_steps, cycle_mul and cycle_decay belong to the schedule "cosine_restarts"')

    def deciding(self) -> dict[str, Any]:
        """The settings that can change what the training ends with, as plain data."""
        return self.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))

    def accumulation(self, ranks: int) -> int:
        """Micro-batches per rank and optimizer step.

        Raises ConfigurationError when `batch_size` does not divide into them.
        """
        together = self.micro_batch_size * ranks
        if self.batch_size % together:
            raise ConfigurationError(
                f"batch_size {self.batch_size} cannot be divided into micro-batches of {self.micro_batch_size} "
                f"on each of {ranks} rank(s): make it a multiple of {together}, or change micro_batch_size."
            )
        return self.batch_size // together

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole training on that many examples; the last step of an epoch may be smaller."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.epochs * self.steps_per_epoch(examples))

    def steps_per_epoch(self, examples: int) -> int:
        return math.ceil(examples / self.batch_size)

    def warmup(self, total: int) -> int:
        """Warm-up in optimizer steps of a training of `total` steps."""
        return self.warmup_steps if self.warmup_steps is not None else math.ceil(self.warmup_ratio * total)
