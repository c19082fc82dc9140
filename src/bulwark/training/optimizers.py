"""Optimizers: what the settings of a training name, made for the weights that can be trained.

AdamW (Loshchilov & Hutter 2019), schedule-free AdamW (Defazio et al. 2024), stochastic gradient descent with or
without (Nesterov) momentum, and Adadelta (Zeiler 2012) with torch's ρ = 0.9 and ε = 1e-6. All are torch's own but
schedule-free AdamW.
"""

from __future__ import annotations

import torch
from torch import nn

from bulwark.training.settings import TrainingSettings


def optimizer_of(model: nn.Module, settings: TrainingSettings, warmup: int) -> torch.optim.Optimizer:
    """The optimizer that `settings` ask for; matrices decay, biases and norm weights do not.

    warmup: in optimizer steps, for schedule-free AdamW, which warms up by itself.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "schedulefree_adamw":
        import schedulefree

        # One group only, see `engine.deepspeed_config`: so everything decays, which matters only if weight_decay is
        # set.
        optimizer = schedulefree.AdamWScheduleFree(
            trainable,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            warmup_steps=warmup,
        )
        optimizer.train()
        # It has looked up every weight; ZeRO-3 exchanges them, and what is kept of the old ones cannot be saved.
        optimizer.state.clear()
        return optimizer
    groups = _groups(trainable, settings.weight_decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov
        )
    if settings.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, lr=settings.learning_rate)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)


def _groups(trainable: list[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    if weight_decay == 0:
        return [{"params": trainable, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in trainable if _dimensions(p) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if _dimensions(p) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: nn.Parameter) -> int:
    """The number of dimensions, also of a parameter that ZeRO-3 has already sharded."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
