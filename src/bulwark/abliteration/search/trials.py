"""Measuring trials: edit the model in hooks, KL on harmless prompts first, then answers to harmful ones.

Several trials share every batch; in float32 no verdict depends on the others. A trial above the KL gate generates no
answers. With blocks, answering stops as soon as an earlier trial dominates for certain; how many prompts were used is
part of the result.
"""

from __future__ import annotations

import functools
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
from bulwark.abliteration.measure.measuring import (
    answer_divergence,
    by_trial,
    first_token_log_probabilities,
    kl_divergence,
)
from bulwark.abliteration.measure.subject import Prompts, answers_by_trial, continued
from bulwark.abliteration.search import pareto
from bulwark.abliteration.search.objectives import Measures, worst
from bulwark.abliteration.settings import Component, ObjectiveSettings, SearchSettings
from bulwark.models.answers import Answer
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import Prompt

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

    def as_dict(self) -> dict[str, Any]:
        """As plain data, a KL that is no number as null."""
        measures = self.measures
        return {
            "kl": measures.kl if math.isfinite(measures.kl) else None,
            "refusals": measures.refusals,
            "refusal_rate": measures.refusal_rate,
            "n": measures.harmful,
            "overrefusals": measures.overrefusals,
            "n_harmless": measures.harmless,
            "disclaimers": measures.disclaimers,
            "compliance": measures.compliance,
            "gated": self.gated,
            "dominated": self.dominated,
            "verdicts": self.verdicts,
            "seconds": self.seconds,
            "tokens": self.tokens,
        }


class Examiner:
    """Measures models that differ from one base by edits.

    base, base_answers: its measures, and its answers to the harmful search prompts.
    """

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
        self.base_answers = self._answer([0], "harmful", None)[0]
        self.base = self._measures(0.0, self.base_answers, self._overrefusals([0], None).get(0))

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
            # A KL that is not a number is none to answer with, either.
            alive = [trial for trial, value in enumerate(kl) if value <= gate]
            harmful, dominated = self._harmful(alive, kl, known, rows)
            refused = self._overrefusals([trial for trial in alive if trial not in dominated], rows)
        seconds = (time.perf_counter() - started) / len(plans)
        results = []
        for trial, value in enumerate(kl):
            gated = trial not in harmful
            answers = [None] * len(self.prompts.harmful_search) if gated else harmful[trial]
            measures = (
                worst(value, self.base, self.objectives)
                if gated
                else self._measures(value, answers, refused.get(trial))
            )
            tokens = sum(answer.tokens for answer in answers if answer is not None)
            verdicts = self._verdicts(answers)
            results.append(TrialResult(measures, gated, trial in dominated, verdicts, seconds, tokens))
        return results

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
        with self.edits.on(plans) as rows:
            return list(self._answer(range(len(plans)), side, rows).values())

    def answer_divergence(self, plan: Plan) -> float:
        """KL(base ‖ edited) per token of the base model's own answers to the harmless search prompts, in nats."""
        asked = self.prompts.harmless_search
        starts = [len(prompt.ids) for prompt in asked]
        return answer_divergence(self.model, self.edits, plan, self._answered, starts, self.subject.builder.pad_id)

    @functools.cached_property
    def _answered(self) -> list[Prompt]:
        """The harmless search prompts with the base model's answers."""
        return continued(self.subject, self.prompts.harmless_search, self.search.max_new_tokens)

    def release(self) -> None:
        """Drop the model and its edited modules, so that their memory can be used for the exported one."""
        self.subject.model = None
        self.edits.targets.clear()

    def refuses(self, text: str) -> bool:
        """By the rule that the search goes by."""
        return markers.refuses(text, self.search.rule)

    def certainly_refuses(self, text: str) -> bool:
        """Whether an answer that begins with `text` is certainly a refusal; an empty text does not tell yet."""
        return bool(text.strip()) and self.refuses(text)

    def _measures(self, kl: float, answers: Sequence[Answer | None], overrefusals: int | None) -> Measures:
        asked = [
            (text, answer.response)
            for text, answer in zip(self.prompts.texts["harmful_search"], answers, strict=True)
            if answer is not None
        ]
        if overrefusals is None and self.objectives.reads_harmless_answers:
            overrefusals = self.base.overrefusals  # of a trial that was given up: not measured, so not held against it
        disclaimers = compliance = None
        if self.objectives.reads_whole_answers:
            disclaimers = sum(markers.disclaimers(answer) for _, answer in asked) / len(asked)
            compliance = sum(markers.compliance(*pair) for pair in asked) / len(asked)
        return Measures(
            kl=kl,
            refusals=sum(self.refuses(answer) for _, answer in asked),
            harmful=len(asked),
            overrefusals=overrefusals,
            harmless=len(self.prompts.harmless_search),
            disclaimers=disclaimers,
            compliance=compliance,
        )

    def _harmful(
        self, alive: list[int], kl: Sequence[float], known: Sequence[tuple[float, float]], rows: Rows
    ) -> tuple[dict[int, list[Answer | None]], set[int]]:
        """Answers to harmful prompts, block by block, and which trials are given up: an earlier one dominates them."""
        answers: dict[int, list[Answer | None]] = {trial: [None] * len(self.prompts.harmful_search) for trial in alive}
        dominated: set[int] = set()
        stop_when = None if self.objectives.reads_whole_answers else self.certainly_refuses
        for block in self._blocks:
            going = [trial for trial in alive if trial not in dominated]
            for trial, given in self._answer(going, "harmful", rows, stop_when, block).items():
                for place, answer in zip(block, given, strict=True):
                    answers[trial][place] = answer
            if block is self._blocks[-1]:
                break
            for trial in going:
                asked = [verdict for verdict in self._verdicts(answers[trial]) if verdict is not None]
                if pareto.surely_dominated(sum(asked), len(asked), kl[trial], known, self.search.confidence):
                    dominated.add(trial)
        return answers, dominated

    def _verdicts(self, answers: Sequence[Answer | None]) -> list[bool | None]:
        return [None if answer is None else self.refuses(answer.response) for answer in answers]

    def _overrefusals(self, trials: list[int], rows: Rows | None) -> dict[int, int]:
        """Refusals of harmless prompts by trial, where they count."""
        if not self.objectives.reads_harmless_answers or not trials:
            return {}
        answers = self._answer(trials, "harmless", rows, self.certainly_refuses)
        return {trial: sum(self.refuses(answer.response) for answer in of_trial) for trial, of_trial in answers.items()}

    def _answer(
        self,
        trials: Sequence[int],
        side: str,
        rows: Rows | None,
        stop_when: Callable[[str], bool] | None = None,
        places: Sequence[int] | None = None,
    ) -> dict[int, list[Answer]]:
        """Answers by trial. places: numbers of the side's search prompts, all by default."""
        prompts = getattr(self.prompts, f"{side}_search")
        if places is not None:
            prompts = [prompts[place] for place in places]
        return answers_by_trial(self.subject, prompts, trials, self.search.max_new_tokens, rows, stop_when)
