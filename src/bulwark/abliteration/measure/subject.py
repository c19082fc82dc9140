"""The model under attack, the prompts that are put to it, and its answers under several edits at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bulwark.abliteration.edit.hooks import Rows
from bulwark.abliteration.settings import PromptSets
from bulwark.data.records import Turn, read_records
from bulwark.errors import RecordError, of_record
from bulwark.models.answers import Answer
from bulwark.models.decoding import Decoding
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import Prompt, PromptBuilder
from bulwark.settings import Closed, Text


class Request(Closed):
    """One prompt of a data set of the kind `refusal`, as far as an attack reads it."""

    id: str
    prompt: Text
    answer: str | None = None
    label: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Prompts:
    """What an attack reads, by use: directions are estimated on the first two, trials measured on the last two.

    The texts of the prompts stand beside them, in the same order; so do the answers of records that have one, which
    only a judge reads that compares with them.
    """

    harmful_directions: list[Prompt]
    harmless_directions: list[Prompt]
    harmful_search: list[Prompt]
    harmless_search: list[Prompt]
    texts: dict[str, list[str]]
    answers: dict[str, list[str | None]] = field(default_factory=dict)


def read_prompts(files: dict[str, Any], sets: PromptSets, builder: PromptBuilder) -> Prompts:
    """Read and render the four sets. files: by the names of `PromptSets.inputs()`.

    Raises RecordError for a broken record, a set with fewer prompts than asked for, and a prompt that is used both for
    directions and for measuring trials.
    """
    prefix = prefix_of(sets.response_prefix, builder)
    texts: dict[str, list[str]] = {}
    answers: dict[str, list[str | None]] = {}
    made: dict[str, list[Prompt]] = {}
    for name, path in files.items():
        count = sets.counts.get(name)
        records = read_records(Path(path), Request)
        if count is not None and len(records) < count:
            raise RecordError(
                f"{path} holds {len(records)} prompts; {count} are asked for. Lower prompts.counts.{name}."
            )
        texts[name] = [record.prompt for record in records[:count]]
        answers[name] = [record.answer for record in records[:count]]
        made[name] = [rendered(text, sets.system_prompt, builder, prefix) for text in texts[name]]
    for side in ("harmful", "harmless"):
        if both := set(texts[f"{side}_directions"]) & set(texts[f"{side}_search"]):
            used, measured = files[f"{side}_directions"], files[f"{side}_search"]
            raise RecordError(
                f'{measured}: the prompt "{min(both)[:60]}" also stands in {used}. '
                "Trials are measured on prompts that no direction was estimated from: take other splits."
            )
    return Prompts(**made, texts=texts, answers=answers)


def prefix_of(text: str, builder: PromptBuilder) -> list[int]:
    """The ids with which every response begins already."""
    return builder.tokenizer.encode(text, add_special_tokens=False) if text else []


def rendered(text: str, system: str | None, builder: PromptBuilder, prefix: Sequence[int] = ()) -> Prompt:
    """The prompt that asks `text`; prefix: ids with which the response begins already."""
    turns = ([Turn(role="system", text=system)] if system else []) + [Turn(role="instruction", text=text)]
    prompt = of_record(text[:60], builder.prompt, turns)
    return longer(prompt, prefix)


def longer(prompt: Prompt, response: Sequence[int]) -> Prompt:
    """The prompt, with ids with which the response begins."""
    return replace(prompt, ids=[*prompt.ids, *response], roles=[*prompt.roles, *(0 for _ in response)])


def continued(subject: LanguageModel, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The prompts with the first `count` tokens of the model's own greedy answers; of a shorter answer, all it has."""
    if not count:
        return list(prompts)
    ids: dict[str, list[int]] = {}
    answers_by_trial(subject, prompts, [0], count, ids=ids)
    return [longer(prompt, ids[f"0/{place}"]) for place, prompt in enumerate(prompts)]


def answers_by_trial(
    subject: LanguageModel,
    prompts: Sequence[Prompt],
    trials: Sequence[int],
    max_new_tokens: int,
    rows: Rows | None = None,
    stop_when: Callable[[str], bool] | None = None,
    ids: dict[str, list[int]] | None = None,
) -> dict[int, list[Answer]]:
    """Greedy answers to `prompts` by trial, all in the same batches: the base weights are read once per token for all.

    rows: of the edited model; set to the trial that each row of a batch belongs to. ids: filled with the generated ids
    under "trial/number of the prompt". Raises as `generation.generate`.
    """
    asked = [(f"{trial}/{place}", prompt) for trial in trials for place, prompt in enumerate(prompts)]
    of_row = torch.tensor([trial for trial in trials for _ in prompts])
    answers = subject.generate(
        asked,
        Decoding(max_new_tokens=max_new_tokens),
        stop_when=stop_when,
        on_rows=rows and (lambda numbers: rows.are(of_row[numbers])),
        ids=ids,
        shown=False,
    )
    return {trial: answers[number * len(prompts) : (number + 1) * len(prompts)] for number, trial in enumerate(trials)}
