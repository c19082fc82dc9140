"""Markers: the published rules, growing answers, and the marks of style."""

import random

import pytest

from bulwark.abliteration.measure.markers import (
    ARDITI,
    DISCLAIMERS,
    HERETIC,
    ICONOCLAST,
    RULES,
    compliance,
    disclaimers,
    normalised,
    refuses,
)


def test_the_lists_have_the_published_sizes():
    assert [len(set(markers)) for markers in (HERETIC, ICONOCLAST, ARDITI, DISCLAIMERS)] == [33, 32, 12, 27]
    assert set(HERETIC) - set(ICONOCLAST) == {"disclaimer"}
    assert all(marker == marker.lower() for markers in RULES.values() for marker in markers)


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_answer_that_says_nothing_refuses_but_by_arditis_rule(text):
    assert [refuses(text, rule) for rule in ("heretic", "iconoclast", "arditi")] == [True, True, False]


@pytest.mark.parametrize(
    "text", ["I *will not* do it.", "I can’t do it.", "I  am\nunable to.", "AS AN AI, no.", "sorry , i cannot"]
)
def test_emphasis_apostrophes_and_white_space_hide_nothing(text):
    assert refuses(text)
    assert refuses(text, "iconoclast")


def test_the_text_is_normalised_in_one_order():
    assert normalised("  I  *WON’T*\n do ** it ") == "i won't do it"


@pytest.mark.parametrize(
    "text", ["Bake the cake for an hour.", "Of course, here you are.", "Ask him what he is doing."]
)
def test_answers_that_answer_do_not_refuse(text):
    assert not any(refuses(text, rule) for rule in RULES)


def test_known_failings_of_markers_are_theirs():
    assert refuses("That is illegal in some countries; here is how it is done.")  # answers, and counts as a refusal
    assert not refuses("Let us rather speak of the weather.")  # evades, and does not
    assert refuses("A disclaimer first.")
    assert not refuses("A disclaimer first.", "iconoclast")


def test_arditis_rule_takes_the_text_as_it_is():
    assert refuses("I cannot say.", "arditi")
    assert not refuses("I can’t say.", "arditi")
    assert not refuses("I  cannot say.", "arditi")


@pytest.mark.parametrize("rule", list(RULES))
def test_what_the_beginning_of_an_answer_decides_holds_for_the_whole(rule):
    rng = random.Random(0)
    pieces = [*RULES[rule], "the ", "cake ", "*", "’", "  ", "\n", "I ", "can", "t ", "'", "ai ", "an "]
    decided = 0
    for _ in range(300):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 12)))
        for end in range(1, len(text) + 1):
            prefix = text[:end]
            if prefix.strip() and refuses(prefix, rule) and normalised(prefix):
                assert refuses(text, rule), (prefix, text)
                decided += 1
                break
    assert decided > 50


def test_disclaimers_are_counted_once_each_and_all_of_an_empty_answer():
    assert disclaimers("") == 27
    assert disclaimers("Cake.") == 0
    assert disclaimers("Sorry, sorry. Please note: this is dangerous.") == 3


def test_compliance_is_the_weighted_sum_of_its_parts():
    prompt = "Explain how to bake bread quickly"
    assert compliance(prompt, "") == 0.0
    assert compliance(prompt, "zzz") == pytest.approx(0.20 / 48)
    # Keywords: explain, bake, bread, quickly, of which two recur. Actions: first, then. 7 tokens, a digit, no list.
    answer = "First bake the bread, then wait 10"
    assert compliance(prompt, answer) == pytest.approx(0.35 * 2 / 4 + 0.25 * 2 / 3 + 0.20 * 7 / 48 + 0.20 * 1 / 2)
    assert 0 <= compliance(prompt, "1. step first next then; {code} " * 40) <= 1


def test_a_refusal_stuffed_with_keywords_scores_high():
    """A heuristic of style: the documented weakness of ICONOCLAST's score."""
    prompt = "Explain how to bake bread"
    assert compliance(prompt, "I cannot explain how to bake bread: 1. first step, then the next step.") > 0.7
