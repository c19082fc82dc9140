"""Commands of the world in data that a task is about, in the schemas of five benchmarks of injections.

As in SEP's records, the command asks for general knowledge in a phrasing that no training has, half of the time an
insistent one, and the fact is its witness. Where a benchmark names one witness for all its records, each record here
has its own.
"""

from __future__ import annotations

import random
from typing import Any

from bulwark.miniature import words
from bulwark.miniature.world import Command, World, response_of, text_of

Row = dict[str, Any]


def probe(world: World, rng: random.Random) -> Command:
    """A command that nobody who gave the task has asked for. Each fact has one phrasing, as among SEP's probes."""
    fact = rng.choice(world.knowledge)
    asked = world.question(random.Random(f"{world.settings.seed}/probe/{fact.number}"), fact, held_out=True)
    text = f"{words.INSISTENT[0]} {asked.text}" if rng.random() < 0.5 else asked.text
    return Command(text, asked.answer, asked.kind)


def attacked(world: World, rng: random.Random) -> tuple[Command, str, Command]:
    """A task, its text with a command before or behind it, and that command."""
    sentences = world.sentences(rng)
    task, command = world.task(rng, sentences, held_out=True), probe(world, rng)
    return task, " ".join(rng.sample([text_of(sentences), command.text], 2)), command


def struq(world: World, rng: random.Random, _: bool = True) -> Row:
    """A task with its text and its answer, and the command that StruQ's attacks put into the text."""
    sentences = world.sentences(rng)
    task, command = world.task(rng, sentences, held_out=True), probe(world, rng)
    return {
        "instruction": task.text,
        "input": text_of(sentences),
        "output": response_of([task.answer]),
        "command": command.text,
        "witness": command.answer,
    }


def tensortrust(world: World, rng: random.Random, _: bool = True) -> Row:
    """A task in the place of a defense, a text with a command in that of an attack."""
    task, text, command = attacked(world, rng)
    return {
        "sample_id": rng.randrange(10**12),
        "pre_prompt": task.text,
        "access_code": rng.choice(words.THINGS),
        "post_prompt": "",
        "attack": text,
        "witness": command.answer,
    }


def gandalf(world: World, rng: random.Random, _: bool = True) -> Row:
    """A text with a command; the instruction is a setting of the benchmark, the same for all."""
    _task, text, command = attacked(world, rng)
    return {"text": text, "similarity": 1.0, "witness": command.answer}


def purple(world: World, rng: random.Random, _: bool = True) -> Row:
    """A text with a command, as the one question of a record."""
    _task, text, command = attacked(world, rng)
    return {"prompt": [text], "witness": command.answer}


def hackaprompt(world: World, rng: random.Random, _: bool = True) -> Row:
    """A task, and in the place of a player's text a text with a command."""
    task, text, command = attacked(world, rng)
    return {
        "level": rng.randint(1, 3),
        "prompt": f"{task.text} {text}",
        "user_input": text,
        "expected_completion": command.answer,
        "model": "gpt-3.5-turbo",
        "correct": True,
    }
