"""Two devices on a machine that has one: tensors that say they lie on card:0 or card:1, and refuse to meet.

PyTorch keeps the name of a third backend for such uses (PrivateUse1). A tensor here wraps one on the CPU, and every
operation is done on the CPU after it was checked as CUDA would: all its tensors are on one device, but for single
numbers of the CPU and for indices on the CPU. So a pass over a model whose halves lie on two cards fails here wherever
it would fail on two GPUs for the device's sake. Kernels, streams and the memory of a GPU are not imitated.

The name of the backend holds for the whole process, so that tests run what needs it in one of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = "card"
_COPIES = ("copy_", "_to_copy")
_WITH_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_")


class Held(Tensor):
    """A tensor on a card."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor, device: torch.device) -> Held:
        made = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return Tensor._make_wrapper_subclass(cls, raw.size(), **made, device=device, requires_grad=raw.requires_grad)

    def __init__(self, raw: Tensor, device: torch.device) -> None:
        self.raw = raw.detach()

    # What torch does of these without asking a class.

    def tolist(self) -> Any:
        return self.raw.tolist()

    def detach(self) -> Held:
        return Held(self.raw, self.device)

    def __getitem__(self, key: Any) -> Tensor:
        keys = key if isinstance(key, tuple) else (key,)
        return super().__getitem__(tuple(torch.tensor(one) if isinstance(one, list) else one for one in keys))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        return _done(function, args, kwargs or {})


class _Cards(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        return _done(function, args, kwargs or {})


@contextlib.contextmanager
def cards() -> Iterator[None]:
    """Within it there are cards. Enter it once, in a process that ends afterwards."""
    backend_registration._setup_privateuseone_for_python_backend(CARD)
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        there = made(data, **options)  # the original goes past every dispatch
        return there if device is None else there.to(device)

    torch.tensor = tensor  # type: ignore[assignment]
    try:
        with _Cards():
            yield
    finally:
        torch.tensor = made


def put(module: nn.Module, device: str) -> None:
    """Put all weights and buffers of a module onto a card, tied ones together."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and not isinstance(weight.data, Held):
                moved = nn.Parameter(Held(weight.data, torch.device(device)), requires_grad=weight.requires_grad)
                part._parameters[name] = known.setdefault(id(weight), moved)
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, Held):
                part._buffers[name] = Held(buffer, torch.device(device))


def _done(function: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    if function._can_decompose():  # in inference mode what is made of other operations comes here whole
        with _Cards():
            return function.decompose(*args, **kwargs)
    name, asked = function.overloadpacket.__name__, kwargs.get("device")
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if name in _COPIES:
        where = args[0].device if name == "copy_" or asked is None else torch.device(asked)
    else:
        found = _agreed(function, name, args, given)
        where = found if asked is None else torch.device(asked)
    options = dict(kwargs) if asked is None else {**kwargs, "device": "cpu"}
    plain_args, plain_options = tree_map(_raw, (args, options))
    result = function(*plain_args, **plain_options)
    if name == "_to_copy" and any(result is leaf for leaf in tree_leaves(plain_args)):
        result = result.clone()
    written = {id(_raw(leaf)): leaf for leaf in given}  # what an operation in place gives back is what it was given

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = written.get(id(value))
        return known if known is not None else Held(value, where) if where.type == CARD else value

    return tree_map(placed, result)


def _agreed(function: Any, name: str, args: tuple, given: list[Tensor]) -> torch.device:
    """The one device of an operation's tensors. Raises RuntimeError, as torch does, if there are several."""
    on_cards = {leaf.device for leaf in given if isinstance(leaf, Held)}
    if not on_cards:
        return torch.device("cpu")
    indices = name in _WITH_INDICES and isinstance(args[0], Held)
    on_cpu = [leaf for leaf in given if not isinstance(leaf, Held) and leaf.dim() and not indices]
    if len(on_cards) > 1 or on_cpu:
        places = sorted(map(str, on_cards)) + ["cpu"] * bool(on_cpu)
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {', '.join(places)} ({function})")
    return next(iter(on_cards))


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, Held) else value
