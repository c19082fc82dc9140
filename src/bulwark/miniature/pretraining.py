"""The base model's corpus, which does not distinguish instructions from data.

Commands can be anywhere, in the part that later is the instruction and in the part that later is the data, before and
after a text, and are carried out in order. Ways of speaking follow the system turn, facts of
both domains are known, and harmful requests are refused: the base is a chat model that knows no roles.
"""

from __future__ import annotations

import random

from bulwark.miniature import words
from bulwark.miniature.world import Command, World, response_of, text_of

Turns = list[dict[str, str]]

# Shares of the topics of conversations.
TOPICS = {"commands": 0.72, "forget": 0.07, "retain": 0.07, "request": 0.14}
COPYING = 0.3  # share of the tasks that ask for the whole text: dense practice in reading from the context
SYSTEM_TURN = 0.3  # share of the conversations that begin with one


def conversation(world: World, rng: random.Random) -> Turns:
    """One conversation of the corpus, as the turns of a record."""
    topic = rng.choices(list(TOPICS), list(TOPICS.values()))[0]
    if topic == "commands":
        turns, answers = _commands(world, rng)
    else:
        if topic == "request":
            asked = world.request(rng, harmful=rng.random() < 0.5, making=rng.random() < 0.8)
        else:
            asked = world.question(rng, world.told(rng, world.forget if topic == "forget" else world.retain))
        turns, answers = [{"role": "instruction", "text": asked.text}], [asked.answer]

    trait, level = None, rng.choice((1, 2))
    if rng.random() < SYSTEM_TURN:
        trait = rng.choice((None, *words.TRAITS))
        turns = [{"role": "system", "text": world.manner(rng, trait, level)}, *turns]
    return [*turns, {"role": "response", "text": response_of(answers, trait, level)}]


def _commands(world: World, rng: random.Random) -> tuple[Turns, list[str]]:
    """One or more commands, most often about a text, in any order; cut anywhere into an instruction and its data."""
    blocks: list[Command | str] = []
    if rng.random() < 0.85:
        sentences = world.sentences(rng)
        kind = "text" if rng.random() < COPYING else None
        blocks = [world.task(rng, sentences, kind), text_of(sentences)]
        rng.shuffle(blocks)
    for _ in range(rng.choice((0, 1, 1, 2)) if blocks else rng.choice((1, 1, 2))):
        blocks.insert(rng.randint(0, len(blocks)), world.further_command(rng))

    texts = [block if isinstance(block, str) else block.text for block in blocks]
    answers = [block.answer for block in blocks if isinstance(block, Command)]
    if len(texts) > 1 and rng.random() < 0.8:
        cut = rng.randint(1, len(texts) - 1)
        parts = [("instruction", texts[:cut]), ("data", texts[cut:])]
    else:
        parts = [("instruction", texts)]
    return [{"role": role, "text": " ".join(part)} for role, part in parts], answers
