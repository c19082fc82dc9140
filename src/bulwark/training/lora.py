"""Low-rank adapters around a model (Hu et al. 2021), by way of peft."""

from __future__ import annotations

from torch import nn

from bulwark.errors import BulwarkError
from bulwark.training.settings import LoraSettings


def attach_lora(model: nn.Module, settings: LoraSettings) -> nn.Module:
    """Freeze `model` and put trainable adapters on its linear modules.

    Raises BulwarkError naming modules that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = settings.target_modules
    if not isinstance(targets, str):
        if unknown := [target for target in targets if target not in names]:
            linear = sorted({n.rsplit(".", 1)[-1] for n, part in model.named_modules() if isinstance(part, nn.Linear)})
            raise BulwarkError(
                f"lora.target_modules: the model has no {', '.join(unknown)}; it has {', '.join(linear)}."
            )
        targets = list(targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
