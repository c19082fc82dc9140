"""Reading and changing what modules of a model put out, or are given, while it computes: capture, add, replace.

Each is a context manager over named modules. The name is whatever the caller knows a module by (a layer key, a path),
and is handed to its function with the hidden states. Hooks see each other's changes in the order in which the contexts
were entered, gradients flow through them, and leaving a context removes its hooks, by an exception too.

A decoder block puts out its hidden states [batch, seq, hidden] alone or, in some families, first in a tuple; and is
given them as its first argument or by keyword. `hidden_of`, `with_hidden` and `_given` are the only places that know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

Name = TypeVar("Name")


def hidden_of(output: Tensor | tuple) -> Tensor:
    """The hidden states in what a module puts out."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Tensor | tuple, hidden: Tensor) -> Tensor | tuple:
    """What a module puts out, with `hidden` in the place of its hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def plus(hidden: Tensor, vector: Tensor, strength: float | Tensor, mask: Tensor) -> Tensor:
    """h + s·m·v: the product in float32, the sum in h's dtype.

    hidden: [batch, seq, hidden]; vector: [hidden], float32; strength: a number or [batch, 1, 1]; mask: [batch, seq].
    """
    weights = mask.to(hidden.device).float().unsqueeze(-1)
    return hidden + (strength * weights * vector.to(hidden.device)).to(hidden.dtype)


def capture(
    modules: Mapping[Name, nn.Module], see: Callable[[Name, Tensor], None], *, first: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Within it, `see(name, hidden)` is called with the hidden states that each module puts out.

    first: before hooks that were there already, so that `hidden` is what the module itself computes.
    """

    def hook(name: Name, _: nn.Module, __: tuple, output: Tensor | tuple) -> None:
        see(name, hidden_of(output))

    return _hooked(part.register_forward_hook(partial(hook, name), prepend=first) for name, part in modules.items())


def capture_inputs(
    modules: Mapping[Name, nn.Module], see: Callable[[Name, Tensor], None]
) -> contextlib.AbstractContextManager[None]:
    """Within it, `see(name, inputs)` is called with the hidden states that each module is given."""

    def hook(name: Name, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        see(name, _given(args, kwargs))

    return _hooked_inputs(modules, hook)


def add(
    modules: Mapping[Name, nn.Module],
    vectors: Mapping[Name, Tensor],
    strength: Callable[[Name, Tensor], float | Tensor],
    mask: Callable[[Tensor], Tensor],
) -> contextlib.AbstractContextManager[None]:
    """Within it each module puts out h + s·m·v, see `plus`, with s = strength(name, h) and m = mask(h)."""
    return replace(modules, lambda name, h: plus(h, vectors[name], strength(name, h), mask(h)))


def replace(
    modules: Mapping[Name, nn.Module], change: Callable[[Name, Tensor], Tensor]
) -> contextlib.AbstractContextManager[None]:
    """Within it each module puts out `change(name, hidden)` in the place of its hidden states."""

    def hook(name: Name, _: nn.Module, __: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return with_hidden(output, change(name, hidden_of(output)))

    return _hooked(part.register_forward_hook(partial(hook, name)) for name, part in modules.items())


def replace_inputs(
    modules: Mapping[Name, nn.Module], change: Callable[[Name, Tensor], Tensor]
) -> contextlib.AbstractContextManager[None]:
    """Within it each module is given `change(name, inputs)` in the place of its hidden states."""

    def hook(name: Name, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        changed = change(name, _given(args, kwargs))
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return _hooked_inputs(modules, hook)


def _hooked_inputs(modules: Mapping[Name, nn.Module], hook: Callable) -> contextlib.AbstractContextManager[None]:
    return _hooked(
        part.register_forward_pre_hook(partial(hook, name), with_kwargs=True) for name, part in modules.items()
    )


@contextlib.contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Within it the hooks of these handles are in place; `handles` registers them as it is read."""
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _given(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
