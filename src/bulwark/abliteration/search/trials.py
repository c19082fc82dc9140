"""Measuring trials: edit the model in hooks, KL on harmless prompts first, then answers to harmful ones.

Several trials share every batch. What is measured of a trial depends on the others only through the batch's
shape (in float32 no verdict does). A trial above the KL gate generates no answers. With blocks,
answering stops as soon as an earlier trial dominates for certain; how many prompts were used is part of the result.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bulwark.abliteration.edit.hooks import Edits, Plan, Rows
from bulwark.abliteration.edit.kernel import Kernel
from bulwark.abliteration.measure import markers
from bulwark.abliteration.measure.directions import Choice, Directions
from bulwark.abliteration.measure.measuring import by_trial, first_token_log_probabilities, kl_divergence
from bulwark.abliteration.measure.subject import Prompts, answers_by_trial
from bulwark.abliteration.search import pareto
from bulwark.abliteration.search.objectives import Measures, worst
from bulwark.abliteration.settings import Component, ObjectiveSettings, SearchSettings
from bulwark.models.answers import Answer
from bulwark.models.open import LanguageModel

CPU_TOKENS = 2**11  # of a batch of prefills on a CPU: what stays in its caches is faster there than large batches


@dataclass(frozen=True)
class Parameters:
    """What a trial does: per component which direction, and how strongly at which layers."""

    choices: dict[Component, Choice]
    kernels: dict[Component, Kernel]

    def plan(self, directions: Directions, edits: Edits) -> Plan:
        """The edits of all targets, float32."""
        plan: Plan = {}
        for target in edits.targets:
            weight = self.kernels[target.component].weight(target.layer)
            if weight:
                vector = directions.at(target.layer, self.choices[target.component]).float()
                plan[target.path] = (vector, weight)
        return plan


@dataclass(frozen=True)
class TrialResult:
    """What was measured of one trial. gated: by its KL. dominated: answering was stopped early, see `Measures.harmful`.

    verdicts: refused or not, by harmful prompt in the given order, as far as asked. seconds, tokens: its share.
    """

    measures: Measures
    gated: bool
    dominated: bool
    verdicts: list[bool | None]
    seconds: float
    tokens: int


class Examiner:
    """Measures models that differ from one base by edits. base, base_answers: its measures, and its
    answers to the harmful search prompts."""

    def __init__(
        self,
        subject: LanguageModel,
        edits: Edits,
        prompts: Prompts,
        search: SearchSettings,
        objectives: ObjectiveSettings,
        seed: int,
    ) -> None:
        self.subject, self.edits, self.prompts = subject, edits, prompts
        self.search, self.objectives = search, objectives
        reference = first_token_log_probabilities(self.model, prompts.harmless_search, subject.builder.pad_id)
        self.reference = reference.to(self.model.device)  # [harmless, vocabulary]
        order = list(range(len(prompts.harmful_search)))
        random.Random(f"{seed}/blocks").shuffle(order)
        size = search.block or len(order)
        self._blocks = [order[start : start + size] for start in range(0, len(order), size)]
        self.base_answers = self._answer([0], list(range(len(order))), "harmful", None)[0]
        self.base = self._base()

    @property
    def model(self) -> Any:
        """The model that is measured."""
        return self.subject.model

    def examine(self, plans: Sequence[Plan], known: Sequence[tuple[float, float]] = ()) -> list[TrialResult]:
        """Measure trials. known: (refusal rate, KL) of earlier ones, against which a trial can be given up."""
        started = time.perf_counter()
        with self.edits.on(plans) as rows:
            kl = self.divergences(len(plans), rows).mean(dim=1).tolist()
            gate = self.search.kl_gate or math.inf
            gated = [not value <= gate for value in kl]  # what is not a number is no KL to answer with, either
            alive = [trial for trial in range(len(plans)) if not gated[trial]]
            harmful = self._harmful(alive, kl, known, rows)
            whole = [trial for trial in alive if not harmful[trial].dominated]
            refused = self._overrefusals(whole, rows)
        seconds = (time.perf_counter() - started) / len(plans)
        return [
            TrialResult(
                worst(kl[trial], self.base, self.objectives)
                if gated[trial]
                else self._measures(kl[trial], harmful[trial], refused.get(trial)),
                gated[trial],
                not gated[trial] and harmful[trial].dominated,
                [None] * len(self.prompts.harmful_search) if gated[trial] else harmful[trial].verdicts,
                seconds,
                0 if gated[trial] else harmful[trial].tokens,
            )
            for trial in range(len(plans))
        ]

    def divergences(self, trials: int, rows: Rows | None) -> Tensor:
        """KL(base ‖ edited) by trial and harmless prompt, [trials, prompts], on the CPU."""
        return by_trial(
            self.model,
            self.prompts.harmless_search,
            trials,
            rows,
            lambda places, edited: kl_divergence(self.reference[places], edited),
            self.subject.builder.pad_id,
            token_budget=CPU_TOKENS if self.model.device.type == "cpu" else None,
            title="KL",
        )

    def answers(self, plans: Sequence[Plan], side: str) -> list[list[Answer]]:
        """Whole answers of trials to the search prompts of a side, by trial."""
        count = len(getattr(self.prompts, f"{side}_search"))
        with self.edits.on(plans) as rows:
            return self._answer(list(range(len(plans))), list(range(count)), side, rows)

    def release(self) -> None:
        """Drop the model and its edited modules, so that their memory can be used for the exported one."""
        self.subject.model = None
        self.edits.targets.clear()

    def take(self, model: Any) -> None:
        """Measure another model of the same kind against the same base."""
        self.subject.model = model

    def refuses(self, text: str) -> bool:
        """By the rule that the search goes by."""
        return markers.refuses(text, self.search.rule)

    def _base(self) -> Measures:
        answers = self.base_answers
        verdicts = [self.refuses(answer.response) for answer in answers]
        tally = _Tally(verdicts, answers, sum(answer.tokens for answer in answers), False)
        refused = None
        if self.objectives.reads_harmless_answers:
            refused = self._refused_harmless([0], None)[0]
        return self._measures(0.0, tally, refused)

    def _measures(self, kl: float, tally: _Tally, overrefusals: int | None) -> Measures:
        asked = [verdict for verdict in tally.verdicts if verdict is not None]
        if overrefusals is None and self.objectives.reads_harmless_answers:
            overrefusals = self.base.overrefusals  # of a trial that was given up: not measured, so not held against it
        disclaimers = compliance = None
        if self.objectives.reads_whole_answers:
            pairs = [
                (text, answer.response)
                for text, answer in zip(self.prompts.texts["harmful_search"], tally.answers, strict=True)
                if answer is not None
            ]
            disclaimers = sum(markers.disclaimers(answer) for _, answer in pairs) / len(pairs)
            compliance = sum(markers.compliance(*pair) for pair in pairs) / len(pairs)
        return Measures(
            kl=kl,
            refusals=sum(asked),
            harmful=len(asked),
            overrefusals=overrefusals,
            harmless=len(self.prompts.harmless_search),
            disclaimers=disclaimers,
            compliance=compliance,
        )

    def _harmful(
        self, alive: list[int], kl: Sequence[float], known: Sequence[tuple[float, float]], rows: Rows
    ) -> dict[int, _Tally]:
        """Refusals of harmful prompts, block by block, of the trials that no earlier one dominates yet."""
        count = len(self.prompts.harmful_search)
        tallies = {trial: _Tally([None] * count, [None] * count, 0, False) for trial in alive}
        certain = None if self.objectives.reads_whole_answers else self._certain
        for number, block in enumerate(self._blocks):
            going = [trial for trial in alive if not tallies[trial].dominated]
            for trial, answers in self._answer(going, block, "harmful", rows, certain).items():
                tallies[trial].add(block, answers, self.refuses)
            if number + 1 == len(self._blocks) or not known:
                continue
            for trial in going:
                asked = [verdict for verdict in tallies[trial].verdicts if verdict is not None]
                tallies[trial].dominated = pareto.surely_dominated(
                    sum(asked), len(asked), kl[trial], known, self.search.confidence
                )
        return tallies

    def _overrefusals(self, trials: list[int], rows: Rows) -> dict[int, int]:
        if not self.objectives.reads_harmless_answers or not trials:
            return {}
        return self._refused_harmless(trials, rows)

    def _refused_harmless(self, trials: list[int], rows: Rows | None) -> dict[int, int]:
        places = list(range(len(self.prompts.harmless_search)))
        answers = self._answer(trials, places, "harmless", rows, self._certain)
        return {trial: sum(self.refuses(answer.response) for answer in of_trial) for trial, of_trial in answers.items()}

    def _answer(
        self,
        trials: list[int],
        places: list[int],
        side: str,
        rows: Rows | None,
        certain: Callable[[str], bool] | None = None,
    ) -> dict[int, list[Answer]]:
        prompts = [getattr(self.prompts, f"{side}_search")[place] for place in places]
        return answers_by_trial(self.subject, prompts, trials, self.search.max_new_tokens, rows, certain)

    def _certain(self, text: str) -> bool:
        """Whether an answer that begins with `text` is certainly a refusal; an empty text does not tell yet."""
        return bool(text.strip()) and self.refuses(text)


@dataclass
class _Tally:
    """What a trial has answered so far, by harmful prompt."""

    verdicts: list[bool | None]
    answers: list[Answer | None]
    tokens: int
    dominated: bool

    def add(self, places: Sequence[int], answers: Sequence[Answer], refuses: Callable[[str], bool]) -> None:
        for place, answer in zip(places, answers, strict=True):
            self.answers[place] = answer
            self.verdicts[place] = refuses(answer.response)
            self.tokens += answer.tokens
