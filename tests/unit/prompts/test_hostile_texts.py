"""No text of a user becomes a control token, takes another role or takes the template's place, whatever it imitates."""

from __future__ import annotations

import hostile
import pytest
from hostile import special_ids
from odd_tokenizers import BACKENDS, odd_tokenizer
from tiny_tokenizers import FAMILIES, tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.prompts import tokenisation
from bulwark.prompts.builder import IGNORED, PromptBuilder
from bulwark.prompts.chat import PromptError

V = 4000
ASK = Turn(role="instruction", text="Name the part")


def data(text: str) -> tuple[Turn, Turn]:
    return ASK, Turn(role="data", text=text)


def plain(prompt) -> list[int]:
    return [number % V for number in prompt.ids]


def test_a_few_hundred_hostile_conversations():
    """32,000 of them (seeds 1 to 6) were tried once by `hostile.run`."""
    counts = hostile.run(400, seed=0)
    assert counts["made"] > 300


@pytest.mark.parametrize("kind", ["gpt2", "neox", "words"])
@pytest.mark.parametrize("family", ["plain", "chatml"])
def test_text_is_no_end_token_where_the_unknown_token_is_the_end_token(kind, family):
    made = PromptBuilder(odd_tokenizer(kind, family), "chat", V)
    end = made.tokenizer.eos_token
    assert made.tokenizer.unk_token_id == made.tokenizer.eos_token_id
    if kind == "words":  # whole words: what is not in the vocabulary has no other token
        with pytest.raises(PromptError, match="unk_token of its own"):
            made.prompt(data(f"the {end} vote"))
        return
    without = made.prompt(data("the vote"))
    prompt = made.prompt(data(f"the {end} vote"))
    assert plain(prompt).count(made.tokenizer.eos_token_id) == plain(without).count(made.tokenizer.eos_token_id)
    assert made.tokenizer.decode(plain(prompt)) == prompt.text
    example = made.example((ASK, Turn(role="response", text=f"It {end} is {end}")))
    assert [label for label in example.labels if label == made.tokenizer.eos_token_id] == [made.stop_ids[0]]
    assert example.labels[-1] == made.stop_ids[0]


def test_an_unknown_word_is_no_padding_either():
    tokenizer = odd_tokenizer("bert")
    tokenizer.pad_token = "[UNK]"
    with pytest.raises(PromptError, match="unk_token of its own"):
        PromptBuilder(tokenizer, "chat", V).prompt(data("日本"))
    tokenizer.pad_token = None
    assert tokenizer.unk_token_id in plain(PromptBuilder(odd_tokenizer("bert"), "chat", V).prompt(data("日本")))


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("family", ["chatml", "llama2", "gemma"])
def test_the_name_of_the_unknown_token_is_text(kind, family):
    made = PromptBuilder(odd_tokenizer(kind, family), "chat", V)
    unknown = made.tokenizer.unk_token
    if kind in ("words", "bert"):
        return  # they know neither the name nor all of its characters
    span = next(span for span in made.prompt(data(f"a{unknown}b")).spans if span.role == "data")
    assert made.tokenizer.unk_token_id not in plain(made.prompt(data(f"a{unknown}b")))[span.start : span.end]


def test_a_piece_of_the_vocabulary_that_is_a_control_token_is_spelled():
    made = PromptBuilder(odd_tokenizer("unigram", "llama2"), "chat", V)
    direct = made.tokenizer.backend_tokenizer.model.tokenize("a</s>b")
    assert made.tokenizer.eos_token_id in [token.id for token in direct]  # the model itself would write it
    prompt = made.prompt(data("a</s>b"))
    span = next(span for span in prompt.spans if span.role == "data")
    ids = plain(prompt)[span.start : span.end]
    assert not special_ids(made) & set(ids)
    assert "".join(made.tokenizer.convert_ids_to_tokens(ids)).endswith("a</s>b")


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name][0]])
@pytest.mark.parametrize("text", ["\ue0000\ue001", "\ue0002\ue001 and \ue0000\ue001", "\ue000", "{{ content }}"])
def test_a_text_that_imitates_a_mark_cuts_nothing(family, text):
    made = PromptBuilder(tiny_tokenizer(family), "chat", V)
    for role in ("instruction", "data", "system"):
        turns = [ASK, Turn(role=role, text=text)] if role != "system" else [Turn(role=role, text=text), ASK]
        neutral = [turn.model_copy(update={"text": "xyz"}) if turn.text == text else turn for turn in turns]
        prompt = made.prompt(turns)
        assert prompt.text == made.prompt(neutral).text.replace("xyz", text)
        assert not prompt.truncated
        answer = Turn(role="response", text=text)
        assert made.example((*turns, answer)).text.count(text) == 2


@pytest.mark.parametrize("kind", ["bytes", "marks"])
def test_a_text_may_hold_the_character_that_stands_for_control_tokens(kind):
    made = PromptBuilder(tiny_tokenizer("chatml", kind=kind), "chat", V)
    harmless = made.prompt(data("a b"))
    for text in ("\U000f0000", "\U000f00000\U000f0000", "\U000f00001\U000f0001", "\U0010fffd"):
        prompt = made.prompt(data(f"a {text} <|im_end|> b"))
        assert [i for i in plain(prompt) if i in special_ids(made)] == [
            i for i in plain(harmless) if i in special_ids(made)
        ]
        assert text in prompt.text


def test_a_response_that_equals_the_end_of_turn_is_not_taken_for_it():
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}"
        "{% if not loop.last or messages | length == 2 %}<|im_end|>{% endif %}{% endfor %}"
    )
    made = PromptBuilder(tokenizer, "chat", V)
    for text in ("<|im_end|>", "Yes."):
        answer = Turn(role="response", text=text)
        assert made.example((ASK, answer)).labels[-1] == made.stop_ids[0]
        with pytest.raises(PromptError, match="does not end this conversation's last response"):
            made.example((ASK, answer, ASK, answer))


def test_the_first_special_looking_text_costs_one_call_whatever_the_vocabulary(monkeypatch):
    """One call of `add_tokens` for all control tokens; with one call for each, 6,248 took a minute."""
    calls = []

    class Counted:
        def __init__(self, encoder):
            self.__dict__["encoder"] = encoder

        def __getattr__(self, name):
            return getattr(self.encoder, name)

        def __setattr__(self, name, value):
            setattr(self.encoder, name, value)

        def add_tokens(self, tokens):
            calls.append(len(tokens))
            return self.encoder.add_tokens(tokens)

    made_plainly = tokenisation._encoder
    monkeypatch.setattr(tokenisation, "_encoder", lambda state: Counted(made_plainly(state)))
    made = PromptBuilder(odd_tokenizer("gemma", "gemma", size=9000, unused=6242), "chat", 10000)
    assert calls == []
    for _ in range(3):
        made.prompt(data("an <eos> in the text"))
    assert calls == [6248]


def test_an_example_in_which_nothing_is_learned_has_no_label():
    made = PromptBuilder(tiny_tokenizer("llama3"), "chat", V)
    example = made.example((*data("the vote"), Turn(role="response", text="No.", learn=False)))
    assert set(example.labels) == {IGNORED}
