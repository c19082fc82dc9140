"""EleutherAI's lm-eval harness over a checkpoint of ours: its tasks, prompts, filters and metrics, our roles and data.

`Examined` is lm-eval's interface to a model (arXiv 2405.14782). The chat messages that a task makes become turns of a
prompt, so that every token has its role: what a task says before the answer (description, solved examples, question)
is instruction, the continuation is response. `task_of` makes a task of records that lie on disk; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks._yaml_loader import load_yaml

from bulwark.data.records import Turn
from bulwark.errors import BulwarkError, RecordError
from bulwark.evaluation.benchmark import measured
from bulwark.evaluation.examinee import Examinee
from bulwark.models import generation, likelihoods
from bulwark.models.decoding import Decoding
from bulwark.models.open import prompt_limit
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

_TOO_FEW = "Lower fewshot.count, or name a split with more."
# Dashes and the minus sign, which are typed as hyphens as well.
_DASHES = dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
_SPEAKERS = {"system": "system", "user": "instruction"}


class Examined(LM):
    """A checkpoint as lm-eval sees it. Use it with `apply_chat_template=True` and examples in one user message.

    decoding: how `generate_until` generates; a task's own options but its stop strings are not used.
    template: whether the model's prompt template is put around a task's texts. Without it they are read end to end, as
    lm-eval does without a chat template, and only continuations can be scored.
    Prompts that are too long for the model, or to generate after (`decoding.max_prompt_tokens`), lose the start of the
    user message, as in lm-eval's own models.
    """

    def __init__(self, examinee: Examinee, decoding: Decoding | None = None, template: bool = True) -> None:
        super().__init__()
        self.examinee = examinee
        self.decoding = decoding or Decoding()
        self.template = template
        self._builder = copy.copy(examinee.builder)
        self._builder.max_tokens = None  # what is too long is cut here

    @cached_property
    def _room_to_answer(self) -> float:
        """The longest prompt that is generated after."""
        longest, new = self.decoding.max_prompt_tokens, self.decoding.max_new_tokens
        return prompt_limit(self.examinee.language_model.positions, longest, new, "the model") or math.inf

    @property
    def tokenizer_name(self) -> str:
        """What tells prompts of different tokenizers and templates apart in lm-eval's caches."""
        return self.examinee.builder.digest

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as JSON: the template is applied later, where roles are told apart."""
        if not add_generation_prompt:
            raise BulwarkError("This lm-eval task begins the response itself (gen_prefix), which prompts cannot hold.")
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: list[Instance]) -> list[likelihoods.LogLikelihood]:
        """(log-likelihood, greedy) of each (context, continuation)."""
        return [result for result, _ in self.scored(requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise BulwarkError("Perplexity tasks score bare text, which has no roles. Take one that asks for an answer.")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text generated for each (context, options), up to the first of the options' stop strings (`until`)."""
        return [answer.response for answer in self.generated(requests)]

    def scored(self, requests: Sequence[Instance]) -> list[tuple[likelihoods.LogLikelihood, Prompt]]:
        """The log-likelihood of each continuation, and the whole example that it ends."""
        examples = self._examples([request.args for request in requests])
        asked = []
        for request, example in zip(requests, examples, strict=True):
            span = example.spans[-1]
            ids, labels = example.ids[: span.end - 1], example.labels[span.start : span.end]
            asked.append(likelihoods.Continuation(_key(request), ids, labels))
        return list(zip(self.examinee.log_likelihoods(asked), examples, strict=True))

    def generated(self, requests: Sequence[Instance]) -> list[generation.Answer]:
        """One generated answer per request, cut at its first stop string."""
        prompts = [(_key(request), self._fitting(_turns(request.args[0]))) for request in requests]
        answers = self.examinee.generate(prompts, self.decoding)
        return [_cut(answer, request.args[1]["until"]) for answer, request in zip(answers, requests, strict=True)]

    def _examples(self, pairs: Sequence[tuple[str, str]]) -> list[Prompt]:
        """The example of each (context, continuation); what those of one context share is made once."""
        made: dict[int, Prompt] = {}
        of_context: dict[str, list[int]] = {}
        for number, (context, _) in enumerate(pairs):
            of_context.setdefault(context, []).append(number)
        room = self.examinee.language_model.positions or math.inf
        for context, numbers in of_context.items():
            turns = _turns(context)
            if self.template:
                responses = [Turn(role="response", text=pairs[number][1]) for number in numbers]
                made.update(zip(numbers, self._builder.examples(turns, responses), strict=True))
            for number in numbers:
                if number not in made or len(made[number].ids) > room:
                    made[number] = self._fitting(turns, pairs[number][1])
        return [made[number] for number in range(len(pairs))]

    def _fitting(self, turns: list[Turn], continuation: str | None = None) -> Prompt:
        """The prompt of `turns`, or with a continuation the example, not longer than the model can read."""
        builder, tokenizer = self._builder, self.examinee.language_model.tokenizer
        room = self._room_to_answer if continuation is None else self.examinee.language_model.positions or math.inf
        cut = False
        while True:
            if continuation is None:
                made = builder.prompt(turns)
            elif self.template:
                made = builder.example([*turns, Turn(role="response", text=continuation)])
            else:
                made = builder.bare([*turns, Turn(role="response", text=f" {continuation}")])
            excess = len(made.ids) - room
            if excess <= 0:
                return Prompt(**{**vars(made), "truncated": cut})
            text = turns[-1].text
            starts = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            if excess >= len(starts) or not text[starts[excess][0] :].strip():
                raise BulwarkError(
                    f"A prompt of {len(made.ids)} tokens does not fit into {room}, even without its last message. "
                    "Lower max_new_tokens, or take a model that reads more."
                )
            turns = [*turns[:-1], Turn(role="instruction", text=text[starts[excess][0] :])]
            cut = True


def configuration(path: str) -> dict[str, Any]:
    """A task file of the installed lm-eval, by its path below `lm_eval/tasks`."""
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / path)
    return {key: value for key, value in config.items() if key not in ("tag", "group", "dataset_path", "dataset_name")}


def task_of(
    name: str,
    config: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]] | None = None,
    count: int = 0,
    source: str = "the examples",
) -> ConfigurableTask:
    """The task `config` over `documents` of ours, `count` of `examples` solved in front of each question.

    A question that is itself among the examples is not shown its own solution, but another example: the same are a
    `question` and `choices` of the same words (whatever their case, spaces and punctuation), whatever else the records
    say. Without `examples`, a configuration that
    brings its own (`fewshot_config.samples`) keeps these and their number. source: of the examples, for messages.
    Raises RecordError if there are fewer than `count` examples; or fewer without the question itself, for more than a
    hundredth of the questions (what may happen in a published data set is told in the log).
    """
    if examples is not None and len(examples) < count:
        raise RecordError(f"{source}: {len(examples)} examples, {count} are asked for. {_TOO_FEW}")
    splits = {"test": datasets.Dataset.from_list([dict(document) for document in documents])}
    own = bool((config.get("fewshot_config") or {}).get("samples"))
    if examples is not None:
        splits["examples"] = datasets.Dataset.from_list([dict(example) for example in examples])
    task = _LocalTask(
        splits,
        {
            **config,
            "task": name,
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": None if examples is None else "examples",
            "num_fewshot": config["num_fewshot"] if own and examples is None else count,
        },
    )
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    short = [document["id"] for document in documents if task.others(document) < count]
    if len(short) > max(1, len(documents) // 100):
        raise RecordError(
            f"{source}: questions and examples are the same records. For {len(short)} of {len(documents)} questions "
            f'("{short[0]}", for example) fewer than {count} examples are left beside the question itself. {_TOO_FEW}'
        )
    if short:
        log.warning('%s: the question "%s" is one of them; it is asked with fewer than %d', source, short[0], count)
    return task


def answers(lm: Examined, tasks: Sequence[ConfigurableTask]) -> dict[str, dict[str, Any]]:
    """The answers file's rows by record id (the documents' "id") to the questions of `tasks`, all tasks in one go.

    The response of a multiple-choice task is JSON: [[log-likelihood, greedy], …] in the order of the options.
    """
    asked: list[Instance] = []
    for task in tasks:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per task
            task.build_all_requests(apply_chat_template=True, chat_template=lm.apply_chat_template)
        asked += task.instances
    keys = [request.doc["id"] for request in asked]
    if all(request.request_type == "generate_until" for request in asked):
        return {key: replace(answer, id=key).as_dict() for key, answer in zip(keys, lm.generated(asked), strict=True)}
    of_record: dict[str, list[tuple[likelihoods.LogLikelihood, Prompt]]] = {}
    for key, result in zip(keys, lm.scored(asked), strict=True):
        of_record.setdefault(key, []).append(result)
    return {
        key: measured(
            key,
            json.dumps([[result.value, result.greedy] for result, _ in results]),
            tokens=sum(example.spans[-1].end - example.spans[-1].start for _, example in results),
            truncated=any(example.truncated for _, example in results),
        )
        for key, results in of_record.items()
    }


def metrics_of(task: ConfigurableTask, document: Mapping[str, Any], responses: Sequence[Any]) -> dict[str, dict]:
    """{filter: {metric: value}} of one document, from the responses to its requests in their order."""
    made = [
        Instance(task.OUTPUT_TYPE, dict(document), ("", {}), number, metadata=(task.task_name, 0, 1), resps=[response])
        for number, response in enumerate(responses)
    ]
    task._instances = made
    task.apply_filters()
    return {
        name: task.process_results(dict(document), [instance.filtered_resps[name] for instance in made])
        for name in made[0].filtered_resps
    }


class _LocalTask(ConfigurableTask):
    """A task whose documents are there already."""

    def __init__(self, splits: dict[str, datasets.Dataset], config: dict[str, Any]) -> None:
        self._splits = splits
        super().__init__(config=config)
        shown = list(self.sampler.df) if hasattr(self, "sampler") else []
        self._shown = [(_question(example), example) for example in shown]
        self._times = Counter(question for question, _ in self._shown)

    def others(self, document: Mapping[str, Any]) -> int:
        """How many examples are not this very question."""
        return len(self._shown) - self._times[_question(document)]

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, *args: Any, **options: Any) -> Any:
        """Description, examples and question; the question is not among its own examples."""
        asked = _question(doc)
        if not num_fewshot or asked not in self._times:
            return super().fewshot_context(doc, num_fewshot, *args, **options)
        whole, others = self.sampler.df, [example for question, example in self._shown if question != asked]
        self.sampler.df = others
        try:
            return super().fewshot_context(doc, min(num_fewshot, len(others)), *args, **options)
        finally:
            self.sampler.df = whole

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        self.dataset = self._splits


def _question(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two documents the same question: its words, and those of its options in any order."""
    options = sorted(_words(str(option)) for option in document.get("choices") or ())
    return (_words(str(document.get("question", ""))), *options)


def _words(text: str) -> str:
    """The words, numbers and signs of a text, however it is cased, spaced, encoded or punctuated.

    Signs that make another question of the same words are kept: 3 + 4 is not 3 - 4, and 1.5 is not 15.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASHES)
    plain = "".join(c for c in folded if c not in "'\u2018\u2019" and unicodedata.category(c) != "Cf")
    found = re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]", plain)
    return " ".join(p for p in found if p in "-*/%" or unicodedata.category(p[0])[0] != "P") or plain


def _key(request: Instance) -> str:
    return json.dumps([request.task_name, request.doc_id, request.idx])


def _turns(context: str) -> list[Turn]:
    messages = json.loads(context)
    unknown = {message["role"] for message in messages} - set(_SPEAKERS)
    if unknown:
        raise BulwarkError(
            f"Examples must stand in one user message (fewshot_as_multiturn=False); here is a message of {unknown}."
        )
    return [Turn(role=_SPEAKERS[message["role"]], text=message["content"]) for message in messages]


def _cut(answer: generation.Answer, until: Sequence[str]) -> generation.Answer:
    places = [answer.response.find(stop) for stop in until if stop]
    end = min((place for place in places if place >= 0), default=None)
    if end is None:
        return answer
    return replace(answer, response=answer.response[:end].strip(), finish="stop")
