"""The text of an answer in pieces: nothing is given that may still change, and nothing is lost."""

import random

import pytest
from tiny_tokenizers import SENTENCES, tiny_tokenizer

from bulwark.serving.pieces import Pieces

TEXTS = [*SENTENCES, "  Été\n\n naïve 中文 🙂 …\t end  ", "", "   "]


def given(tokenizer, ids, stops=()):
    """The pieces of a text, and whether it was stopped."""
    pieces, found = Pieces(tokenizer, stops), []
    for token in ids:
        text, stopped = pieces.add(token)
        found.append(text)
        if stopped:
            return found, True
    return [*found, pieces.rest()], False


@pytest.mark.parametrize("kind", ["bytes", "marks", "words"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text_as_the_tokenizer_decodes_it(kind, text):
    tokenizer = tiny_tokenizer("chatml" if kind != "marks" else "llama2", kind=kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids.insert(len(ids) // 2, tokenizer.eos_token_id)  # a special token in the middle says nothing
    pieces, stopped = given(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert not stopped


def test_a_character_is_given_when_it_is_whole():
    tokenizer = tiny_tokenizer("chatml")
    ids = tokenizer.encode("a🙂b", add_special_tokens=False)
    pieces, _ = given(tokenizer, ids)
    assert len(ids) > 4
    assert [piece for piece in pieces if piece] == ["a", "🙂", "b"]


@pytest.mark.parametrize(
    ("text", "stops", "expected", "stopped"),
    [
        ("one two three", ("two",), "one", True),
        ("one two three", ("twx", "thr"), "one two", True),
        ("one two", ("two three",), "one two", False),  # only its beginning came
        ("one\n\ntwo", ("\n\n",), "one", True),
        ("aab", ("ab",), "a", True),
        ("stop", ("stop",), "", True),
        ("x END y STOP", ("STOP", "END"), "x", True),
    ],
)
def test_an_answer_ends_before_the_first_stop(text, stops, expected, stopped):
    tokenizer = tiny_tokenizer("chatml")
    pieces, ended = given(tokenizer, tokenizer.encode(text, add_special_tokens=False), stops)
    assert ("".join(pieces), ended) == (expected, stopped)


def test_nothing_of_a_stop_is_ever_given():
    tokenizer, rng = tiny_tokenizer("chatml"), random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("ab <>") for _ in range(30))
        stop = "".join(rng.choice("ab <>") for _ in range(rng.randint(1, 4)))
        pieces, stopped = given(tokenizer, tokenizer.encode(text, add_special_tokens=False), (stop,))
        assert "".join(pieces) == (text[: text.find(stop)] if stop in text else text).strip()
        assert stopped == (stop in text)


def test_what_was_given_is_not_given_again():
    tokenizer = tiny_tokenizer("chatml")
    ids = tokenizer.encode(SENTENCES[3], add_special_tokens=False)
    pieces = Pieces(tokenizer)
    first = "".join(pieces.add(token)[0] for token in ids[:10])
    pieces.begin()
    again = "".join(pieces.add(token)[0] for token in ids) + pieces.rest()
    assert first + again == SENTENCES[3]
