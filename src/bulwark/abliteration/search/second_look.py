"""A second look at the best trials: a judge reads their answers, and their cost in capability is measured.

Markers and the KL of the first token mislead: an evasion holds no marker, and a model that an edit has broken refuses
nothing and may still begin its answers as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from bulwark import judges
from bulwark.abliteration.edit.hooks import Plan
from bulwark.abliteration.search.trials import Examiner
from bulwark.abliteration.settings import SelectionSettings
from bulwark.errors import BulwarkError
from bulwark.models.answers import Answer

log = logging.getLogger(__name__)


def looked_at(
    examiner: Examiner,
    trials: Sequence[dict[str, Any]],
    plan_of: Callable[[int], Plan],
    selection: SelectionSettings,
) -> list[dict[str, Any]]:
    """The trials, with `chosen` moved to the best by a second look (see `SelectionSettings`), as they are without one.

    trials: as `outcome.marked` gives them. plan_of(number): the edits of a trial. Those that are looked at get
    `answer_kl`, and `judged`, the mean judgement as a share of the scale, None without a judge.
    Raises BulwarkError if the judge gives no value for any answer of a trial.
    """
    if not selection.looks:
        return list(trials)
    whole = [trial for trial in trials if not trial["gated"] and not trial["dominated"]]
    bound = selection.kl_at_most
    fitting = [trial for trial in whole if bound is None or trial["kl"] <= bound]
    order = sorted(fitting or whole, key=lambda one: (one["refusals"], one["overrefusals"] or 0, one["kl"]))
    seen: dict[int, dict[str, Any]] = {}
    for trial in order[: selection.looked_at]:
        plan = plan_of(trial["number"])
        judged = _judged(examiner, examiner.answers([plan], "harmful")[0], selection) if selection.judge else None
        seen[trial["number"]] = {"answer_kl": examiner.answer_divergence(plan), "judged": judged}
    most = selection.answer_kl_at_most
    allowed = [number for number, found in seen.items() if most is None or found["answer_kl"] <= most]
    sign = 1 if selection.criterion == "refusal" else -1
    if allowed and selection.judge:
        best = min(allowed, key=lambda number: sign * seen[number]["judged"])  # of equal ones the first in `order`
    elif allowed:
        best = allowed[0]
    else:
        best = min(seen, key=lambda number: seen[number]["answer_kl"])
    log.info("Of %d trials that were looked at twice, trial %d is chosen: %s", len(seen), best, seen[best])
    return [{**trial, **seen.get(trial["number"], {}), "chosen": trial["number"] == best} for trial in trials]


def _judged(examiner: Examiner, answers: Sequence[Answer], selection: SelectionSettings) -> float:
    """The mean judgement of answers to the harmful search prompts, as a share of the judge's scale."""
    prompts = examiner.prompts
    expected = prompts.answers.get("harmful_search", [None] * len(answers))
    texts = zip(prompts.texts["harmful_search"], answers, expected, strict=True)
    requests = [
        judges.Request(str(number), text, answer.response, selection.criterion, expected=right)
        for number, (text, answer, right) in enumerate(texts)
    ]
    values = [one.value for one in judges.judge(requests, selection.judge) if one.value is not None]
    if not values:
        raise BulwarkError(
            f"selection.judge ({selection.judge.kind}) gave no value for any of {len(requests)} answers. Its log says "
            "why; without a judge, trials are chosen by markers."
        )
    return sum(values) / len(values) / selection.judge.scale
