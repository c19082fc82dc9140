"""Which records become training examples, and what is left out of them."""

from __future__ import annotations

import logging

import pytest
from tiny_tokenizers import tiny_tokenizer

from bulwark.data.records import Conversation, Turn
from bulwark.models.open import prompt_limit
from bulwark.prompts.builder import IGNORED, PromptBuilder
from bulwark.training.finetuning import examples_of

ASK = Turn(role="instruction", text="Name the part.")
RIGHT = Turn(role="response", text="The vote.")
WRONG = Turn(role="response", text="Debate.", learn=False)


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_answers_that_are_not_to_be_learned_give_no_example_where_nothing_else_is(loss_on):
    builder = PromptBuilder(tiny_tokenizer("chatml"), "chat", 1000)
    records = [
        Conversation(id=name, turns=turns)
        for name, turns in {"right": (ASK, RIGHT), "wrong": (ASK, WRONG), "both": (ASK, WRONG, ASK, RIGHT)}.items()
    ]
    taken = examples_of(records, builder, loss_on)
    kept = ["right", "both"] if loss_on == "response" else ["right", "wrong", "both"]
    assert [record.id for record in taken.records] == kept
    assert (len(taken.prompts), taken.left_out, taken.truncated) == (len(kept), 3 - len(kept), 0)
    assert all(set(prompt.labels) != {IGNORED} for prompt in taken.prompts)


def test_examples_are_not_longer_than_the_model_reads(caplog):
    builder = PromptBuilder(tiny_tokenizer("chatml"), "chat", 1000)
    long = Conversation(id="long", turns=(ASK, Turn(role="data", text="word " * 200), RIGHT))
    with caplog.at_level(logging.WARNING):
        builder.max_tokens = prompt_limit(64, 512, 0, "the model")
    taken = examples_of([long], builder)
    assert (len(taken.prompts[0].ids), taken.truncated) == (64, 1)
    assert "reads 64 tokens" in caplog.text
