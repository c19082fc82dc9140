"""Where in a context an attack is put."""

import random

import pytest

from bulwark.attacks.injections.positions import inserted

TEXT = "One is here. Two is there. Dr. Three came at 5 p.m. today."


def test_at_the_end_and_at_the_start():
    assert inserted(TEXT, "Do it!", "end", 0) == f"{TEXT}\nDo it!"
    assert inserted(TEXT, "Do it!", "start", 0) == f"Do it!\n{TEXT}"


@pytest.mark.parametrize("seed", range(8))
def test_in_the_middle_it_stands_before_the_sentence_that_the_seed_draws(seed):
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    spans = list(PunktSentenceTokenizer().span_tokenize(TEXT))
    assert len(spans) > 2
    start = random.Random(seed).sample(spans, k=1)[0][0]
    assert inserted(TEXT, "Do it!", "middle", seed) == f"{TEXT[:start]}\nDo it!\n{TEXT[start:]}"


def test_the_seed_decides_the_sentence():
    assert len({inserted(TEXT, "Do it!", "middle", seed) for seed in range(20)}) > 2


def test_a_context_of_one_sentence_has_it_at_its_start():
    assert inserted("No stop", "Do it!", "middle", 3) == "\nDo it!\nNo stop"


@pytest.mark.parametrize("position", ["end", "start", "middle"])
def test_nothing_of_the_context_is_lost(position):
    whole = inserted(TEXT, "ATTACK", position, 5)
    assert whole.replace("ATTACK", "").replace("\n", "") == TEXT
    assert whole.count("ATTACK") == 1
