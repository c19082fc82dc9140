"""Reading and changing what modules put out, whatever form that has."""

from __future__ import annotations

import pytest
import torch
from tiny_causal_models import HIDDEN, tiny_model
from torch import Tensor, nn

from bulwark.models import hooks
from bulwark.models.anatomy import blocks_of, watching

WIDTH = 4


class Doubling(nn.Module):
    """Puts out w·h, alone or first in a tuple, as decoder blocks do."""

    def __init__(self, tuples: bool, weight: float = 2.0) -> None:
        super().__init__()
        self.tuples, self.weight = tuples, nn.Parameter(torch.tensor(weight))

    def forward(self, hidden_states: Tensor, *others: object) -> Tensor | tuple:
        hidden = self.weight * hidden_states
        return (hidden, "cache", *others) if self.tuples else hidden


@pytest.fixture(params=[False, True], ids=["tensor", "tuple"])
def blocks(request) -> dict[str, Doubling]:
    return {"low": Doubling(request.param, 2.0), "high": Doubling(request.param, 3.0)}


def states(rows: int = 2, tokens: int = 3) -> Tensor:
    return torch.arange(1.0, rows * tokens * WIDTH + 1).view(rows, tokens, WIDTH)


def run(blocks: dict[str, Doubling], hidden: Tensor) -> Tensor:
    for block in blocks.values():
        hidden = hooks.hidden_of(block(hidden, "mask"))
    return hidden


def hooks_of(blocks: dict[str, Doubling]) -> int:
    return sum(len(block._forward_hooks) + len(block._forward_pre_hooks) for block in blocks.values())


def test_what_surrounds_the_hidden_states_stays(blocks):
    """Caches and attention weights of a tuple are passed on, and a tensor stays a tensor."""
    block = blocks["low"]
    with hooks.replace({"low": block}, lambda _, hidden: hidden + 1):
        output = block(states(), "mask")
    if block.tuples:
        assert isinstance(output, tuple)
        assert output[1:] == ("cache", "mask")
    else:
        assert isinstance(output, Tensor)
    assert torch.equal(hooks.hidden_of(output), 2 * states() + 1)


def test_capture_sees_each_module_by_its_name_in_the_order_of_the_computation(blocks):
    seen: list[tuple[str, Tensor]] = []
    with hooks.capture(dict(reversed(blocks.items())), lambda name, hidden: seen.append((name, hidden))):
        run(blocks, states())
    assert [name for name, _ in seen] == ["low", "high"]
    assert torch.equal(seen[0][1], 2 * states())
    assert torch.equal(seen[1][1], 6 * states())


def test_later_contexts_see_the_changes_of_earlier_ones_unless_they_come_first(blocks):
    kept: dict[str, Tensor] = {}
    block = {"low": blocks["low"]}
    with (
        hooks.capture(block, lambda _, hidden: kept.update(before=hidden)),
        hooks.replace(block, lambda _, hidden: hidden + 1),
        hooks.replace(block, lambda _, hidden: 10 * hidden),
        hooks.capture(block, lambda _, hidden: kept.update(after=hidden)),
        hooks.capture(block, lambda _, hidden: kept.update(first=hidden), first=True),
    ):
        run(blocks, states())
    assert torch.equal(kept["before"], 2 * states())
    assert torch.equal(kept["after"], 10 * (2 * states() + 1))
    assert torch.equal(kept["first"], 2 * states())


@pytest.mark.parametrize("named", [False, True], ids=["argument", "keyword"])
def test_inputs_are_captured_and_replaced_as_arguments_and_as_keywords(blocks, named):
    def call(block: nn.Module) -> Tensor:
        output = block(hidden_states=states()) if named else block(states(), "mask")
        assert not isinstance(output, tuple) or output[2:] == (() if named else ("mask",))
        return hooks.hidden_of(output)

    seen: dict[str, Tensor] = {}
    block = {"low": blocks["low"]}
    with hooks.replace_inputs(block, lambda _, given: given - 1), hooks.capture_inputs(block, seen.__setitem__):
        assert torch.equal(call(blocks["low"]), 2 * (states() - 1))
    assert torch.equal(seen["low"], states() - 1)


def test_add_is_h_plus_s_m_v_with_each_modules_vector(blocks):
    vectors = {"low": torch.arange(WIDTH).float(), "high": -torch.ones(WIDTH)}
    mask = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]])
    strengths = {"low": torch.tensor([2.0, -3.0]).view(2, 1, 1), "high": 0.25}
    with hooks.add(blocks, vectors, lambda name, _: strengths[name], lambda _: mask):
        found = run(blocks, states())
    low, high = 2 * states(), torch.empty(2, 3, WIDTH)
    for row in range(2):
        for token in range(3):
            low[row, token] += (2.0, -3.0)[row] * mask[row, token] * vectors["low"]
            high[row, token] = 3 * low[row, token] + 0.25 * mask[row, token] * vectors["high"]
    assert torch.equal(found, high)


def test_strength_and_mask_are_given_the_hidden_states_of_their_module(blocks):
    given: list[Tensor] = []

    def mask(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return torch.ones(hidden.shape[:2])

    vectors = dict.fromkeys(blocks, torch.ones(WIDTH))
    with hooks.add(blocks, vectors, lambda _, hidden: hidden.sum(), mask):
        run(blocks, states())
    first = 2 * states()
    assert torch.equal(given[0], first)
    assert torch.equal(given[1], 3 * (first + first.sum()))


def test_the_product_is_computed_in_float32_and_the_sum_in_the_dtype_of_the_hidden_states():
    hidden = torch.zeros(1, 1, 64, dtype=torch.bfloat16)
    vector, mask = torch.linspace(1.0, 2.0, 64), torch.ones(1, 1, dtype=torch.bool)
    found = hooks.plus(hidden, vector, 0.7, mask)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, hidden + (torch.tensor(0.7) * vector).bfloat16())
    assert not torch.equal(found, hidden + torch.tensor(0.7).bfloat16() * vector.bfloat16())


def test_gradients_flow_through_changes_as_through_the_formula(blocks):
    vector, mask = torch.arange(WIDTH).float(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])

    def gradients(loss: Tensor, hidden: Tensor) -> list[Tensor]:
        wanted = [hidden, *(block.weight for block in blocks.values())]
        return list(torch.autograd.grad(loss, wanted))

    hidden = states().requires_grad_()
    with (
        hooks.add(blocks, dict.fromkeys(blocks, vector), lambda _, h: h.norm(), lambda _: mask),
        hooks.replace({"low": blocks["low"]}, lambda _, h: h.square()),
        hooks.replace_inputs({"high": blocks["high"]}, lambda _, h: h.sin()),
    ):
        found = gradients(run(blocks, hidden).cos().sum(), hidden)

    hidden = states().requires_grad_()
    low = blocks["low"].weight * hidden
    low = (low + low.norm() * mask[..., None] * vector).square()
    high = blocks["high"].weight * low.sin()
    high = high + high.norm() * mask[..., None] * vector
    for one, other in zip(found, gradients(high.cos().sum(), hidden), strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_captured_states_are_part_of_the_graph(blocks):
    kept: dict[str, Tensor] = {}
    hidden = states().requires_grad_()
    with hooks.capture(blocks, kept.__setitem__):
        loss = run(blocks, hidden).sum()
    (gradient,) = torch.autograd.grad(loss, kept["low"])
    assert torch.equal(gradient, torch.full_like(gradient, 3.0))


CONTEXTS = {
    "capture": lambda modules, see: hooks.capture(modules, see),
    "capture_inputs": lambda modules, see: hooks.capture_inputs(modules, see),
    "replace": lambda modules, see: hooks.replace(modules, see),
    "replace_inputs": lambda modules, see: hooks.replace_inputs(modules, see),
    "add": lambda modules, see: hooks.add(modules, dict.fromkeys(modules, torch.ones(WIDTH)), see, lambda h: h[..., 0]),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_hooks_are_there_within_the_context_only_whatever_happens(blocks, name):
    context = CONTEXTS[name](blocks, lambda _, hidden: hidden.mean())
    assert hooks_of(blocks) == 0
    with context:
        assert hooks_of(blocks) == 2
    assert hooks_of(blocks) == 0

    def failing(_: str, hidden: Tensor) -> Tensor:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), CONTEXTS[name](blocks, failing):
        run(blocks, states())
    assert hooks_of(blocks) == 0


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_watching_sees_the_whole_residual_stream_of_a_model(family):
    """Rows 0 … N as transformers counts them; its last one has passed the final norm, ours has not."""
    model, ids = tiny_model(family), torch.tensor([[5, 6, 7, 8]])
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
        with watching(model, seen.__setitem__):
            model(ids)
        first = dict(seen)
        model(ids + 1)
    assert seen == first  # the very tensors
    assert list(seen) == list(range(len(blocks_of(model)) + 1))
    for row, hidden in list(seen.items())[:-1]:
        assert hidden.shape == (1, 4, HIDDEN)
        torch.testing.assert_close(hidden, expected[row])
