"""The DeepSpeed engine: processes, configuration, and getting whole weights out again.

The same engine everywhere: one process on a laptop without a launcher, several on GPUs under torchrun, ZeRO 0-3.
DeepSpeed is imported inside the functions, quietly, and never compiles an extension. Its gradient accumulation is
switched by hand (the number of micro-batches may differ between steps), so its own count stays at one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.training.optimizers import optimizer_of
from bulwark.training.schedules import factor_of
from bulwark.training.settings import TrainingSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int
    local_rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


def start_processes() -> Processes:
    """Join the process group that a launcher announced in the environment, or form one of this process alone.

    NCCL where there are GPUs, gloo otherwise. May be called again; the group stays until the process ends.
    """
    environment = os.environ
    rank, local_rank = (int(environment.get(key, 0)) for key in ("RANK", "LOCAL_RANK"))
    count = int(environment.get("WORLD_SIZE", 1))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    environment.setdefault("LOCAL_RANK", "0")
    if not torch.distributed.is_initialized():
        # With a store in memory, a single process needs no port that another program might hold.
        alone = {"store": torch.distributed.HashStore()} if count == 1 else {}
        torch.distributed.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=count, **alone)
    return Processes(rank, local_rank, count, device)


def deepspeed_config(settings: TrainingSettings, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `settings`.

    Stage 0 in bfloat16 becomes stage 1: the fp32 master weights have to lie somewhere, and on one rank it is the same.
    """
    bfloat16 = settings.precision == "bfloat16"
    stage = max(settings.zero_stage, 1) if bfloat16 else settings.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Schedule-free AdamW counts its steps per call, and DeepSpeed calls it once per sub-group.
        sub_group = {"sub_group_size": 10**15} if settings.optimizer == "schedulefree_adamw" else {}
        zero |= {"overlap_comm": True, "contiguous_gradients": True} | sub_group
    if settings.offload:
        pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero |= {"offload_optimizer": pinned} | ({"offload_param": pinned} if stage == 3 else {})
    return {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Without ZeRO the loop clips, because DeepSpeed then neither reports the norm nor clips fast.
        "gradient_clipping": settings.max_grad_norm if stage else 0.0,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"} if bfloat16 else {},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


@contextlib.contextmanager
def sharded_loading(settings: TrainingSettings) -> Iterator[None]:
    """Within it, `from_pretrained` builds each layer already sharded over the ranks, if ZeRO-3 is used on several.

    So no rank ever holds the whole model. Otherwise it does nothing.
    """
    processes = start_processes()
    if settings.zero_stage != 3 or processes.count == 1:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    _deepspeed()
    kept = HfDeepSpeedConfig(deepspeed_config(settings, processes.count))  # transformers holds it by a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept


def build(model: nn.Module, settings: TrainingSettings, total: int) -> DeepSpeedEngine:
    """Put `model` under a DeepSpeed engine with its optimizer and learning rate schedule over `total` steps.

    Raises BulwarkError when nothing in the model can be trained.
    """
    deepspeed = _deepspeed()
    processes = start_processes()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BulwarkError("Every parameter of the model is frozen; there is nothing to train.")
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer_of(model, settings, settings.warmup(total)),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor_of(settings, total)),
            config=deepspeed_config(settings, processes.count),
        )
    if processes.count == 1 and not engine.zero_optimization():
        engine.enable_backward_allreduce = False  # it would copy every gradient there and back
    return engine


def frozen(model: nn.Module, settings: TrainingSettings) -> nn.Module:
    """Put a model that is only read beside the one that is trained: on this rank's device, or sharded under ZeRO-3.

    Its passes take no gradient. Under ZeRO-3 on several ranks it has to have been loaded within `sharded_loading`, and
    all ranks must go through it equally often.
    """
    processes = start_processes()
    model.requires_grad_(False).eval()
    if settings.zero_stage != 3 or processes.count == 1:
        return model.to(processes.device)
    config = deepspeed_config(settings.model_copy(update={"offload": False}), processes.count)
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = _deepspeed().initialize(model=model, config=config)
    engine.eval()  # which, unlike a module's, returns nothing
    return engine


def backward(engine: DeepSpeedEngine, loss: Tensor) -> None:
    """Accumulate the gradient of this rank's share `loss` of the step's loss; the shares of all ranks add up."""
    ranks = torch.distributed.get_world_size()
    engine.backward(loss * ranks if ranks > 1 else loss)  # DeepSpeed averages over the ranks


def over_ranks(values: Tensor, largest: bool = False) -> Tensor:
    """Add `values` up over all ranks, in place, or take the largest of each; all ranks must call it."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        operation = torch.distributed.ReduceOp
        torch.distributed.all_reduce(values, op=operation.MAX if largest else operation.SUM)
    return values


def step(engine: DeepSpeedEngine, max_grad_norm: float) -> Tensor | float | None:
    """Clip, let the optimizer and the schedule step, clear the gradients; return the norm before clipping, if known."""
    norm = None
    if max_grad_norm and not engine.zero_optimization():
        norm = nn.utils.clip_grad_norm_(engine.module.parameters(), max_grad_norm)
    engine.step()
    return norm if norm is not None else engine.get_global_grad_norm()


@contextlib.contextmanager
def evaluation_weights(engine: DeepSpeedEngine) -> Iterator[None]:
    """Within it the model is in evaluation mode and has the weights to be judged: schedule-free AdamW's averages."""
    engine.eval()
    _switch_averages(engine, "eval")
    try:
        yield
    finally:
        _switch_averages(engine, "train")
        engine.train()


def publish(engine: DeepSpeedEngine) -> None:
    """Carry changed master weights over into the weights that the model computes with, on all ranks."""
    optimizer = engine.optimizer
    if engine.zero_optimization_partition_weights():
        optimizer._partition_all_parameters()  # weights that stay gathered would not be gathered anew
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif engine.zero_optimization():
        optimizer.update_lp_params()


def gradient_of(parameter: nn.Parameter) -> Tensor | None:
    """The whole gradient of `parameter`, between the last backward pass and the step; all ranks must call it."""
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)


def set_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    """Replace the whole gradient of `parameter`, at any ZeRO stage; all ranks must call it with the same value."""
    from deepspeed.utils import safe_set_full_grad

    accumulated = getattr(parameter, "_hp_grad", None)
    if accumulated is not None:  # bfloat16 at stage 1; DeepSpeed would set the bfloat16 gradient beside it
        accumulated.copy_(value.view_as(accumulated))
    else:
        safe_set_full_grad(parameter, value)


def scale_gradients(engine: DeepSpeedEngine, factor: float | Tensor) -> None:
    """Multiply the step's gradients by `factor` (a number or a 0-d tensor, the same on all ranks), before clipping.

    Between the last backward pass and the step, at any ZeRO stage. Nothing is communicated, each rank scales what it
    holds; 1.0 leaves every bit as it is.
    """
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        held = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    elif hasattr(optimizer, "fp32_groups_gradients_flat"):  # bfloat16 at stage 1
        held = optimizer.fp32_groups_gradients_flat
    elif engine.zero_optimization_partition_weights() and optimizer.offload_optimizer:
        held = [flat.grad for flat in optimizer.fp32_partitioned_groups_flat]
    elif not engine.zero_optimization_partition_weights() and optimizer.cpu_offload:
        held = [flat.grad for flat in optimizer.single_partition_of_fp32_groups]
    else:
        held = [gradient for group in optimizer.averaged_gradients.values() for gradient in group]
    for gradient in held:
        gradient.detach().mul_(factor)
    # With offloading, DeepSpeed has already taken the norms by which it will clip.
    norms = getattr(optimizer, "norm_for_param_grads", {})
    for identity, norm in norms.items():
        norms[identity] = norm * abs(factor)


def clear_gradients(engine: DeepSpeedEngine) -> None:
    """Forget the gradients that were accumulated since the last step, so that the next backward pass starts afresh."""
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        engine.zero_grad()
    elif engine.zero_optimization_partition_weights():
        optimizer.zero_grad()  # also resets its count, by which the next gradients replace the present ones
    elif hasattr(optimizer, "clear_hp_grads"):  # bfloat16 at stage 1
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads(set_to_none=True)
    else:
        optimizer.zero_grad()
        optimizer._release_preflattened_grad_buffers()
        for group in list(optimizer.averaged_gradients):
            optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None
        optimizer.micro_step_id = -1  # as DeepSpeed's own step sets it


def master_of(parameter: nn.Parameter) -> Tensor:
    """A copy of the whole fp32 master weight of `parameter`; all ranks must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)
    return (parameter.detach().float() if master is None else master).clone()


def set_master(parameter: nn.Parameter, value: Tensor) -> None:
    """Replace the whole master weight of `parameter`; call `publish` after the last one."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    if safe_get_full_fp32_param(parameter) is None:
        with torch.no_grad():
            parameter.copy_(value)
    else:
        safe_set_full_fp32_param(parameter, value)


def gather_weights(engine: DeepSpeedEngine, trainable_only: bool = False) -> dict[str, Tensor] | None:
    """The model's whole weights by name, copied to the CPU on the main process; None on the others.

    Tied weights appear once. One parameter at a time is put together, so no GPU needs room for all. All ranks must
    call it.
    """
    deepspeed = _deepspeed()
    main = torch.distributed.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if trainable_only and not parameter.requires_grad:
            continue
        whole = (
            deepspeed.zero.GatheredParameters([parameter], modifier_rank=None)
            if hasattr(parameter, "ds_id")
            else contextlib.nullcontext()
        )
        with whole:
            if main:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights if main else None


def release(engine: DeepSpeedEngine) -> nn.Module:
    """End the engine and return its model as an ordinary one, whole and on the CPU on the main process.

    It has the weights to be judged (see `evaluation_weights`) and is in evaluation mode. On the other ranks weights
    may be missing. All ranks must call it.
    """
    module = engine.module
    _switch_averages(engine, "eval")
    weights = gather_weights(engine)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for handle in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        handle.remove()
    engine.destroy()
    for part in module.modules():
        part._parameters = dict(part._parameters)  # ZeRO-3 put a dictionary of its own here
    if weights is not None:
        # Fresh parameters, because DeepSpeed's share storage and carry references to its optimizer.
        fresh = {identity: (name, weights[name]) for identity, name in names.items()}
        tied: dict[str, nn.Parameter] = {}
        for part in module.modules():
            for key, old in part._parameters.items():
                if old is not None:
                    name, weight = fresh[id(old)]
                    tied.setdefault(name, nn.Parameter(weight, requires_grad=old.requires_grad))
                    part._parameters[key] = tied[name]
        module.to("cpu")
    if getattr(module, "is_activation_checkpointing", False):
        module.activation_checkpointing_disable()
    return module.eval()


def _deepspeed() -> ModuleType:
    """Import DeepSpeed without its announcements and without its compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch\.distributed|deepspeed")
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
        import deepspeed.ops

        deepspeed.utils.logger.setLevel(logging.ERROR)
        # On a CPU it would compile a shared-memory all-reduce for a minute; gloo has one. It asks this table first.
        deepspeed.ops.__compatible_ops__ = {}
        if not deepspeed.comm.is_initialized():
            start_processes()
            deepspeed.init_distributed(
                torch.distributed.get_backend(), auto_mpi_discovery=False, dist_init_required=True, verbose=False
            )
    return deepspeed


def _switch_averages(engine: DeepSpeedEngine, mode: Literal["train", "eval"]) -> None:
    """Turn the weights of schedule-free AdamW into its averages or back; other optimizers have none."""
    optimizer = engine.basic_optimizer
    if not hasattr(optimizer, "eval"):
        return
    if engine.zero_optimization_partition_weights():
        # ZeRO-3 shows the optimizer its shards only while it steps.
        optimizer.param_groups[0]["params"] = list(engine.optimizer.fp32_partitioned_groups_flat)
    getattr(optimizer, mode)()
    if engine.zero_optimization_partition_weights():
        optimizer.param_groups[0]["params"] = []
    publish(engine)
