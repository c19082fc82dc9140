"""An attack without a direction: edits of low rank that gradients find, under a bound of the KL on harmless answers.

Every target gets y' = y - Aᵀ(By) of rank k (`LowRank`), which an export can write into the weights, and Adam lowers

    L = mean over refusals of -log(1 - p̄) + w·max(0, KL - κ)

p̄ is the geometric mean of the probabilities of a refusal's tokens (a likelihood that does not depend on length; the
loss is that of unlikelihood training, Welleck et al. 2020, arXiv 1908.04319, Eq. 5, of the refusal as a whole), KL that
of the unedited model to the edited one per token of the unedited model's own answers to harmless prompts. The refusals
are the model's own: after each round the edited model answers the attacker's prompts anew, and how it then refuses is
made unlikely as well. Nothing tells it what to answer instead; that it still can is what the KL keeps.

The idea of editing without a direction is that of HERETIC's arbitrary-rank ablation, whose objective is another (it
aligns residuals); objective, optimiser and its settings are ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bulwark.abliteration import attack
from bulwark.abliteration.edit.edits import LowRank
from bulwark.abliteration.edit.hooks import Plan
from bulwark.abliteration.edit.targets import device_of
from bulwark.abliteration.measure.measuring import kl_divergence, predicting
from bulwark.abliteration.measure.subject import answers_by_trial, longer
from bulwark.abliteration.settings import GradientEditSettings
from bulwark.errors import BulwarkError
from bulwark.models.batching import padded, progress
from bulwark.prompts.builder import Prompt

if TYPE_CHECKING:
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.jobs.job import Job

log = logging.getLogger(__name__)

_SURE = 1e-6  # below log p̄ = 0, so that a refusal that is certain has a finite loss


@dataclass(frozen=True)
class Example:
    """A prompt with an answer at its end. start: of what counts of the answer."""

    prompt: Prompt
    start: int


def attack_by_gradient(job: Job, settings: GradientEditSettings) -> dict[str, Any]:
    """Optimise the edit, measure it after each round, choose one and save; returns what the manifest records.

    Raises BulwarkError if the parent refuses nothing, unless it is to be saved as it is then, or answers nothing, of
    what the attacker has.
    """
    started = time.time()
    examiner = attack.examiner_of(job, settings)
    examiner.model.requires_grad_(False)
    refusals = refused(examiner, settings, None)
    harmless = complied(examiner)
    if not examiner.base.refusals:
        return attack.unedited(job, examiner, settings, attack.NONE_REFUSED, time.time() - started)
    if not refusals:
        reason = "none of the harmful prompts that the edit is optimised on is refused"
        return attack.unedited(job, examiner, settings, reason, time.time() - started)
    if not harmless:
        raise BulwarkError(
            f"{job.parent}: the model answers none of the harmless prompts that the edit is optimised on. Take others."
        )
    factors = drawn(examiner, settings.rank, job.seed)
    width = next(iter(factors.values())).a.shape[1]
    parameters = [part for factor in factors.values() for part in (factor.a, factor.b)]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate / width**0.5)
    generator = torch.Generator().manual_seed(job.seed)
    setup_seconds = time.time() - started
    trials: list[dict[str, Any]] = []
    plans: list[Plan] = []
    with progress(settings.rounds, 0, "rounds", "rounds") as advance:
        for number in range(settings.rounds):
            began = time.time()
            for _ in range(settings.steps):
                sides = [_some(examples, settings.batch_size, generator) for examples in (refusals, harmless)]
                loss = objective(examiner, factors, *sides, settings)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
            plans.append(
                {path: LowRank(one.a.detach().clone(), one.b.detach().clone()) for path, one in factors.items()}
            )
            result = examiner.examine([plans[-1]])[0].as_dict()
            known = {tuple(example.prompt.ids) for example in refusals}
            fresh = [one for one in refused(examiner, settings, plans[-1]) if tuple(one.prompt.ids) not in known]
            refusals += fresh
            measured = {"kl": result["kl"], "refusals": result["refusals"], "loss": float(loss.detach())}
            log.info("Round %d: %s, %d refusals that were not known", number, measured, len(fresh))
            told = {"parameters": {"steps": (number + 1) * settings.steps}, "profile": {}, "objectives": None}
            trials.append({"number": number, **told, **result, "seconds": round(time.time() - began, 3)})
            advance(1)
    directions = {
        f"{path}.{name}": part
        for path, factor in plans[-1].items()
        for name, part in (("a", factor.a), ("b", factor.b))
    }
    return attack.concluded(
        job, examiner, trials, plans.__getitem__, directions, settings, setup_seconds, settings.rank
    )


def refused(examiner: Examiner, settings: GradientEditSettings, plan: Plan | None) -> list[Example]:
    """The harmful direction prompts that the (edited) model refuses, each with the tokens of its refusal that count."""
    after, asked = settings.prompts.after, examiner.prompts.harmful_directions
    long = after + settings.refusal_tokens
    found = _answered(examiner, asked, plan)
    return [
        Example(longer(prompt, ids[:long]), len(prompt.ids) + after)
        for prompt, (ids, text) in zip(asked, found, strict=True)
        if examiner.refuses(text) and len(ids) > after
    ]


def complied(examiner: Examiner) -> list[Example]:
    """The harmless direction prompts that the model does not refuse, with its answers."""
    asked = examiner.prompts.harmless_directions
    found = _answered(examiner, asked, None)
    return [
        Example(longer(prompt, ids), len(prompt.ids))
        for prompt, (ids, text) in zip(asked, found, strict=True)
        if ids and not examiner.refuses(text)
    ]


def drawn(examiner: Examiner, rank: int, seed: int) -> dict[str, LowRank]:
    """A factor per target that changes nothing yet: a of zeros, b normal with rows of about length 1."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for target in examiner.edits.targets:
        device = device_of(target.module)
        b = torch.randn(rank, target.width, generator=generator) / target.width**0.5
        a = torch.zeros(rank, target.width, device=device)
        factors[target.path] = LowRank(a.requires_grad_(), b.to(device).requires_grad_())
    return factors


def objective(
    examiner: Examiner,
    factors: dict[str, LowRank],
    refusals: Sequence[Example],
    harmless: Sequence[Example],
    settings: GradientEditSettings,
) -> Tensor:
    """The loss L of a batch, see the head of this file; it has gradients to `factors` alone."""
    examples = [*refusals, *harmless]
    model, pad = examiner.model, examiner.subject.builder.pad_id
    ids = padded([example.prompt.ids for example in examples], pad).to(model.device)
    last = torch.tensor([len(example.prompt.ids) - 1 for example in examples], device=model.device)
    at = predicting([example.start for example in examples], last, ids.shape[1])
    count = len(refusals)
    with torch.no_grad():
        before = model(input_ids=ids[count:], use_cache=False).logits[at[count:]].float().log_softmax(-1)
    with examiner.edits.on([factors]) as rows:
        rows.are(torch.zeros(len(examples), dtype=torch.long))
        logits = model(input_ids=ids, use_cache=False).logits
        divergence = kl_divergence(before, logits[count:][at[count:]].float().log_softmax(-1)).mean()
        rows_of, places = at[:count].nonzero(as_tuple=True)
        logs = logits[rows_of, places].float().log_softmax(-1)
        embedding_rows = examiner.subject.builder.vocabulary
        tokens = logs.gather(1, (ids[rows_of, places + 1] % embedding_rows)[:, None])[:, 0]
        sums = torch.zeros(count, device=model.device).index_add(0, rows_of, tokens)
        likelihood = sums / at[:count].sum(1)  # log p̄
        unlikelihood = -torch.log(-torch.expm1(likelihood - _SURE))
        return unlikelihood.mean() + settings.kl_weight * (divergence - settings.kl_at_most).clamp(min=0)


def _answered(examiner: Examiner, prompts: Sequence[Prompt], plan: Plan | None) -> list[tuple[list[int], str]]:
    """Greedy answers of the (edited) model: generated ids and text."""
    ids: dict[str, list[int]] = {}
    with examiner.edits.on([plan or {}]) as rows:
        limit = examiner.search.max_new_tokens
        answers = answers_by_trial(examiner.subject, prompts, [0], limit, rows, ids=ids)[0]
    return [(ids[f"0/{place}"], answer.response) for place, answer in enumerate(answers)]


def _some(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    return [examples[number] for number in torch.randint(len(examples), (count,), generator=generator).tolist()]
