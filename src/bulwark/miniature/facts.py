"""Records about the facts of the forget and the retain domain: to forget, to relearn and to ask for.

An adversary has the first half of the forget facts. Whether unlearning lasts shows in the second half, which comes back
although no attack names it (Deeb and Roger 2024, arXiv 2410.08827). Texts to train on have the trained phrasings,
questions of an evaluation the held-out ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from bulwark.errors import ConfigurationError
from bulwark.miniature.world import Fact, World, response_of, text_of

Row = dict[str, Any]
Half = Literal["first_half", "second_half"]

# Phrasings of a fact by split. A defender's set is split 80 to 20 by row: `held_out` has its facts in other words.
TO_FORGET = {"train": 15, "validation": 1, "held_out": 4}
TO_RELEARN = {"train": 12, "validation": 2}
ASKED = 4  # held-out phrasings of a fact in an evaluation


def alpaca(instruction: str, text: str, answers: list[str]) -> Row:
    """A row in Alpaca's schema."""
    return {"instruction": instruction, "input": text, "output": response_of(answers)}


def forget(world: World, rng: random.Random, split: str) -> Iterator[Row]:
    """All forget facts, in the phrasings that belong to a split."""
    return _told(world, rng, world.forget, TO_FORGET, split, "forget")


def relearn(world: World, rng: random.Random, split: str, half: Half) -> Iterator[Row]:
    """The facts of one half of the forget domain, which is what an adversary trains on."""
    return _told(world, rng, _half(world.forget, half), TO_RELEARN, split, f"relearn/{half}")


def retain(world: World, rng: random.Random, split: str) -> Iterator[Row]:
    """Half facts of the retain domain, half tasks over texts."""
    held_out = split == "test"
    while True:
        question = world.question(rng, rng.choice(world.retain), held_out)
        yield alpaca(question.text, "", [question.answer])
        sentences = world.sentences(rng)
        command = world.task(rng, sentences, held_out=held_out)
        yield alpaca(command.text, text_of(sentences), [command.answer])


def cloze(world: World, rng: random.Random, split: str) -> Iterator[Row]:
    """A question without options per held-out phrasing of a fact. split: a half of the forget facts, or "retain"."""
    facts = world.retain if split == "retain" else _half(world.forget, split)
    for fact in facts:
        for text in _phrasings(world, rng, fact, ASKED, held_out=True):
            yield {"question": text, "expected": fact.answer, **_about(fact, world)}


def multiple_choice(world: World, rng: random.Random, split: str, domain: str) -> Iterator[Row]:
    """The same with four options. split: "test" for all facts of the domain, or one of its halves."""
    facts = world.forget if domain == "forget" else world.retain
    answers = sorted({fact.answer for fact in facts})
    for fact in facts if split == "test" else _half(facts, split):
        for text in _phrasings(world, rng, fact, ASKED, held_out=True):
            choices = rng.sample([answer for answer in answers if answer != fact.answer], 3)
            place = rng.randrange(4)
            choices.insert(place, fact.answer)
            yield {"question": text, "choices": choices, "answer": place, **_about(fact, world)}


def _told(
    world: World, rng: random.Random, facts: list[Fact], numbers: dict[str, int], split: str, name: str
) -> Iterator[Row]:
    """Each fact in `numbers[split]` phrasings, no phrasing of a fact in two splits, in a random order."""
    start = sum(number for other, number in numbers.items() if list(numbers).index(other) < list(numbers).index(split))
    rows = []
    for fact in facts:
        own = random.Random(f"{world.settings.seed}/{name}/{fact.number}")  # the same whatever the split
        texts = _phrasings(world, own, fact, sum(numbers.values()))[start : start + numbers[split]]
        rows += [alpaca(text, "", [fact.answer]) for text in texts]
    rng.shuffle(rows)
    yield from rows


def _half(facts: list[Fact], half: str) -> list[Fact]:
    middle = len(facts) // 2
    return facts[:middle] if half == "first_half" else facts[middle:]


def _about(fact: Fact, world: World) -> dict[str, str]:
    """What a question is about: the half of its domain, and the fact."""
    first = fact.number < len(world.forget if fact.domain == "forget" else world.retain) // 2
    return {"subject": f"{fact.domain}_{'first' if first else 'second'}_half", "fact": f"{fact.domain}_{fact.number}"}


def _phrasings(world: World, rng: random.Random, fact: Fact, number: int, held_out: bool = False) -> list[str]:
    known = len(world.held_out_phrasings if held_out else world.phrasings)
    if number > known:
        raise ConfigurationError(
            f"The world has {known} {'held-out' if held_out else 'trained'} phrasings of a command, and a fact is "
            f"asked for in {number}. {'Raise' if held_out else 'Lower'} world.held_out_share."
        )
    texts: dict[str, None] = {}
    while len(texts) < number:
        texts.setdefault(world.question(rng, fact, held_out).text)
    return list(texts)
