"""Hidden states at chosen tokens: transformers' own, and never more of them than a batch's."""

import gc
import weakref

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.interpretability import states
from bulwark.prompts.builder import PromptBuilder

BUILDER = PromptBuilder(tiny_tokenizer("chatml"), "chat", V)


def prompts(count: int):
    texts = [("name it", f"the cup {'is red ' * (number % 3)}{number}") for number in range(count)]
    return [BUILDER.prompt((Turn(role="instruction", text=a), Turn(role="data", text=b))) for a, b in texts]


def taken(model, asked, tokens, **options):
    found = {}

    def see(batch):
        for row, vectors in batch.states.items():
            for item, vector in zip(batch.items, vectors, strict=True):
                found[item, row] = vector

    states.over_tokens(model, asked, tokens, see, BUILDER.pad_id, **options)
    return found


def test_they_are_what_transformers_calls_hidden_states():
    model, asked = tiny_aside(), prompts(5)
    tokens = [(number, place) for number in (4, 0, 3) for place in (2, 0, len(asked[number].ids) - 1)]
    found = taken(model, asked, tokens, token_budget=60)
    assert set(found) == {(item, row) for item in range(len(tokens)) for row in range(3)}
    for item, (number, place) in enumerate(tokens):
        ids = torch.tensor([asked[number].ids])
        with torch.inference_mode():
            hidden = model.model(input_ids=ids, output_hidden_states=True).hidden_states
        for row in range(3):
            torch.testing.assert_close(found[item, row], hidden[row][0, place], rtol=1e-4, atol=1e-5)


def test_only_the_rows_that_are_asked_for_are_taken():
    assert {row for _, row in taken(tiny_aside(), prompts(2), [(0, 1), (1, 1)], rows=[0, 2])} == {0, 2}


@pytest.mark.parametrize("count", [8, 64])
def test_memory_is_bounded_by_the_batch(count, monkeypatch):
    """Of hidden states never more is alive than one batch's: of whole ones none, of chosen ones a batch's tokens."""
    model, asked = tiny_aside(), prompts(count)
    tokens = [(number, place) for number, prompt in enumerate(asked) for place in range(len(prompt.ids))]
    budget, whole, chosen, most = 90, [], [], {"whole": 0, "chosen": 0}

    watching = states.watching

    def watched(model, keep):
        def see(row, hidden):
            whole.append(weakref.ref(hidden))
            keep(row, hidden)

        return watching(model, see)

    def see(batch):
        assert len(batch.items) <= budget
        chosen.extend(weakref.ref(vectors) for vectors in batch.states.values())
        gc.collect()
        most["whole"] = max(most["whole"], sum(ref() is not None for ref in whole))
        most["chosen"] = max(most["chosen"], sum(len(t) for ref in chosen if (t := ref()) is not None))

    monkeypatch.setattr(states, "watching", watched)
    states.over_tokens(model, asked, tokens, see, BUILDER.pad_id, token_budget=budget)
    assert len(whole) > 3 * (count * 20 // budget) // 2, "several batches"
    assert most["whole"] == 0
    assert most["chosen"] <= 3 * budget  # rows 0, 1, 2
