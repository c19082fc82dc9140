"""What analyses look at: nothing twice, no prompt on both sides, as many tokens of either role."""

from collections import Counter

import pytest

from bulwark.errors import RecordError
from bulwark.interpretability.samples import (
    DATA,
    INSTRUCTION,
    Token,
    balanced,
    drawn,
    held_out,
    matched,
    number_held_out,
)

TOKENS = [
    Token(prompt, place, (prompt * 7 + place * place) % 9, INSTRUCTION if place < 3 else DATA)
    for prompt in range(20)
    for place in range(3 + prompt % 9)
]


def test_records_are_drawn_once_each_and_by_the_seed():
    some = drawn(range(100), 60, 42, "records")
    assert len(set(some)) == 60
    assert some == drawn(range(100), 60, 42, "records") != drawn(range(100), 60, 43, "records")
    assert sorted(drawn(range(9), 9, 0, "records")) == list(range(9))
    with pytest.raises(RecordError, match="has 9 records that can be used; 10 are asked for"):
        drawn(range(9), 10, 0, "records.jsonl")


def test_no_prompt_is_on_both_sides():
    out = held_out(TOKENS, 20, 0.3, seed=0)
    sides = {
        side: {token.prompt for token, own in zip(TOKENS, out, strict=True) if own == side} for side in (False, True)
    }
    assert not sides[True] & sides[False]
    assert (len(sides[True]), len(sides[False])) == (6, 14)


def test_the_published_split_is_of_tokens():
    out = held_out(TOKENS, 20, 0.3, seed=0, as_published=True)
    assert sum(out) == round(0.3 * len(TOKENS))
    sides = {
        side: {token.prompt for token, own in zip(TOKENS, out, strict=True) if own == side} for side in (False, True)
    }
    assert len(sides[True] & sides[False]) > 10
    assert out != held_out(TOKENS, 20, 0.3, seed=1, as_published=True)


@pytest.mark.parametrize(("prompts", "share", "number"), [(10, 0.3, 3), (4, 0.01, 1), (4, 0.99, 3)])
def test_both_sides_have_a_prompt(prompts, share, number):
    assert number_held_out(prompts, share) == number


@pytest.mark.parametrize(("choose", "group"), [(balanced, "prompt"), (matched, "id")])
def test_as_many_of_either_label_of_every_prompt_or_word(choose, group):
    chosen = choose(TOKENS, 0)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) < set(TOKENS)
    before = Counter((getattr(token, group), token.label) for token in TOKENS)
    counts = Counter((getattr(token, group), token.label) for token in chosen)
    for name in {name for name, _ in before}:
        fewest = min(before[name, INSTRUCTION], before[name, DATA])
        assert counts[name, INSTRUCTION] == counts[name, DATA] == fewest
    assert chosen == choose(TOKENS, 0) != choose(TOKENS, 1)
