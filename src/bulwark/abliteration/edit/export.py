"""Exporting a trial: merged weights in an ordinary model folder, and the same as a PEFT adapter.

Both are computed in float32 and cast once. The merged weights are exactly the trial's edit; the adapter is where the
edit has rank 1 (normalization none and pre), else its best approximation of the rank asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bulwark import files
from bulwark.abliteration.edit.edits import Form, adapter, edited_weight
from bulwark.abliteration.edit.hooks import Edits, Plan
from bulwark.abliteration.edit.targets import Target, weight_of
from bulwark.errors import BulwarkError

ADAPTER = "adapter"


@torch.no_grad()
def merge(model: nn.Module, edits: Edits, plan: Plan) -> list[str]:
    """Write the edits of `plan` into the model's weights; returns the names of the changed modules.

    Raises BulwarkError for weights that are quantised.
    """
    changed = []
    for target in edits.targets:
        edit = edits.form_of(target, [plan])
        if edit is None:
            continue
        if target.mixture:
            _merge_mixture(target, edit)
        else:
            weight = target.module.weight
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                raise BulwarkError(
                    f"{target.path} is quantised and cannot be written. Attack the weights it was quantised from."
                )
            new = edited_weight(weight_of(target.module), edit)
            weight.copy_((new.T if hasattr(target.module, "nf") else new).to(weight.dtype))
        changed.append(target.path)
    return changed


def adapters(edits: Edits, plan: Plan, rank: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """{path of a module: (A [r, in], B [out, r])} in float32 on the CPU, r = 1 where that is exact, else `rank`."""
    factors = {}
    for target in edits.targets:
        edit = edits.form_of(target, [plan])
        if edit is not None:
            a, b = adapter(weight_of(target.module), edit, rank, seed)
            factors[target.path] = (a.cpu(), b.cpu())
    return factors


def write_adapter(model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], folder: Path, base: str) -> None:
    """Write a LoRA adapter that `peft.PeftModel.from_pretrained` reads. base: the name of the model that it belongs to.

    model: unchanged when this returns; its modules are wrapped on the way, as PEFT does.
    """
    from peft import LoraConfig, get_peft_model

    rank = max(a.shape[0] for a, _ in factors.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # a scale of 1
        lora_dropout=0.0,
        bias="none",
        target_modules=sorted(factors),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    try:
        wrapped.peft_config["default"].base_model_name_or_path = base
        modules = dict(wrapped.base_model.model.named_modules())
        with torch.no_grad():
            for path, (a, b) in factors.items():
                layer = modules[path]
                layer.lora_A["default"].weight.copy_(a)
                layer.lora_B["default"].weight.copy_(b)
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card, which names a local path
    finally:
        wrapped.unload()
    for file in folder.glob("*.safetensors"):
        files.readable(file)


def has_adapter(targets: Sequence[Target]) -> bool:
    """Whether all targets are plain linear modules, which an adapter can stand beside."""
    return all(
        not target.mixture
        and isinstance(getattr(target.module, "weight", None), Tensor)
        and target.module.weight.is_floating_point()
        for target in targets
    )


def _merge_mixture(target: Target, edit: Form) -> None:
    """Edit every weight of a mixture of experts that writes its output: (I - λvvᵀ) from the left, biases included.

    Those are the fused experts' parameters with the hidden size as outputs and the experts' own down-projections.
    """
    hidden = edit.a.shape[1]
    done = 0
    for name, parameter in target.module.named_parameters():
        last = name.rsplit(".", 2)[-2:]
        if not any(part.startswith(("down_proj", "w2", "output_linear")) for part in last):
            continue
        if not parameter.is_floating_point():
            raise BulwarkError(f"{target.path}.{name} is quantised and cannot be written.")
        axis = _output_axis(parameter, name, hidden, target)
        moved = parameter.detach().float().movedim(axis, -1)
        along = (moved * edit.b[0]).sum(-1, keepdim=True)
        parameter.copy_((moved - along * edit.a[0]).movedim(-1, axis).to(parameter.dtype))
        done += 1
    if not done:
        raise BulwarkError(f"{target.path}: no weights of its experts' outputs were found (down_proj, w2).")


def _output_axis(parameter: Tensor, name: str, hidden: int, target: Target) -> int:
    """Which axis of a down-projection's parameter counts its outputs."""
    sizes = list(parameter.shape)
    if "bias" in name:
        return len(sizes) - 1
    at = [axis for axis in range(max(0, len(sizes) - 2), len(sizes)) if sizes[axis] == hidden]
    if len(at) == 1:
        return at[0]
    if len(sizes) == 2:
        return 0  # of a linear module: outputs first
    raise BulwarkError(
        f"{target.path}.{name} has the shape {sizes}: it is ambiguous which axis are the {hidden} outputs. Leave "
        "mlp out of edit.components."
    )
