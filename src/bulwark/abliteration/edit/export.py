"""Exporting a trial: merged weights in an ordinary model folder, and the same as a PEFT adapter.

Both are computed in float32 and cast once. The merged weights are exactly the trial's edit; the adapter is where the
edit has rank 1 (normalization none and pre), else its best approximation of the rank asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bulwark import files
from bulwark.abliteration.edit.edits import adapter, edited_weight
from bulwark.abliteration.edit.hooks import Edits, Plan
from bulwark.abliteration.edit.targets import Target, weight_of
from bulwark.errors import BulwarkError

ADAPTER = "adapter"
_ROUTING = ("router", "gate")  # parts of a mixture before its experts, which may have norms of their own


@torch.no_grad()
def merge(model: nn.Module, edits: Edits, plan: Plan) -> list[str]:
    """Write the edits of `plan` into the model's weights; returns the names of the changed modules.

    Raises BulwarkError for weights that cannot be written, as `refuse_unwritable` does for all targets.
    """
    changed = []
    for target in edits.targets:
        edit = edits.form_of(target, [plan])
        if edit is None:
            continue
        if target.mixture:
            for parameter, axis in _written(target):
                moved = parameter.detach().float().movedim(axis, -1)
                moved = moved - moved @ edit.b[0].T @ edit.a[0]
                parameter.copy_(moved.movedim(-1, axis).to(parameter.dtype))
        else:
            _refuse_quantised(target.path, getattr(target.module, "weight", None))
            weight = target.module.weight
            new = edited_weight(weight_of(target.module), edit)
            weight.copy_((new.T if hasattr(target.module, "nf") else new).to(weight.dtype))
        changed.append(target.path)
    return changed


def refuse_unwritable(targets: Sequence[Target], packed: bool = False) -> None:
    """Raise BulwarkError for targets that `merge` could not write: before a search, and not after it.

    Those are quantised weights (of 4 and 8 bits, FP8 among them, whose values mean nothing without their scales), and
    experts of which it is not known which axis counts their outputs. packed: they were packed in 4 bits for the search
    alone, and the edit is written into others; of experts it is not known then what these are.
    """
    for target in targets:
        if target.mixture and packed:
            raise BulwarkError(
                f"{target.path} is a mixture of experts, which is not searched in 4 bits. Leave out quantised, or mlp "
                "of edit.components."
            )
        if target.mixture:
            _written(target)
        elif not packed:
            _refuse_quantised(target.path, getattr(target.module, "weight", None))


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
    return all(not target.mixture and _is_plain(getattr(target.module, "weight", None)) for target in targets)


def _is_plain(weight: Any) -> bool:
    """Whether a weight holds its values themselves; numbers of one byte are those of a quantised one."""
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1


def _refuse_quantised(path: str, weight: Any) -> None:
    if not _is_plain(weight):
        stored = f" ({str(weight.dtype).removeprefix('torch.')})" if isinstance(weight, Tensor) else ""
        raise BulwarkError(
            f"{path} is quantised{stored} and cannot be written. Attack the weights it was quantised from, or a folder "
            "of its dequantised ones."
        )


def _written(target: Target) -> list[tuple[nn.Parameter, int]]:
    """Every weight of a mixture of experts that writes its output, biases included, and which axis its outputs are on.

    Those are the fused experts' parameters with the hidden size as outputs and the experts' own down-projections. An
    edit (I - λvvᵀ) of them from the left is one of the mixture's output.
    """
    found = []
    inside = [name for name, part in target.module.named_modules() if "Norm" in type(part).__name__]
    if behind := [name for name in inside if not any(word in name for word in _ROUTING)]:
        raise BulwarkError(
            f"{target.path} has a norm among its experts ({behind[0]}), behind which an edit of their weights is not "
            "one of its output. Leave mlp out of edit.components."
        )
    for name, parameter in target.module.named_parameters():
        last = name.rsplit(".", 2)[-2:]
        if any(part.startswith(("down_proj", "w2", "output_linear")) for part in last):
            _refuse_quantised(f"{target.path}.{name}", parameter)
            found.append((parameter, _output_axis(parameter, name, target)))
    if not found:
        raise BulwarkError(
            f"{target.path}: no weights of its experts' outputs were found (down_proj, w2), or they are quantised. "
            "Leave mlp out of edit.components."
        )
    return found


def _output_axis(parameter: Tensor, name: str, target: Target) -> int:
    """Which axis of a down-projection's parameter counts its outputs."""
    sizes = list(parameter.shape)
    if "bias" in name or len(sizes) == 1 or len(sizes) == 2:
        axis = 0 if len(sizes) == 2 and "bias" not in name else len(sizes) - 1  # of a linear module: outputs first
        if sizes[axis] != target.width:
            raise BulwarkError(
                f"{target.path}.{name} has {sizes[axis]} outputs, not the {target.width} of the mixture: what it "
                "writes is not known. Leave mlp out of edit.components."
            )
        return axis
    # transformers says of fused experts whether they are [experts, in, out].
    transposed = getattr(target.module.get_submodule(name.rpartition(".")[0]), "is_transposed", None)
    if transposed is None:
        at = [axis for axis in (1, 2) if sizes[axis] == target.width]
        if len(at) != 1:
            raise BulwarkError(
                f"{target.path}.{name} has the shape {sizes}: it is ambiguous which axis are the {target.width} "
                "outputs. Leave mlp out of edit.components."
            )
        return at[0]
    return 2 if transposed else 1
