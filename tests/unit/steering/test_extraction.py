"""Extraction of trait vectors: running sums against whole hidden states, for every family of models."""

import itertools

import pytest
import torch
from tiny_causal_models import FAMILIES, V, tiny_model, tokens
from training_samples import examples

from bulwark.models import embeddings
from bulwark.prompts.builder import IGNORED
from bulwark.steering.vectors.extraction import Example, examples_of, pooled_sums, split_half_cosines
from bulwark.steering.vectors.pairs import Pair, Side

PAD = 0


@pytest.fixture(scope="module")
def answers():
    """Twelve answers of different lengths, three in each half of each side."""
    places = itertools.cycle([(0, 0), (1, 0), (0, 1), (1, 1)])
    return [Example(prompt, *place) for prompt, place in zip(examples(12), places, strict=False)]


def model_of(family):
    model = tiny_model(family)
    embeddings.install(model)
    return model


def whole_hidden_states(model, ids):
    """h_0 … h_N [N+1, seq, hidden] of one row, the last one before the final norm, found without hooks on blocks."""
    norm = [part for name, part in model.named_modules() if name.rsplit(".", 1)[-1] in ("norm", "final_layer_norm")][-1]
    last = []
    handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    return torch.stack([*states[:-1], last[0]])[:, 0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_running_sums_are_those_of_whole_hidden_states(family, answers):
    model = model_of(family)
    sums, numbers = pooled_sums(model, answers, PAD, token_budget=40)
    expected = torch.zeros_like(sums)
    for answer in answers:
        states = whole_hidden_states(model, answer.prompt.ids)
        response = torch.tensor([label != IGNORED for label in answer.prompt.labels])
        start = int(response.nonzero()[0])
        pooled = (states[:, response].mean(1), states[:, :start].mean(1), states[:, start - 1])
        for place, one in enumerate(pooled):
            expected[place, answer.side, answer.half] += one
    assert numbers.tolist() == [[3, 3], [3, 3]]
    assert torch.allclose(sums, expected, atol=1e-4)


def test_how_answers_are_batched_does_not_matter(answers):
    model = model_of("llama")
    one_by_one, numbers = pooled_sums(model, answers, PAD, token_budget=1)
    together, same = pooled_sums(model, answers[::-1], PAD)
    assert torch.allclose(one_by_one, together, atol=1e-5)
    assert torch.equal(numbers, same)


def test_memory_that_runs_out_halves_the_batches(answers, monkeypatch):
    model = model_of("llama")
    expected, _ = pooled_sums(model, answers, PAD)
    inner, widths = model.base_model.forward, []

    def forward(*args, **kwargs):
        widths.append(len(kwargs["input_ids"]))
        if widths[-1] > 3:
            raise torch.OutOfMemoryError("out of memory")
        return inner(*args, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", forward)
    found, numbers = pooled_sums(model, answers, PAD)
    assert max(widths) == 12
    assert int(numbers.sum()) == 12
    assert torch.allclose(found, expected, atol=1e-5)


def test_no_hook_stays_behind(answers):
    model = model_of("llama")
    pooled_sums(model, answers[:2], PAD)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert model(tokens(1, 4)[0] % V).logits.shape == (1, 4, V)


class Builder:
    def example(self, turns):
        return " | ".join(turn.text for turn in turns)


def pair(number, question):
    sides = {
        name: Side(system=name, response=f"{name} {number}", tokens=1, finish="stop", truncated=False)
        for name in ("positive", "negative")
    }
    return Pair(id=str(number), trait="rude", question=question, rollout=0, **sides)


def test_no_question_is_in_both_halves():
    pairs = [pair(n, f"question {n // 2}") for n in range(6)]
    found = examples_of(pairs, Builder())
    assert [example.half for example in found] == [0] * 4 + [1] * 4 + [0] * 4
    assert [example.side for example in found] == [0, 1] * 6
    assert found[0].prompt == "positive | question 0 | positive 0"
    alone = examples_of([pair(n, "the only one") for n in range(3)], Builder())
    assert [example.half for example in alone[::2]] == [0, 1, 0]


def test_split_half_cosine():
    numbers = torch.full((2, 2), 2.0)
    sums = torch.zeros(2, 2, 3, 4)
    sums[0, 0, 0], sums[0, 1, 0] = torch.eye(4)[0], torch.eye(4)[0] * 5
    sums[0, 0, 1], sums[1, 1, 1] = torch.eye(4)[0], torch.eye(4)[0]
    assert split_half_cosines(sums.double(), numbers) == [pytest.approx(1.0), pytest.approx(-1.0), None]
    assert split_half_cosines(sums.double(), torch.tensor([[2.0, 0.0], [2.0, 2.0]])) == [None] * 3
