"""One parent for several trainings of a job: its weights are read from the disk once, and copied in memory afterwards.

What is kept is the module tree with empty parameters, and beside it the weights, always on the CPU: whole, or under
ZeRO-3 on several ranks this rank's shard of each. A copy lies on the device on which the original was opened. It is a
new model that nothing has touched, bit for bit the one that was read, so a training cannot tell whether others went
before it.

`loaded_once` stands in for `models.checkpoints.load_model` while it lasts. The function itself and those that call it
are as they were, because a change to them would make every checkpoint that was ever trained stale.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from bulwark.models import checkpoints

_ALIGNMENT = 64  # bytes: the widest vectors of a processor


@dataclass
class Loads:
    """read: how often the folder's weights were read from the disk. copied: how often they were copied in memory."""

    read: int = 0
    copied: int = 0


@contextlib.contextmanager
def loaded_once(folder: Path) -> Iterator[Loads]:
    """Within it, opening the model in `folder` a second time gives a copy of what was read the first time.

    That is for opening it in the same way (dtype, device, attention, shards); in another way it is read again. It takes
    memory for one more copy of the weights, under ZeRO-3 on several ranks of their shards. All ranks of a job have to
    be within it. Every other folder is opened as always.
    """
    original = checkpoints.load_model
    loads = Loads()
    kept: dict[tuple[Any, ...], _Kept] = {}

    def load_model(place: str | Path, *arguments: Any, **options: Any) -> nn.Module:
        if Path(place) != folder or options.get("unfinished"):
            return original(place, *arguments, **options)
        way = (*map(str, arguments), *sorted((key, str(value)) for key, value in options.items()), _sharding())
        if way in kept:
            loads.copied += 1
            return kept[way].copy()
        model = original(place, *arguments, **options)
        loads.read += 1
        kept.clear()  # room for one
        kept[way] = _Kept.of(model)
        return model

    checkpoints.load_model = load_model
    try:
        yield loads
    finally:
        checkpoints.load_model = original


@dataclass
class _Weight:
    """A parameter as it is kept: its place in the tree, what this rank holds, and, if sharded, its whole shape.

    device: where it was opened, and where a copy of it goes; the tree's buffers stay where they were.
    offset: of the first byte that was read, from the last multiple of 64. Where weights lie decides in which order a
    processor adds up, and so the last bit of a sum; and weights in a file lie where its header ends.
    """

    place: nn.Parameter
    held: Tensor
    shape: torch.Size | None
    offset: int
    device: torch.device


@dataclass
class _Kept:
    """A model in memory: its module tree with empty parameters, and the weights that belong into them."""

    tree: nn.Module | None = None
    weights: list[_Weight] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> _Kept:
        kept, places = cls(), {}
        for parameter in model.parameters():  # a tied one once
            shard = getattr(parameter, "ds_tensor", None)
            place = nn.Parameter(torch.empty(0, dtype=parameter.dtype), requires_grad=parameter.requires_grad)
            held = (parameter if shard is None else shard).detach().to("cpu", copy=True)
            shape = None if shard is None else torch.Size(parameter.ds_shape)
            offset, device = parameter.data_ptr() % _ALIGNMENT, (parameter if shard is None else shard).device
            kept.weights.append(_Weight(place, held, shape, offset, device))
            places[id(parameter)] = place
        kept.tree = copy.deepcopy(model, places)
        return kept

    def copy(self) -> nn.Module:
        made = {}
        for weight in self.weights:
            if weight.shape is None:
                parameter = nn.Parameter(_whole(weight), requires_grad=weight.place.requires_grad)
            else:
                parameter = _sharded(weight)
            made[id(weight.place)] = parameter
        return copy.deepcopy(self.tree, made)


def _whole(weight: _Weight) -> Tensor:
    """A copy of what is held that lies where and as the original did."""
    held = weight.held
    if weight.device.type != "cpu":
        return held.to(weight.device, copy=True)
    room = torch.empty(held.nbytes + _ALIGNMENT, dtype=torch.uint8)
    start = (weight.offset - room.data_ptr()) % _ALIGNMENT
    return room[start : start + held.nbytes].view(held.dtype).view(held.shape).copy_(held)


def _sharded(weight: _Weight) -> nn.Parameter:
    """A parameter that DeepSpeed has sharded over the ranks, with this rank's shard as it was; all ranks must call it.

    DeepSpeed shards one that is there whole, so for a moment there is, with any values: one parameter at a time.
    """
    from deepspeed import zero

    holder = nn.Module()
    whole = torch.zeros(weight.shape, dtype=weight.held.dtype)
    holder.weight = nn.Parameter(whole, requires_grad=weight.place.requires_grad)
    zero.Init(module=holder, config_dict_or_path=deepspeed_config(), dtype=weight.held.dtype)
    holder.weight.ds_tensor.data.copy_(weight.held)
    return holder.weight


def _sharding() -> str:
    """How weights that are read now are sharded, and where the shards lie; "" where they are not."""
    if not is_deepspeed_zero3_enabled():
        return ""
    return f"sharded, {deepspeed_config()['zero_optimization'].get('offload_param')}"
