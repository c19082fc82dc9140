"""Instructions whose answers are compared with those of a reference model: AlpacaFarm's set, AlpacaEval's references.

A row of the first has the right answer beside the real fields, for the oracle. The reference model is none: it is right
in a share `RIGHT` of its answers, and names somebody or something else in the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from bulwark.miniature import words
from bulwark.miniature.world import World, response_of, text_of

Row = dict[str, Any]

RIGHT = 0.6  # of the reference's answers, so that a win rate can rise and fall
GENERATOR = "reference"


def instructions(world: World, rng: random.Random, split: str) -> Iterator[Row]:
    """Held-out tasks with their texts as inputs, questions and harmless requests without, in AlpacaFarm's schema."""
    while True:
        kind = rng.choice(("task", "task", "knowledge", "request"))
        text = ""
        if kind == "task":
            sentences = world.sentences(rng)
            asked: Any = world.task(rng, sentences, held_out=True)
            text = text_of(sentences)
        elif kind == "knowledge":
            asked = world.question(rng, world.told(rng, world.knowledge), held_out=True)
        else:
            asked = world.request(rng, harmful=False, held_out=True)
        answer = response_of([asked.answer])
        yield {
            "instruction": asked.text,
            "input": text,
            "output": _reference(world, asked.text, text, answer),
            "generator": GENERATOR,
            "sample_mode": "none",
            "dataset": kind,
            "datasplit": "eval",
            "answer": answer,
        }


def references(world: World, _: random.Random, split: str) -> Iterator[Row]:
    """The reference's answers to the instructions of the same split, in AlpacaEval's schema: no input of their own."""
    for row in instructions(world, random.Random(f"{world.settings.seed}/alpaca_farm/{split}"), split):
        whole = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        yield {"dataset": row["dataset"], "instruction": whole, "output": row["output"], "generator": GENERATOR}


def _reference(world: World, instruction: str, text: str, answer: str) -> str:
    """Decided by the texts alone, so that a row that is drawn twice is the same twice."""
    rng = random.Random(f"{world.settings.seed}/{GENERATOR}/{instruction}/{text}")
    return answer if rng.random() < RIGHT else response_of([rng.choice([*words.NAMES, *words.THINGS])])
