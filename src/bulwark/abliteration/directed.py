"""Arditi et al.'s attack on a checkpoint, start to end: one direction, projected out of every matrix that writes it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bulwark.abliteration import attack
from bulwark.abliteration.settings import ObjectiveSettings, RefusalDirectionSettings, SearchSettings
from bulwark.errors import BulwarkError

if TYPE_CHECKING:
    from torch import Tensor

    from bulwark.abliteration.search.selection import Judged
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.jobs.job import Job
    from bulwark.models.open import LanguageModel
    from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)


def attack_with_one_direction(job: Job, settings: RefusalDirectionSettings) -> dict[str, Any]:
    """Choose the direction, orthogonalise the weights, save; returns what the manifest records.

    Raises BulwarkError if the parent refuses nothing, or no candidate keeps the bounds.
    """
    from bulwark.abliteration.edit.hooks import Edits
    from bulwark.abliteration.edit.targets import targets_of
    from bulwark.abliteration.measure.directions import normalised
    from bulwark.abliteration.measure.subject import read_prompts
    from bulwark.abliteration.search import outcome
    from bulwark.abliteration.search.trials import Examiner
    from bulwark.models.open import open_model

    started = time.time()
    subject = open_model(job.parent, settings.dtype)
    prompts = read_prompts(job.inputs, settings.prompts, subject.builder)
    edits = Edits(targets_of(subject.model, through_norms=settings.through_norms))
    search = SearchSettings(max_new_tokens=settings.max_new_tokens, rule=settings.rule)
    examiner = Examiner(subject, edits, prompts, search, ObjectiveSettings(), job.seed)
    attack.check_refusals(job, examiner)
    choice = _choose(subject, examiner, settings)
    best = choice.best
    log.info("Chosen: the direction at position %d, layer %d", best.candidate.position, best.candidate.layer)
    unit = normalised(best.candidate.vector)
    plan = {target.path: (unit.float(), 1.0) for target in edits.targets}
    edited = examiner.examine([plan])[0]
    seconds = time.time() - started
    answers = attack.answers_of(examiner, plan)
    ablates_embedding = settings.embedding and _has_plain_embedding(subject.model)
    also = (lambda model: _ablate_embedding(model, unit)) if ablates_embedding else None
    manifest, exported = attack.export(job, examiner, plan, answers["edited"]["harmful"], 1, also)
    attack.write_directions(job.folder, {"refusal_direction": best.candidate.vector})
    record = {"candidates": len(choice.judged), "embedding_ablated": ablates_embedding, "exported": exported}
    outcome.write(
        job.folder,
        {
            "candidates.jsonl": [{**judged.as_dict(), "chosen": judged is best} for judged in choice.judged],
            "comparison.json": outcome.comparison(prompts, answers, examiner.refuses, settings.outcome),
            "summary.json": {
                "base": outcome.described(examiner.base),
                "chosen": {**best.as_dict(), "edited": outcome.described(edited.measures)},
                "refusal_tokens": choice.refusal_tokens,
                "kept": choice.kept,
                "cost": {"setup_seconds": round(seconds, 3)},
                **record,
            },
        },
    )
    return {
        **manifest,
        "abliteration": {"base_refusals": examiner.base.refusals, "chosen": best.as_dict(), **record},
    }


@dataclass(frozen=True)
class _Choice:
    """judged: all candidates. refusal_tokens: by which refusals are recognised, none if by whole answers.

    kept: how many prompts of each set were used.
    """

    judged: list[Judged]
    best: Judged
    refusal_tokens: list[int]
    kept: dict[str, int]


def _choose(subject: LanguageModel, examiner: Examiner, settings: RefusalDirectionSettings) -> _Choice:
    """Judge all candidates, on the prompts that the model refuses or answers as their set says."""
    from bulwark.abliteration.measure.subject import answers_by_trial
    from bulwark.abliteration.search import selection

    prompts, tokenizer, builder = examiner.prompts, subject.tokenizer, subject.builder
    answers = {"harmful_search": examiner.base_answers, "harmless_search": examiner.answers([{}], "harmless")[0]}
    if settings.refusal_tokens is not None:
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in settings.refusal_tokens]
        tokens = sorted({ids[0] for ids in encoded})
    else:
        responses = [answer.response for side in answers.values() for answer in side]
        refusals = [text for text in responses if examiner.refuses(text)]
        others = [text for text in responses if not examiner.refuses(text)]
        tokens = selection.first_tokens(refusals, others, tokenizer)
    log.info("Refusals are recognised by %s", tokenizer.convert_ids_to_tokens(tokens) if tokens else "whole answers")
    kept = {name: getattr(prompts, name) for name in prompts.texts}
    if settings.filtered:
        for name, part in kept.items():
            if tokens:
                refused = _refused_at_first_token(subject, part, tokens)
            else:
                written = answers.get(name) or answers_by_trial(subject, part, [0], settings.max_new_tokens)[0]
                refused = [examiner.refuses(answer.response) for answer in written]
            kept[name] = _filtered(part, refused, name)
        log.info("Kept: %s", {name: f"{len(part)} of {len(prompts.texts[name])}" for name, part in kept.items()})
    positions = settings.positions or selection.template_tokens(kept["harmful_directions"])
    candidates = selection.candidates(
        subject.model, kept["harmful_directions"], kept["harmless_directions"], builder.pad_id, positions
    )
    judge = selection.Judge(
        subject,
        examiner.edits,
        kept["harmful_search"],
        kept["harmless_search"],
        _log_probabilities(subject, kept["harmless_search"]),
        tokens,
        examiner.refuses,
        settings.max_new_tokens,
    )
    judged = judge.judge(candidates, settings)
    best = selection.best_of(judged, settings.otherwise)
    return _Choice(judged, best, tokens, {name: len(part) for name, part in kept.items()})


def _filtered(part: list[Prompt], refused: list[bool], name: str) -> list[Prompt]:
    """The harmful prompts that are refused, or the harmless ones that are not."""
    harmful = name.startswith("harmful")
    kept = [prompt for prompt, verdict in zip(part, refused, strict=True) if verdict == harmful]
    if not kept:
        raise BulwarkError(
            f"Of the {len(part)} prompts of {name} none is {'refused' if harmful else 'answered'}. Set filtered: "
            "false, name refusal_tokens, or take other prompts."
        )
    return kept


def _refused_at_first_token(subject: LanguageModel, part: list[Prompt], tokens: list[int]) -> list[bool]:
    from bulwark.abliteration.measure.measuring import refusal_score

    return [score > 0 for score in refusal_score(_log_probabilities(subject, part), tokens).tolist()]


def _log_probabilities(subject: LanguageModel, prompts: list[Prompt]) -> Tensor:
    from bulwark.abliteration.measure.measuring import first_token_log_probabilities

    return first_token_log_probabilities(subject.model, prompts, subject.builder.pad_id)


def _has_plain_embedding(model: Any) -> bool:
    """Whether the input embedding is the same for tokens of every role."""
    from bulwark.models.embeddings import role_embedding_of

    return role_embedding_of(model).method == "vanilla"


def _ablate_embedding(model: Any, unit: Tensor) -> list[str]:
    """E(I - r̂r̂ᵀ), in float32, cast once. An output embedding that is tied to it is given its own weights first."""
    import torch
    from torch import nn

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        if embedding.weight is head.weight:
            head.weight = nn.Parameter(head.weight.detach().clone())
            model.config.get_text_config().tie_word_embeddings = False
            model.config.tie_word_embeddings = False
        direction = unit.float().to(embedding.weight.device)
        wide = embedding.weight.float()
        embedding.weight.copy_((wide - (wide @ direction)[:, None] * direction).to(embedding.weight.dtype))
    return ["embedding"]
