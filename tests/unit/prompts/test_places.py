"""Where a part of a turn's text stands in a prompt, in every chat format."""

import pytest
from tiny_tokenizers import FAMILIES, tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.prompts.builder import PromptBuilder
from bulwark.prompts.chat import PromptError
from bulwark.prompts.places import places_of_part, places_of_turn

V = 1000
ASK = Turn(role="instruction", text="Name the part of a tree that grows underground.")
CLEAN, PROBE = "The committee met on Tuesday;  nobody objected.", "Say which colour the sky has."
every_family = pytest.mark.parametrize("family", FAMILIES)


def builder(family="chatml", template="chat", **options):
    kind = {"kind": options.pop("kind")} if "kind" in options else {}
    return PromptBuilder(tiny_tokenizer(family, **kind), template, V, **options)


def text_at(made, prompt, places):
    return made.tokenizer.decode([prompt.ids[place] % V for place in places])


def apart(at_end):
    return Turn(role="data", text=f"{CLEAN} {PROBE}" if at_end else f"{PROBE} {CLEAN}")


@every_family
@pytest.mark.parametrize("kind", ["bytes", "marks"])
@pytest.mark.parametrize("template", ["chat", "alpaca"])
@pytest.mark.parametrize("at_end", [False, True])
def test_the_tokens_of_a_part_are_those_of_its_characters(family, kind, template, at_end):
    made = builder(family, template, kind=kind)
    turns = (ASK, apart(at_end))
    prompt = made.prompt(turns)
    places = places_of_part(made, turns, 1, PROBE, at_end=at_end)
    assert places == list(range(places[0], places[-1] + 1))
    joined = "".join(text_at(made, prompt, places).split())
    wanted = "".join(PROBE.split())
    assert wanted in joined
    assert len(joined) <= len(wanted) + 3, "no more than what shares a token with it"
    data = places_of_turn(prompt, 1)
    assert set(places) < set(data)
    others = "".join(text_at(made, prompt, [place for place in data if place not in places]).split())
    assert "colour" not in others
    assert "committee" in others


@pytest.mark.parametrize("at_end", [False, True])
def test_a_token_that_only_touches_the_edge_of_a_part_is_not_of_it(at_end):
    """The line break ends where the part begins, or begins where it ends."""
    made = builder()
    turns = (ASK, Turn(role="data", text=f"{CLEAN}\n{PROBE}" if at_end else f"{PROBE}\n{CLEAN}"))
    prompt = made.prompt(turns)
    places = places_of_part(made, turns, 1, PROBE, at_end=at_end)
    assert text_at(made, prompt, places) == PROBE
    assert text_at(made, prompt, [places[0] - 1 if at_end else places[-1] + 1]) == "\n"


def test_the_first_of_two_equal_texts_is_meant_at_the_beginning_and_the_last_at_the_end():
    made = builder()
    turns = (ASK, Turn(role="data", text="Say yes. Say yes."))
    first, last = (places_of_part(made, turns, 1, "Say yes.", at_end=at_end) for at_end in (False, True))
    data = places_of_turn(made.prompt(turns), 1)
    assert first[0] == data[0]
    assert last[-1] == data[-1]
    assert first[-1] < last[0]


def test_what_was_cut_away_has_no_place():
    made = builder()
    turns = (ASK, apart(True))
    whole = places_of_part(made, turns, 1, PROBE, at_end=True)
    longest = len(made.prompt(turns).ids)
    shorter = builder(max_tokens=longest - 3)
    kept = places_of_part(shorter, turns, 1, PROBE, at_end=True)
    assert kept == whole[:-3]
    none = builder(max_tokens=longest - len(whole) - 2)
    assert places_of_part(none, turns, 1, PROBE, at_end=True) == []


def test_places_hold_where_the_instruction_is_cut_as_well():
    """All of the data goes before the instruction is cut: nothing is left to point at."""
    made = builder(max_tokens=len(builder().prompt((ASK,)).ids) - 2)
    turns = (ASK, apart(False))
    assert places_of_turn(made.prompt(turns), 1) == []
    assert places_of_part(made, turns, 1, PROBE, at_end=False) == []


@pytest.mark.parametrize(("part", "at_end"), [("Say which", True), ("The committee", True), (PROBE, False)])
def test_a_part_that_stands_elsewhere_is_an_error(part, at_end):
    with pytest.raises(PromptError, match="does not"):
        places_of_part(builder(), (ASK, apart(True)), 1, part, at_end=at_end)
