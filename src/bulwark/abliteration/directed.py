"""Arditi et al.'s attack on a checkpoint, start to end: one direction, projected out of every matrix that writes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bulwark.abliteration import attack
from bulwark.abliteration.settings import RefusalDirectionSettings
from bulwark.errors import BulwarkError

if TYPE_CHECKING:
    from torch import Tensor

    from bulwark.abliteration.search.trials import Examiner
    from bulwark.jobs.job import Job
    from bulwark.models.answers import Answer
    from bulwark.models.open import LanguageModel
    from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)


def attack_with_one_direction(job: Job, settings: RefusalDirectionSettings) -> dict[str, Any]:
    """Choose the direction, orthogonalise the weights, save; returns what the manifest records.

    Raises BulwarkError if the parent refuses nothing, unless it is to be saved as it is then; if it answers nothing; or
    if no candidate keeps the bounds.
    """
    from bulwark.abliteration.measure.directions import normalised
    from bulwark.abliteration.measure.subject import continued
    from bulwark.abliteration.search import outcome, selection
    from bulwark.models.embeddings import role_embedding_of

    started = time.time()
    examiner = attack.examiner_of(job, settings)
    if not examiner.base.refusals:
        return attack.unedited(job, examiner, settings, attack.NONE_REFUSED, time.time() - started)
    subject = examiner.subject
    answers = {"harmful_search": examiner.base_answers, "harmless_search": examiner.answers([{}], "harmless")[0]}
    tokens = _refusal_tokens(examiner, answers, settings)
    kept = _kept(examiner, answers, tokens, settings.filtered)
    if left := [name for name, part in kept.items() if not part]:
        reason = f"of the {len(examiner.prompts.texts[left[0]])} prompts of {left[0]} none is refused"
        return attack.unedited(job, examiner, settings, reason, time.time() - started)
    asked = [continued(subject, kept[f"{side}_directions"], settings.prompts.after) for side in ("harmful", "harmless")]
    positions = settings.positions or selection.template_tokens(asked[0])
    candidates = selection.candidates(subject.model, *asked, subject.builder.pad_id, positions)
    reference = _log_probabilities(subject, kept["harmless_search"]).to(subject.model.device)
    judge = selection.Judge(examiner, kept["harmful_search"], kept["harmless_search"], reference, tokens)
    judged = judge.judge(candidates, settings)
    best = selection.best_of(judged, settings.otherwise)
    log.info("Chosen: the direction at position %d, layer %d", best.candidate.position, best.candidate.layer)
    unit = normalised(best.candidate.vector)
    plan = {target.path: (unit.float(), 1.0) for target in examiner.edits.targets}
    edited = examiner.examine([plan])[0]
    seconds = time.time() - started
    # An input embedding that gives tokens roles is left as it is.
    ablates_embedding = settings.embedding and role_embedding_of(subject.model).method == "vanilla"
    also = (lambda model: _ablate_embedding(model, unit)) if ablates_embedding else None
    directions = {"refusal_direction": best.candidate.vector}
    manifest, exported = attack.export(job, examiner, plan, directions, settings.outcome, 1, also)
    record = {"candidates": len(judged), "embedding_ablated": ablates_embedding, "exported": exported}
    outcome.write(
        job.folder,
        {
            "candidates.jsonl": [{**entry.as_dict(), "chosen": entry is best} for entry in judged],
            "summary.json": {
                "base": outcome.described(examiner.base),
                "chosen": {**best.as_dict(), "edited": outcome.described(edited.measures)},
                "refusal_tokens": tokens,
                "kept": {name: len(part) for name, part in kept.items()},
                "cost": {"setup_seconds": round(seconds, 3)},
                **record,
            },
        },
    )
    return {
        **manifest,
        "abliteration": {"base_refusals": examiner.base.refusals, "chosen": best.as_dict(), **record},
    }


def _refusal_tokens(
    examiner: Examiner, answers: Mapping[str, Sequence[Answer]], settings: RefusalDirectionSettings
) -> list[int]:
    """The first tokens by which refusals are recognised; none if that takes whole answers."""
    from bulwark.abliteration.search import selection

    tokenizer = examiner.subject.tokenizer
    if settings.refusal_tokens is not None:
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in settings.refusal_tokens]
        tokens = sorted({ids[0] for ids in encoded})
    else:
        # Answers are greedy, so that the likeliest first token is the one that was generated.
        first = {
            "harmful_search": _log_probabilities(examiner.subject, examiner.prompts.harmful_search),
            "harmless_search": examiner.reference,
        }
        begun = [
            (token, examiner.refuses(answer.response))
            for name, given in answers.items()
            for token, answer in zip(first[name].argmax(-1).tolist(), given, strict=True)
            if answer.response
        ]
        refusals = [token for token, refused in begun if refused]
        tokens = selection.first_tokens(refusals, [token for token, refused in begun if not refused])
    log.info("Refusals are recognised by %s", tokenizer.convert_ids_to_tokens(tokens) if tokens else "whole answers")
    return tokens


def _kept(
    examiner: Examiner, answers: Mapping[str, Sequence[Answer]], tokens: Sequence[int], filtered: bool
) -> dict[str, list[Prompt]]:
    """The prompts by set; if filtered, the harmful ones that the model refuses and the harmless ones that it does not.

    answers: to the search prompts, which are known already. Of harmful prompts none may be left.
    Raises BulwarkError if no harmless one is.
    """
    from bulwark.abliteration.measure.measuring import refusal_score
    from bulwark.abliteration.measure.subject import answers_by_trial

    prompts, subject = examiner.prompts, examiner.subject
    kept = {name: getattr(prompts, name) for name in prompts.texts}
    if not filtered:
        return kept
    for name, part in kept.items():
        harmful = name.startswith("harmful")
        if tokens:
            scores = refusal_score(_log_probabilities(subject, part), tokens)
            refused = [score > 0 for score in scores.tolist()]
        else:
            written = answers.get(name) or answers_by_trial(subject, part, [0], examiner.search.max_new_tokens)[0]
            refused = [examiner.refuses(answer.response) for answer in written]
        kept[name] = [prompt for prompt, verdict in zip(part, refused, strict=True) if verdict == harmful]
        if not kept[name] and not harmful:
            raise BulwarkError(
                f"Of the {len(part)} prompts of {name} none is answered. Set filtered: false, name refusal_tokens, or "
                "take other prompts."
            )
    log.info("Kept: %s", {name: f"{len(part)} of {len(prompts.texts[name])}" for name, part in kept.items()})
    return kept


def _log_probabilities(subject: LanguageModel, prompts: list[Prompt]) -> Tensor:
    from bulwark.abliteration.measure.measuring import first_token_log_probabilities

    return first_token_log_probabilities(subject.model, prompts, subject.builder.pad_id)


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
