"""Reading a model out: a pass in which its output embedding gives not logits but what a `Loss` makes of them.

The output embedding is taken out of the pass, and in its place stands a module that keeps what it is given. When the
pass has ended, the output embedding itself is called, inside the model's call, once, with a forward that works in
chunks. So the hooks of an engine see what they always see: its weight is gathered once, whatever the number of chunks,
and the values are an output of the model, on which an engine waits for the backward pass to begin.

What a model does with its logits afterwards (`Form`) is found by letting it do that to known numbers. Where a model's
output embedding is not linear, is not called as a module, or is followed by something that `Form` cannot say, the pass
is the plain one, with all logits, and the values are the same. So it is where one process has few of them
(`chunks.few`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bulwark.models.readout.chunks import few, values_of
from bulwark.models.readout.losses import Each, Form, Loss

_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # in configurations: Cohere, Granite, Falcon-H1
_CAPS = ("final_logit_softcapping",)  # Gemma
_FORMS: WeakKeyDictionary[nn.Module, tuple[list[float], Form | None]] = WeakKeyDictionary()
"""By output embedding: the configuration's numbers when its form was looked for, and the form; None where none fits."""

Term = tuple[nn.Linear, Tensor]
"""A linear module without more to it than its weight and bias, and what it is given, [n, k]."""


@dataclass(frozen=True)
class Readout:
    """Positions of a pass that have not gone through the output embedding: the logits are form(Σ module(x))."""

    terms: Sequence[Term]
    form: Form

    def values(self, loss: Loss, weights: Tensor | float | None = None) -> Tensor:
        """See `chunks.values_of`."""

        def work(given: Sequence[Tensor]) -> Tensor:
            modules = [module for module, _ in self.terms]
            return values_of(loss, self.form, given, [m.weight for m in modules], modules[0].bias, weights)

        return _within(self.terms, work)

    def beside(self, work: Callable[[Callable[[slice], Tensor]], Tensor]) -> Tensor:
        """Do `work`, which is given what computes the logits of a part of the positions, without gradients."""
        done: list[Tensor] = []
        learning = torch.is_grad_enabled()

        def within(given: Sequence[Tensor]) -> Tensor:
            first, bias = self.terms[0][0], self.terms[0][0].bias

            @torch.no_grad()
            def logits(rows: slice) -> Tensor:
                raw = nn.functional.linear(given[0][rows], first.weight, bias)
                for (module, _), x in zip(self.terms[1:], given[1:], strict=True):
                    raw.addmm_(x[rows], module.weight.T)
                return self.form(raw)

            with torch.set_grad_enabled(learning):
                done.append(work(logits))
            return given[0].new_empty(0)  # an engine takes what a module returns for a part of the backward pass

        with torch.no_grad():
            _within(self.terms, within)
        return done[0]


class Beside(Each):
    """A function of logits [m, vocabulary] and of those that another pass, without gradients, has there.

    other: that pass, from `unread`.
    """

    def __init__(self, of: Callable[[Tensor, Tensor], Tensor], other: Readout | Tensor) -> None:
        super().__init__(lambda logits, rows: of(logits, self._logits(rows)))
        self._other = other
        self._logits: Callable[[slice], Tensor] = lambda rows: other[rows]

    def around(self, work: Callable[[], Tensor]) -> Tensor:
        if isinstance(self._other, Tensor):
            return work()

        def with_logits(logits: Callable[[slice], Tensor]) -> Tensor:
            self._logits = logits
            return work()

        return self._other.beside(with_logits)


def read(
    model: nn.Module,
    inputs: dict[str, Any],
    positions: Tensor,
    loss: Loss,
    weights: Tensor | float | None = None,
    **options: Any,
) -> Any:
    """What a pass of `model` (or of the engine around it) returns, with `loss` in the place of its logits.

    positions: [n], where in the flattened [batch·seq]. weights: of each in their sum, [n], or one number; None for the
    single values [n]. options: others of the model's forward.
    """
    head = output_embedding(model)
    form, hopeless = _known_form(model, head)
    if not hopeless and not _plain_will_do(head, positions):
        stand = _Stand(head, positions, form, lambda unread: loss.around(lambda: unread.values(loss, weights)))
        output = stand.passed(model, **inputs, **options)
        if output is not None:
            return output
    output = plainly(model, inputs, positions, **options)
    values = loss.around(lambda: loss.values(output.logits, slice(0, len(positions))))
    output.logits = values if weights is None else (values * weights).sum()
    return output


@torch.no_grad()
def unread(model: nn.Module, inputs: dict[str, Any], positions: Tensor, **options: Any) -> Readout | Tensor:
    """A pass that ends before the output embedding, at `positions` [n]; its logits there where it cannot."""
    head, found = output_embedding(model), []
    form, hopeless = _known_form(model, head)
    if not hopeless and not _plain_will_do(head, positions):

        def keep(unread: Readout) -> Tensor:
            found.append(unread)
            return positions.new_empty(0)

        _Stand(head, positions, form, keep).passed(model, **inputs, **options)
    return found[0] if found else plainly(model, inputs, positions, **options).logits


def plainly(model: nn.Module, inputs: dict[str, Any], positions: Tensor, **options: Any) -> Any:
    """What a pass returns, with logits [n, vocabulary] only at `positions` [n] of the flattened [batch·seq].

    Only these go through the output embedding. Whatever the model does with hidden states before and with logits after
    it stays.
    """

    def only_these(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = given
        return (hidden.flatten(0, 1).index_select(0, positions), *rest)

    hook = output_embedding(model).register_forward_pre_hook(only_these)
    try:
        output = model(**inputs, **options)
    finally:
        hook.remove()
    if output.logits.dim() == 3:  # the output embedding's weight was used, but not its module
        output.logits = output.logits.flatten(0, 1).index_select(0, positions)
    return output


def output_embedding(model: nn.Module) -> nn.Module:
    """That of a model, or of the model in an engine."""
    return getattr(model, "module", model).get_output_embeddings()


def read_hidden(model: nn.Module, hidden: Tensor, loss: Loss) -> Tensor:
    """`loss` of what the output embedding alone makes of hidden states [n, hidden size], [n]."""
    head = output_embedding(model)
    terms = _terms(head, hidden)
    if terms is None or _plain_will_do(head, hidden):
        return loss.values(head(hidden), slice(0, len(hidden)))
    return Readout(terms, Form(1.0, None, hidden.dtype)).values(loss)


class _Stand(nn.Module):
    """Stands in the output embedding's place for one pass; everything but `forward` is the output embedding's.

    form: None where it has to be found. then: what takes the place of the logits.
    """

    def __init__(
        self, head: nn.Module, positions: Tensor, form: Form | None, then: Callable[[Readout], Tensor]
    ) -> None:
        super().__init__()
        # not as parts of a module
        self.__dict__.update(head=head, positions=positions, form=form, then=then, given=[], probe=None, done=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["head"], name)

    def forward(self, hidden: Tensor) -> Tensor:
        self.given.append(hidden)
        vocabulary = self.head.out_features
        if self.form is not None:
            return hidden.new_empty(1, 0, vocabulary)
        probe = torch.linspace(-100.0, 100.0, vocabulary, device=hidden.device).to(hidden.dtype)
        self.__dict__["probe"] = probe
        return probe.clone().view(1, 1, -1)

    def passed(self, model: nn.Module, **inputs: Any) -> Any:
        """What a pass of the model returns with this module in place; None if it could not be read out so."""
        module = getattr(model, "module", model)
        found = [(part, key) for part in module.modules() for key, child in part._modules.items() if child is self.head]
        hook = module.register_forward_hook(self._finish)
        for part, key in found:
            part._modules[key] = self
        try:
            output = model(**inputs)
        finally:
            hook.remove()
            for part, key in found:
                part._modules[key] = self.head
        return output if self.done else None

    def _finish(self, module: nn.Module, _: Any, output: Any) -> Any:
        form, once = self.form, len(self.given) == 1
        if form is None:
            form = _form(self.probe, output.logits, module.config) if once else None
            _FORMS[self.head] = _numbers(module.config, _SCALES + _CAPS), form
        if form is not None and once:
            hidden = self.given[0].flatten(0, 1).index_select(0, self.positions)
            output.logits = self.then(Readout(_terms(self.head, hidden), form))
            self.__dict__["done"] = True
        return output


def _plain_will_do(head: nn.Module, at: Tensor) -> bool:
    """Whether all logits at these positions are so few that chunks save nothing. at: [positions, …].

    Ranks have to go the same way whatever is in their batches, since an engine gathers and reduces with all of them:
    so several always go in chunks.
    """
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return not several and few(len(at), head.out_features, at.device)


def _known_form(model: nn.Module, head: nn.Module) -> tuple[Form | None, bool]:
    """The form that was found before, None if it has to be looked for; and whether there is certainly none."""
    if _terms(head, None) is None:
        return None, True
    numbers, form = _FORMS.get(head, (None, None))
    if numbers != _numbers(getattr(model, "module", model).config, _SCALES + _CAPS):
        return None, False
    return form, form is None


def _form(probe: Tensor, logits: Any, config: Any) -> Form | None:
    """What a model has made of `probe` [vocabulary], by the numbers in its configuration; None if it is none of these.

    logits: what it has put out.
    """
    if not isinstance(logits, Tensor) or logits.numel() != probe.numel():
        return None
    found = logits.detach().flatten()
    scales = [factor for number in _numbers(config, _SCALES) for factor in (number, 1.0 / number)]
    tolerance = 4 * torch.finfo(probe.dtype).eps
    for cap in (None, *_numbers(config, _CAPS)):
        for scale in (1.0, *scales):
            form = Form(scale, cap, found.dtype)
            if torch.allclose(form(probe).double(), found.double(), rtol=tolerance, atol=tolerance):
                return form
    return None


def _numbers(config: Any, names: Sequence[str]) -> list[float]:
    """The positive numbers that a configuration, or its part for text, has under these names."""
    parts = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]
    values = [getattr(part, name, None) for part in parts for name in names]
    return [float(value) for value in values if isinstance(value, int | float) and value > 0]


def _terms(head: nn.Module, hidden: Tensor | None) -> list[Term] | None:
    """The linear modules whose results add up to the output embedding's, and what each is given; None without such.

    hidden: [n, hidden size], or None to ask whether there are. Besides a plain linear module: one with LoRA adapters of
    PEFT, (W + s·B·A)x = Wx + B(s·Ax).
    """
    if _plain(head):
        return [(head, hidden)]
    if not type(head).__module__.startswith("peft.tuners.lora") or not hasattr(head, "base_layer"):
        return None
    base, active = head.base_layer, [name for name in head.active_adapters if name in head.lora_A]
    if head.merged or head.lora_variant or not _plain(base):
        return None
    if head.disable_adapters:
        return [(base, hidden)]
    terms = [(base, hidden)]
    for name in active:
        down, up = head.lora_A[name], head.lora_B[name]
        if not (_plain(down) and _plain(up)) or up.bias is not None or up.weight.dtype != base.weight.dtype:
            return None
        if hidden is not None:
            terms.append((up, down(head.lora_dropout[name](hidden)) * head.scaling[name]))
    return terms


def _plain(module: nn.Module) -> bool:
    """Whether a module computes Wx + b and nothing else. An engine's hooks, which only gather weights, may be on it."""
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks
    return "forward" not in module.__dict__ and (not hooked or hasattr(module.weight, "ds_id"))


def _within(terms: Sequence[Term], work: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Call the modules within one another, so that all their weights are there, and do `work` in the innermost.

    work: is given what the modules are called with.
    """
    given: list[Tensor] = []

    def call(number: int) -> Tensor:
        if number == len(terms):
            return work(given)
        module, x = terms[number]
        own = module.__dict__.get("forward")  # the same module may be at work further out

        def forward(hooked: Tensor) -> Tensor:
            given.append(hooked)
            return call(number + 1)

        module.forward = forward
        try:
            return module(x)
        finally:
            module.__dict__.pop("forward")
            if own is not None:
                module.forward = own

    return call(0)
