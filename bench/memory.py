"""What a training holds, measured: bytes per parameter by ZeRO stage, bytes per token that autograd keeps of a block.

Beside each number stands what `bulwark.jobs.memory` computes, by which the table of docs/memory.md is made.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.processes import elsewhere, memory
from bench.timing import Ratio
from bulwark.jobs.memory import ADAMW, HALF, SINGLE, Shape, kept
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt
from bulwark.training import loop
from bulwark.training.batches import StepBatches
from bulwark.training.objectives import at_targets
from bulwark.training.settings import TrainingSettings

SHAPE = Shape("measured", layers=6, hidden=1024, inner=2816, heads=16, shared=4, size=64, vocabulary=2048)
TOKENS = 64
# By ZeRO stage, of a model that is smaller than DeepSpeed's buckets: weight, bucket, summed gradient, master weight and
# moments; with stage 1 the gradient of a whole pass; with stages 2 and 3 the copy of the summed gradients from which
# the update is made; with stage 3 the gathered weight and a second bucket.
BYTES = {
    1: HALF + HALF + SINGLE + ADAMW + HALF,
    2: HALF + HALF + SINGLE + ADAMW + SINGLE,
    3: HALF + HALF + SINGLE + ADAMW + SINGLE + HALF + HALF,
}


def run() -> Iterator[Ratio]:
    """Peak bytes per parameter of a training in bfloat16; saved bytes per token with and without recomputation."""
    logging.disable(logging.INFO)
    for stage, told in BYTES.items():
        found = elsewhere(_per_parameter, stage)
        yield Ratio(f"peak bytes per parameter, training in bfloat16, ZeRO-{stage}", *[found] * 3, f"{told}")
    for checkpointing in (False, True):
        found = saved(SHAPE, checkpointing) / TOKENS
        told = kept(SHAPE, TOKENS, checkpointing) / TOKENS
        kind = "with" if checkpointing else "without"
        yield Ratio(f"bytes per token that 6 blocks keep, {kind} checkpointing", *[found] * 3, f"{told:.0f}")


def model_of(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """A random model of this shape, in training mode."""
    model = LlamaForCausalLM(LlamaConfig(**shape.llama)).to(dtype)
    install(model, {"method": "vanilla"})
    return model.train()


def kept_by(model: nn.Module, work: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a forward pass of the model for its backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}  # a storage that is let go of would give its address to another

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in held.values())


def saved(shape: Shape, checkpointing: bool) -> int:
    """Bytes that a forward pass of TOKENS tokens keeps for its backward pass, weights and the loss left out."""
    model = model_of(shape)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    [batch] = StepBatches(_examples(1), batch_size=1, micro_batch_size=1, pad_id=0).of_step(0)
    return kept_by(model, lambda: at_targets(model, batch, positions=batch.target_positions[:0]))


def _per_parameter(stage: int) -> float:
    """The most that a training holds beyond what its process held before there was a model, per parameter.

    A training of a small model comes first, so that what imports and threads hold is there before.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    _peak(replace(SHAPE, layers=1, hidden=64, inner=64), stage)
    before = memory("VmRSS")
    peak, count = _peak(SHAPE, stage)
    return (peak - before) / count


def _peak(shape: Shape, stage: int) -> tuple[int, int]:
    """The most that this process has held by the end of two steps of a training, in bytes, and the parameters."""
    settings = TrainingSettings(
        max_steps=2,
        batch_size=2,
        micro_batch_size=1,
        learning_rate=1e-4,
        precision="bfloat16",
        zero_stage=stage,
        gradient_checkpointing=True,
        evaluate_every=None,
        save_minutes=None,
    )
    model = model_of(shape)
    count = sum(parameter.numel() for parameter in model.parameters())
    peak = 0

    class Looking(loop.Objective):
        def after_step(self, engine, step, total):
            nonlocal peak
            peak = memory("VmHWM")

    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            *(model, _examples(4), [], settings),
            objective=Looking(),
            seed=0,
            state=Path(folder) / "training",
            fingerprint={},
            pad_id=0,
        )
    return peak, count


def _examples(count: int) -> list[Prompt]:
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(3, SHAPE.vocabulary, (TOKENS,), generator=draw).tolist()
        made.append(Prompt(ids, ids, [0] * TOKENS, [], "", False))
    return made
