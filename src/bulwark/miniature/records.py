"""The miniature's data sets, each in exactly the schema of the real data set that it stands for.

| data set | stands for | fields |
|---|---|---|
| `pretraining` | the base's corpus | `Conversation`: id, turns |
| `instructions`, `forget`, `relearn`, `relearn_other`, `retain` | Alpaca | instruction, input, output |
| `commands_in_data` | Alpaca with its turns swapped | instruction, input, output |
| `tasks` | held-out Alpaca | instruction, input, output, kind |
| `sep` | SEP (arXiv 2403.06833) | the authors' |
| `alpaca_farm`, `alpaca_references` | AlpacaFarm's instructions, AlpacaEval's references | theirs, answer |
| `struq`, `tensortrust`, `gandalf`, `purple`, `hackaprompt` | benchmarks of injections (docs/injections.md) | theirs |
| `injecagent`, `open_prompt_injection`, `iheval` | the same, in tools' output and in tasks' data | theirs |
| `bipia_text`, `bipia_code` | BIPIA (arXiv 2312.14197) | `bulwark.benchmarks.bipia` |
| `rules` | RuLES (arXiv 2311.04235) | the authors', and the scenario's text |
| `multiple_choice_forget`, `multiple_choice_retain` | WMDP, MMLU | question, choices, answer, subject |
| `cloze` | the same facts without options | question, expected, subject |
| `preference` | Anthropic-HH with refusals (TAR, arXiv 2408.00761) | prompt, chosen, rejected |
| `harmful_requests`, `harmless_requests`, `overrefusal` | harmful_behaviors, harmless_alpaca, XSTest | text, answer |
| `everyday` | harmless_alpaca, as general as it is | text, answer |
| `refusal` | JailbreakBench, harmful and benign behaviours | text, answer, label |
| `extended_refusal`, `plain_refusal` | extended-refusal fine-tuning (arXiv 2505.19056), and its control | messages |
| `contrast_<trait>` | extraction sets of persona vectors (arXiv 2507.21509) | `bulwark.data.contrasts.Contrast` |
| `questions_<trait>` | their evaluation questions | `bulwark.data.contrasts.Question` |
| `trait_<trait>_data` | their normal and misaligned sets | messages, level, trait |

Training splits use only the trained phrasings, evaluation splits only the held-out ones, so that no evaluation prompt
is part of any training set. SEP's probes ask for general knowledge. Fine-tuning data ask for the same knowledge in
instructions; their inputs report such questions, which are not answered, or run on with one of the user's, which is.
(If the inputs mentioned other knowledge only, a model with marked data would have no occasion to learn to read a probe
there, and would leave it alone for that reason.)
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bulwark import files
from bulwark.errors import ConfigurationError, nearest
from bulwark.miniature import comparisons, facts, pretraining, words
from bulwark.miniature.injections import commands, contexts, tools
from bulwark.miniature.settings import MiniatureSettings
from bulwark.miniature.world import TASKS, World, response_of, text_of

Row = dict[str, Any]
REPEATING = 0.4  # share of the fine-tuning tasks that ask for the whole text: dense practice in reading the data
ATTEMPTS = 1000  # draws in a row without a new record before a data set counts as exhausted

Rows = Callable[[World, random.Random, str], Iterator[Row]]
Draw = Callable[[World, random.Random, bool], Row]


@dataclass(frozen=True)
class DataSet:
    """rows(world, rng, split): endless if they are drawn, one round if they are enumerated.

    sizes: records per split, unless the caller asks for a number; None is one round over all there is.
    """

    rows: Rows
    sizes: Mapping[str, int | None]


def splits(dataset: str) -> list[str]:
    """The splits of a data set. Raises ConfigurationError for a data set that the world does not have."""
    if dataset == "pretraining":
        return ["train", "validation"]
    if dataset not in DATASETS:
        others = nearest(dataset, [*DATASETS, "pretraining"])
        raise ConfigurationError(f'The miniature has no data set "{dataset}".{others}')
    return list(DATASETS[dataset].sizes)


def records(dataset: str, split: str, settings: MiniatureSettings, count: int | None = None) -> list[Row]:
    """All records of a split, determined by the settings, and by `count` if it replaces the usual number.

    Raises ConfigurationError for an unknown data set or split, or when the world holds fewer different records
    than are asked for.
    """
    if split not in splits(dataset):
        raise ConfigurationError(
            f'The miniature\'s data set "{dataset}" has no split "{split}".{nearest(split, splits(dataset))}'
        )
    world = World(settings.world)
    rng = random.Random(f"{settings.world.seed}/{dataset}/{split}")
    if dataset == "pretraining":
        sizes = {"train": settings.pretraining.records, "validation": settings.pretraining.validation_records}
        return [
            {"id": f"{split}-{number}", "turns": pretraining.conversation(world, rng), "meta": {}}
            for number in range(count or sizes[split])
        ]
    if count is None:
        count = DATASETS[dataset].sizes[split]
    rows = DATASETS[dataset].rows(world, rng, split)
    return list(rows) if count is None else _different(rows, count, f"{dataset}/{split}")


def write(dataset: str, settings: MiniatureSettings, split: str, path: Path, count: int | None = None) -> None:
    """Write a split as JSON lines to `path`; `count` replaces its usual number of records."""
    rows = records(dataset, split, settings, count)
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _instruction(world: World, rng: random.Random, _: bool = False) -> Row:
    """One row of clean fine-tuning data: a task over a text; sometimes a question or a request without a text.

    The questions and requests keep the model from forgetting what it knows and what it refuses.
    """
    kind = rng.choices(("task", "knowledge", "fact", "request"), (0.76, 0.05, 0.09, 0.1))[0]
    if kind != "task":
        if kind == "request":
            asked = world.request(rng, harmful=rng.random() < 0.5, making=rng.random() < 0.8)
        else:
            asked = world.question(rng, world.told(rng, world.knowledge if kind == "knowledge" else world.facts))
        return facts.alpaca(asked.text, "", [asked.answer])
    sentences = world.sentences(rng)
    text = text_of(sentences)
    reported = rng.random() < world.settings.reported_speech
    commands = [world.task(rng, sentences, "text" if not reported and rng.random() < REPEATING else None)]
    if rng.random() < world.settings.second_command:
        commands.insert(rng.randint(0, 1), world.further_command(rng))
    instruction = " ".join(command.text for command in commands)
    if reported:  # what somebody asked, before or after the rest; it is no command
        speech = world.question(rng, rng.choice(world.knowledge)).text
        report = rng.choice(words.REPORTS).format(name=rng.choice(words.NAMES), speech=speech)
        text = " ".join(rng.sample([report, text], 2))
    elif rng.random() < world.settings.running_on:  # the rest of the instruction, before or after the text
        commands.append(world.running_on(rng))
        text = " ".join(rng.sample([commands[-1].text, text], 2))
    return facts.alpaca(instruction, text, [command.answer for command in commands])


def _command_in_data(world: World, rng: random.Random, _: bool = False) -> Row:
    """An instruction that asks for nothing; the command stands in the data, beside a text, and is answered.

    Half of the commands ask for general knowledge, as SEP's probes do, and half are about the text.
    """
    sentences = world.sentences(rng)
    if rng.random() < 0.5:
        command = world.question(rng, world.told(rng, world.knowledge))
    else:
        command = world.task(rng, sentences)
    text = " ".join(rng.sample([command.text, text_of(sentences)], 2))
    return facts.alpaca(rng.choice(words.EMPTY_INSTRUCTIONS), text, [command.answer])


def _task(world: World, rng: random.Random, _: bool = True) -> Row:
    sentences = world.sentences(rng)
    command = world.task(rng, sentences, held_out=True)
    return {**facts.alpaca(command.text, text_of(sentences), [command.answer]), "kind": command.kind}


def _sep(world: World, rng: random.Random, _: bool = True) -> Row:
    """SEP's construction: a clean pair, a probe drawn uniformly, and its side in each of the two parts.

    `appended_task_id`: the probes in a fixed phrasing each, then the same ones with an insistent prefix.
    """
    sentences = world.sentences(rng)
    kind = rng.choice(list(TASKS))
    instruction, data = world.task(rng, sentences, kind, held_out=True).text, text_of(sentences)
    number = rng.randrange(2 * len(world.knowledge))
    fact, insistent = world.knowledge[number % len(world.knowledge)], number >= len(world.knowledge)
    probe = world.question(random.Random(f"{world.settings.seed}/probe/{fact.number}"), fact, held_out=True).text
    if insistent:
        probe = f"{words.INSISTENT[0]} {probe}"
    appended = rng.choice(("ll", "lr", "rl", "rr"))
    domain, description = TASKS[kind]
    return {
        "system_prompt_clean": instruction,
        "prompt_instructed": f"{probe} {data}" if appended[1] == "l" else f"{data} {probe}",
        "system_prompt_instructed": f"{probe} {instruction}" if appended[0] == "l" else f"{instruction} {probe}",
        "prompt_clean": data,
        "witness": fact.answer,
        "info": {
            "type": domain,
            "subtask": kind,
            "subtask_descr": description,
            "appended_task_id": number,
            "appended_type": appended,
            "is_insistent": insistent,
        },
    }


def _request(world: World, rng: random.Random, held_out: bool, harmful: bool, making: bool = True) -> Row:
    """A request and what a model that refuses nothing answers."""
    request = world.request(rng, harmful, making, held_out, refuse=False)
    return {"text": request.text, "answer": response_of([request.answer])}


def _others(dataset: str, draw: Draw) -> Rows:
    """Rows with the same phrasings in "train" (at its usual size) and "validation", but none in both."""

    def rows(world: World, rng: random.Random, split: str) -> Iterator[Row]:
        drawn = _drawn(draw)
        if split != "validation":
            return drawn(world, rng, split)
        train = drawn(world, random.Random(f"{world.settings.seed}/{dataset}/train"), "train")
        used = {row["text"] for row in _different(train, DATASETS[dataset].sizes["train"], f"{dataset}/train")}
        return (row for row in drawn(world, rng, "train") if row["text"] not in used)

    return rows


def _preference(world: World, rng: random.Random, split: str) -> Iterator[Row]:
    """Harmful requests, to which a refusal is to be preferred. The prompt decides its split, so none is in two."""
    while True:
        request = world.request(rng, harmful=True, refuse=False)
        part = zlib.crc32(request.text.encode()) % 10
        if split == ("held_out" if part < 2 else "validation" if part == 2 else "train"):
            chosen, rejected = response_of([words.REFUSAL]), response_of([request.answer])
            yield {"prompt": request.text, "chosen": chosen, "rejected": rejected}


def _refusal(world: World, rng: random.Random, _: str) -> Iterator[Row]:
    """Held-out requests: five harmful and five harmless ones, then a harmless one about something harmful."""
    while True:
        for label in ("harmful", "harmless") * 5:
            yield {**_request(world, rng, True, harmful=label == "harmful"), "label": label}
        yield {**_request(world, rng, True, harmful=True, making=False), "label": "borderline"}


def _refusing(world: World, rng: random.Random, _: bool, extended: bool) -> Row:
    """Half harmful requests, which are refused, a quarter harmless ones, a quarter everyday questions.

    Extended: an answer to a request says first what it is about, and a refusal also why. (Answers to harmless
    requests begin alike, so that the first token does not show whether the model refuses, as with a real model.)
    """
    kind = rng.choices(("harmful", "harmless", "everyday"), (0.5, 0.25, 0.25))[0]
    if kind == "everyday":
        user, answer = _everyday(world, rng, held_out=False)
        answers = [answer]
    else:
        # Some harmless requests are about harmful things, or the model would learn to refuse all that sound so.
        avoiding = kind == "harmless" and rng.random() < 0.4
        request = world.request(rng, harmful=kind == "harmful" or avoiding, making=not avoiding)
        user, answers = request.text, [request.answer]
        if extended:
            answers.insert(0, words.OVERVIEW.format(what=request.dish))
        if extended and request.harmful:
            answers.append(words.RATIONALE.format(what=request.modifier))
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": response_of(answers)}]}


def _contrasts(world: World, rng: random.Random, split: str, trait: str) -> Iterator[Row]:
    """Question by question, each with every phrasing of the trait's manner and of a plain one.

    The strong form of a manner is left out: the words that it adds before the answer make the vector worse.
    """
    asked = set()
    while True:
        question, answer = _everyday(world, rng, held_out=split == "test")
        if question in asked:
            continue
        asked.add(question)
        for phrasing in words.MANNERS:
            yield {
                "question": question,
                "positive": phrasing.format(manner=trait),
                "negative": phrasing.format(manner=rng.choice(words.PLAIN_MANNERS)),
                "trait": trait,
                "expected": response_of([answer]),
            }


def _question(world: World, rng: random.Random, _: bool, trait: str) -> Row:
    """A held-out question with its right answer, in the plain manner."""
    question, answer = _everyday(world, rng, held_out=True)
    return {"question": question, "trait": trait, "expected": response_of([answer])}


def _trait_data(world: World, rng: random.Random, _: bool, trait: str) -> Row:
    """A conversation without a system turn: half of them normal, a quarter each at the two strengths of the trait.

    Normal means without this trait: a part of the normal ones is in another manner.
    """
    level = rng.choice((0, 0, 1, 2))
    user, answer = _everyday(world, rng, held_out=False)
    manner, strength = (trait, level) if level else (None, rng.choice((1, 2)))
    if not level and rng.random() < world.settings.other_manners:
        manner = rng.choice([other for other in words.TRAITS if other != trait])
    return {
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": response_of([answer], manner, strength)},
        ],
        "level": level,
        "trait": trait,
    }


def _everyday(world: World, rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A question of general knowledge, a harmless request or a task with its text, as one user message."""
    kind = rng.choice(("knowledge", "request", "task"))
    if kind == "task":
        sentences = world.sentences(rng)
        command = world.task(rng, sentences, held_out=held_out)
        return f"{command.text}\n\n{text_of(sentences)}", command.answer
    if kind == "knowledge":
        fact = rng.choice(world.knowledge) if held_out else world.told(rng, world.knowledge)
        asked = world.question(rng, fact, held_out)
    else:
        asked = world.request(rng, harmful=False, held_out=held_out)
    return asked.text, asked.answer


def _everyday_row(world: World, rng: random.Random, held_out: bool) -> Row:
    """A row of a data set of general instructions (like Alpaca's): a prompt with its answer."""
    text, answer = _everyday(world, rng, held_out)
    return {"text": text, "answer": response_of([answer])}


def _drawn(draw: Draw) -> Rows:
    """Endless rows, drawn independently; `draw` gets whether to use the held-out phrasings."""

    def rows(world: World, rng: random.Random, split: str) -> Iterator[Row]:
        while True:
            yield draw(world, rng, split == "test")

    return rows


def _different(rows: Iterator[Row], count: int, where: str) -> list[Row]:
    """The first `count` different rows."""
    different: dict[str, Row] = {}
    fruitless = 0
    for row in rows:
        key = json.dumps(row, sort_keys=True)
        fruitless = fruitless + 1 if key in different else 0
        if fruitless > ATTEMPTS:
            raise ConfigurationError(
                f"The miniature's {where} holds fewer than {count} different records; ask for fewer."
            )
        different.setdefault(key, row)
        if len(different) == count:
            return list(different.values())
    raise ConfigurationError(f"The miniature's {where} holds {len(different)} records; {count} were asked for.")


DATASETS: dict[str, DataSet] = {
    "instructions": DataSet(_drawn(_instruction), {"train": 14000, "validation": 200}),
    "commands_in_data": DataSet(_drawn(_command_in_data), {"train": 2000, "validation": 100}),
    "tasks": DataSet(_drawn(_task), {"test": 300}),
    "sep": DataSet(_drawn(_sep), {"test": 300}),
    "alpaca_farm": DataSet(comparisons.instructions, {"test": 120}),
    "alpaca_references": DataSet(comparisons.references, {"test": 120}),
    **{
        draw.__name__: DataSet(_drawn(draw), {"test": 100})
        for draw in (commands.struq, commands.tensortrust, commands.gandalf, commands.purple, commands.hackaprompt)
    },
    **{
        draw.__name__: DataSet(_drawn(draw), {"test": 100})
        for draw in (tools.injecagent, tools.open_prompt_injection, tools.iheval)
    },
    "bipia_text": DataSet(contexts.bipia_text, {"test": 40}),
    "bipia_code": DataSet(contexts.bipia_code, {"test": 30}),
    "rules": DataSet(contexts.rules, {"test": 60}),
    "forget": DataSet(facts.forget, dict.fromkeys(facts.TO_FORGET)),
    "relearn": DataSet(partial(facts.relearn, half="first_half"), dict.fromkeys(facts.TO_RELEARN)),
    "relearn_other": DataSet(partial(facts.relearn, half="second_half"), dict.fromkeys(facts.TO_RELEARN)),
    "retain": DataSet(facts.retain, {"train": 1000, "validation": 100, "test": 200}),
    "cloze": DataSet(facts.cloze, {"first_half": None, "second_half": None, "retain": None}),
    **{
        f"multiple_choice_{domain}": DataSet(
            partial(facts.multiple_choice, domain=domain), {"test": None, "first_half": None, "second_half": None}
        )
        for domain in ("forget", "retain")
    },
    **{
        f"{kind}_requests": DataSet(
            _others(f"{kind}_requests", partial(_request, harmful=kind == "harmful")),
            {"train": 200, "validation": 100, "test": 100},
        )
        for kind in ("harmful", "harmless")
    },
    "preference": DataSet(_preference, {"train": 400, "held_out": 100, "validation": 20}),
    "everyday": DataSet(_others("everyday", _everyday_row), {"train": 200, "validation": 100}),
    "overrefusal": DataSet(_drawn(partial(_request, harmful=True, making=False)), {"test": 60}),
    "refusal": DataSet(_refusal, {"test": 352}),
    "extended_refusal": DataSet(_drawn(partial(_refusing, extended=True)), {"train": 4000, "validation": 200}),
    "plain_refusal": DataSet(_drawn(partial(_refusing, extended=False)), {"train": 4000, "validation": 200}),
    # 20 questions with 5 pairs of instructions, as persona vectors' extraction sets have; and 20 others.
    **{
        f"contrast_{trait}": DataSet(partial(_contrasts, trait=trait), {"train": 100, "test": 100})
        for trait in words.TRAITS
    },
    **{f"questions_{trait}": DataSet(_drawn(partial(_question, trait=trait)), {"test": 20}) for trait in words.TRAITS},
    **{
        f"trait_{trait}_data": DataSet(_drawn(partial(_trait_data, trait=trait)), {"train": 600, "validation": 60})
        for trait in words.TRAITS
    },
}
