"""Trials that a judge reads, and whose whole answers are compared: what a choice by markers cannot see."""

from __future__ import annotations

import pytest
import torch
from abliteration_samples import Attacked, parameters, plain_ids, refusing_model, words_tokenizer
from torch.nn.functional import log_softmax

from bulwark import judges
from bulwark.abliteration.edit.export import merge
from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import targets_of
from bulwark.abliteration.search import second_look
from bulwark.abliteration.settings import SelectionSettings
from bulwark.errors import BulwarkError
from bulwark.judges import Judgement
from bulwark.settings import validated

JUDGE = {"kind": "marker", "scale": 100}
TRIALS = [
    {
        "number": n,
        "refusals": refusals,
        "overrefusals": None,
        "kl": kl,
        "gated": False,
        "dominated": False,
        "chosen": n == 1,
    }
    for n, (refusals, kl) in enumerate([(5, 0.1), (0, 0.4), (2, 0.3), (3, 0.2), (0, 2.0)])
]


def selection(**given) -> SelectionSettings:
    return validated(SelectionSettings, {"kl_at_most": 1.0} | given, "here")


@pytest.fixture
def examiner():
    return Attacked().examiner


@pytest.fixture
def judged(monkeypatch):
    """Each trial is judged by its number, which stands in the plan's strength."""
    values = {0: 80.0, 1: 60.0, 2: 10.0, 3: 20.0, 4: 0.0}
    seen = []

    def examined(self, plans, side):
        seen.append(plans[0]["number"])
        return [[type("Answer", (), {"response": str(plans[0]["number"])})() for _ in range(16)]]

    monkeypatch.setattr(second_look.Examiner, "answers", examined)
    monkeypatch.setattr(second_look.Examiner, "answer_divergence", lambda self, plan: 0.1 * plan["number"])
    monkeypatch.setattr(
        judges, "judge", lambda requests, settings: [Judgement(values[int(one.answer)]) for one in requests]
    )
    return seen


def chosen(trials) -> int:
    return next(trial["number"] for trial in trials if trial["chosen"])


def looked(examiner, **given):
    return second_look.looked_at(examiner, TRIALS, lambda number: {"number": number}, selection(**given))


def test_without_a_judge_or_a_bound_nothing_changes(examiner):
    assert looked(examiner) == TRIALS


def test_the_least_refused_or_the_most_compliant_is_taken_among_those_within_the_bound(examiner, judged):
    found = looked(examiner, judge=JUDGE)
    assert chosen(found) == 2
    assert judged == [1, 2, 3, 0]  # by refusals, at KL ≤ 1
    assert [trial.get("judged") for trial in found] == [0.8, 0.6, 0.1, 0.2, None]
    assert chosen(looked(examiner, judge=JUDGE, criterion="compliance")) == 0


def test_only_the_best_by_markers_are_looked_at(examiner, judged):
    found = looked(examiner, judge=JUDGE, criterion="compliance", looked_at=2)
    assert chosen(found) == 1
    assert judged == [1, 2]


def test_what_costs_too_much_of_whole_answers_is_not_taken(examiner, judged):
    assert chosen(looked(examiner, judge=JUDGE, criterion="compliance", answer_kl_at_most=0.15)) == 0
    assert chosen(looked(examiner, answer_kl_at_most=0.25)) == 1
    assert chosen(looked(examiner, looked_at=3, answer_kl_at_most=0.05)) == 1  # none keeps it: the least of 1, 2 and 3


def test_a_judge_without_a_value_is_told(examiner, judged, monkeypatch):
    monkeypatch.setattr(judges, "judge", lambda requests, settings: [Judgement(None, "lost") for _ in requests])
    with pytest.raises(BulwarkError, match=r"selection\.judge \(marker\) gave no value for any of 16 answers"):
        looked(examiner, judge=JUDGE)


def test_the_kl_of_whole_answers_is_that_of_their_tokens_by_hand():
    subject = Attacked()
    plan = subject.plan(parameters(0.7, 0.7))
    found = subject.examiner.answer_divergence(plan)
    edited, plain = refusing_model(installed=False), refusing_model(installed=False)
    merge(edited, Edits(targets_of(edited)), plan)
    total, stop = [], words_tokenizer().convert_tokens_to_ids("<|im_end|>")
    for prompt in subject.prompts.harmless_search:
        ids = plain_ids(prompt)
        for _ in range(subject.settings.search.max_new_tokens):
            logs = [log_softmax(model(torch.tensor([ids])).logits[0, -1], -1) for model in (plain, edited)]
            following = int(logs[0].argmax())
            if following == stop:
                break
            total.append(float((logs[0].exp() * (logs[0] - logs[1])).sum()))
            ids.append(following)
    assert found == pytest.approx(sum(total) / len(total), rel=1e-3)
    assert found > 1e-3
