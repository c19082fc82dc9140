"""Examples that differ in their last response: made together, they are what they are one by one."""

from __future__ import annotations

import itertools

import pytest
from tiny_tokenizers import FAMILIES, SENTENCES, tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.prompts.builder import PromptBuilder

OPTIONS = ("A", " the part", "One word and another.\n", "1.5", "e\u0301", "a " * 40)
SEPARATED = ("llama3", "chatml", "chatml_thinking", "mistral", "gemma")


def turns_of(text: str, exchanges: int = 1) -> list[Turn]:
    shown = [Turn(role="instruction", text="Say more."), Turn(role="response", text=SENTENCES[1])] * (exchanges - 1)
    return [*shown, Turn(role="instruction", text=text), Turn(role="data", text=SENTENCES[0])]


def responses(*texts: str) -> list[Turn]:
    return [Turn(role="response", text=text) for text in texts]


@pytest.mark.parametrize(
    ("family", "kind", "bos", "exchanges"),
    [
        *itertools.product(FAMILIES, ("bytes", "pieces"), (False, True), (1,)),
        *itertools.product(FAMILIES, ("bytes",), (True,), (2,)),
    ],
)
def test_examples_together_are_those_one_by_one(family, kind, bos, exchanges):
    tokenizer = tiny_tokenizer(family, automatic_bos=bos, kind=kind)
    builder = PromptBuilder(tokenizer, "chat", len(tokenizer))
    end = FAMILIES[family][4]
    for asked in ("Which is it?", f"Which {end} is it?"):
        for options in (OPTIONS, OPTIONS[::-1], (f"a {end} b", "A", f"{end}", "B")):
            turns = turns_of(asked, exchanges)
            together = builder.examples(turns, responses(*options))
            assert together == [builder.example([*turns, response]) for response in responses(*options)]


@pytest.mark.parametrize("family", SEPARATED)
def test_what_options_share_is_tokenised_once(family, monkeypatch):
    tokenizer = tiny_tokenizer(family)
    builder = PromptBuilder(tokenizer, "chat", len(tokenizer))
    read = []
    encoder = builder._text_tokenizer._encoder

    class Watched:
        def encode(self, text, **options):
            read.append(len(text))
            return encoder.encode(text, **options)

    monkeypatch.setattr(builder._text_tokenizer, "_encoder", Watched())
    builder.examples(turns_of("Which of these is it? " * 20), responses("A", "B", "C", "D"))
    whole, *rest = read
    assert len(rest) == 3
    assert max(rest) < whole / 5


def test_limits_hold_for_each_example():
    tokenizer = tiny_tokenizer("chatml")
    turns, given = turns_of("Which is it? " * 6), responses("A", "a much longer answer " * 5, "B")
    longest = len(PromptBuilder(tokenizer, "chat", len(tokenizer)).example([*turns, given[0]]).ids)
    for limit in (longest + 2, longest - 10):
        builder = PromptBuilder(tokenizer, "chat", len(tokenizer), max_tokens=limit)
        together = builder.examples(turns, given)
        assert together == [builder.example([*turns, response]) for response in given]
        assert any(one.truncated for one in together)
