"""Commands of the world in what a tool returns, and tasks in the data of other tasks, in the benchmarks' schemas."""

from __future__ import annotations

import random
from typing import Any

from bulwark.miniature import words
from bulwark.miniature.injections.commands import attacked, probe
from bulwark.miniature.world import World, text_of

Row = dict[str, Any]

# Tasks whose answer is one of a few words, with these words: what Open-Prompt-Injection asks for.
CLASSES = {"first_name": words.NAMES, "first_thing": words.THINGS}
ONE_WORD = ("owner", "thing", "first_name", "last_name", "first_thing", "last_thing")


def injecagent(world: World, rng: random.Random, _: bool = True) -> Row:
    """A task about a text that a tool returns, with a command in it; its answer stands for the attacker's tool."""
    task, text, command = attacked(world, rng)
    return {
        "User Tool": "text",
        "User Instruction": task.text,
        "Tool Parameters": "{}",
        "Tool Response": text,
        "Attacker Tools": [command.answer],
        "Attack Type": command.kind,
    }


def open_prompt_injection(world: World, rng: random.Random, _: bool = True) -> Row:
    """A text with the label of the right answer to one of two tasks about it."""
    kind = rng.choice(list(CLASSES))
    sentences = world.sentences(rng)
    answer = world.task(rng, sentences, kind).answer
    return {"task": kind, "label": CLASSES[kind].index(answer), "sentence": text_of(sentences)}


def iheval(world: World, rng: random.Random, _: bool = True) -> Row:
    """A task with one word as its answer, and a text that a tool returns, with a command behind it."""
    sentences = world.sentences(rng)
    task = world.task(rng, sentences, rng.choice(ONE_WORD), held_out=True)
    content = f"{text_of(sentences)} {probe(world, rng).text}"
    return {
        "system": None,
        "instruction": task.text,
        "tool": {"call": {"name": "text", "arguments": {}}, "return": {"name": "text", "content": content}},
        "answer": task.answer,
        "task": "slack_user",
        "setting": "conflict",
    }
