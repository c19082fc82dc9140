"""Answers and what is measured of trials: several at once, stopped early, given up."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from abliteration_samples import Attacked, attack_settings, checksum, parameters, texts

from bulwark.abliteration.measure import markers
from bulwark.abliteration.search import outcome
from bulwark.abliteration.search.search import Search
from bulwark.abliteration.settings import SelectionSettings
from bulwark.errors import BulwarkError
from bulwark.models.answers import Answer
from bulwark.models.decoding import Decoding
from bulwark.models.generation import generate
from bulwark.prompts.builder import Prompt

TRIALS = [
    parameters(0.0, 0.0),
    parameters(1.15, 1.0),
    parameters(1.1, 1.0, index=0.5),
    parameters(0.5, 0.2),
    parameters(0.95, 0.5),
    parameters(1.1, 0.5, index=0.5),
]


@pytest.fixture(scope="module")
def subject() -> Attacked:
    return Attacked(attack_settings(objectives={"overrefusal": 0.25}))


def asked_of(subject: Attacked, *sides: str) -> list[tuple[str, Prompt]]:
    return [
        (f"{side}/{n}", prompt) for side in sides for n, prompt in enumerate(getattr(subject.prompts, f"{side}_search"))
    ]


def answers(subject: Attacked, *sides: str, stops=(2,), new_tokens: int = 7, **options) -> list[Answer]:
    options = {"tokenizer": subject.tokenizer, "stop_ids": list(stops), "pad_id": 2, **options}
    return generate(subject.model, asked_of(subject, *sides), Decoding(max_new_tokens=new_tokens), **options)


def test_the_tiny_model_refuses_what_is_harmful_and_the_right_edit_ends_that(subject):
    assert subject.examiner.base.refusals == 16
    assert 0 < subject.examiner.base.overrefusals < 16
    found = subject.examine(TRIALS, [])
    assert found[0].measures.kl == pytest.approx(0, abs=1e-6)
    assert found[0].measures.refusals == 16
    assert len({one.measures.refusals for one in found}) > 2
    assert min(one.measures.refusals for one in found) < 4


# Answers


def test_an_answer_is_transformers_greedy_one(subject):
    for side in ("harmful", "harmless"):
        written = answers(subject, side)
        for one, prompt in zip(written, getattr(subject.prompts, f"{side}_search"), strict=True):
            ids = torch.tensor([prompt.ids])
            for _ in range(7):
                with torch.inference_mode():
                    chosen = subject.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
                if int(chosen) == 2:
                    break
                ids = torch.cat([ids, chosen.view(1, 1)], dim=1)
            new = ids[0, len(prompt.ids) :].tolist()
            assert one.response == subject.tokenizer.decode(new, skip_special_tokens=True).strip()
            assert one.tokens == len(new) + (one.finish == "stop")


@pytest.mark.parametrize("budget", [1, 60, 100, 4000])
def test_answers_do_not_depend_on_what_shares_their_batch(subject, budget):
    """Rows that have ended leave the batch; here at every step, with a stop token that the model often says."""
    stops = [2, *subject.tokenizer.convert_tokens_to_ids(["good4", "word7", "build"])]
    options = {"stops": stops, "new_tokens": 12}
    expected = answers(subject, "harmless", "harmful", token_budget=1, **options)
    assert answers(subject, "harmless", "harmful", token_budget=budget, **options) == expected
    assert len({one.tokens for one in expected}) > 3
    assert {one.finish for one in expected} == {"stop", "length"}
    assert not any("good4" in one.response for one in expected)


@pytest.mark.parametrize("budget", [1, 80, 4000])
@pytest.mark.parametrize("rule", ["heretic", "iconoclast", "arditi"])
def test_stopping_at_a_marker_gives_the_verdict_of_the_whole_answer(subject, budget, rule):
    whole = answers(subject, "harmless", "harmful")
    examiner = Attacked(attack_settings(search={"rule": rule})).examiner
    early = answers(subject, "harmless", "harmful", token_budget=budget, stop_when=examiner.certainly_refuses)
    verdicts = [markers.refuses(one.response, rule) for one in whole]
    assert [markers.refuses(one.response, rule) for one in early] == verdicts
    assert {True, False} == set(verdicts)
    assert "decided" in {one.finish for one in early} != {"decided"}
    assert not any(one.finish == "decided" and not verdict for one, verdict in zip(early, verdicts, strict=True))
    assert sum(one.tokens for one in early) < sum(one.tokens for one in whole)
    for long, short in zip(whole, early, strict=True):
        assert long.response.startswith(short.response)


@pytest.mark.parametrize("rule", ["heretic", "iconoclast", "arditi"])
def test_a_certain_verdict_on_any_beginning_is_that_on_the_whole_text(subject, rule):
    examiner = Attacked(attack_settings(search={"rule": rule})).examiner
    generator = random.Random(4)
    parts = [*markers.RULES[rule], "I *can", "not", "I  will", "’", "won’t", " ", "\n", "sure", "Here is", "*", "é"]
    for _ in range(300):
        text = "".join(generator.choice(parts) + generator.choice(["", " ", "\n"]) for _ in range(5))
        for end in range(0, len(text), 3):
            if examiner.certainly_refuses(text[:end]):
                assert markers.refuses(text, rule)
    assert not examiner.certainly_refuses("")
    assert not examiner.certainly_refuses(" \n")


def test_broken_logits_are_told(subject):
    other = Attacked()
    with torch.no_grad():
        other.model.lm_head.weight[5] = torch.nan
    with pytest.raises(BulwarkError, match="are not numbers"):
        answers(other, "harmful")


# Trials


@pytest.mark.parametrize("together", [2, 3, 6])
@pytest.mark.parametrize("normalization", ["none", "full"])
def test_several_trials_in_one_batch_are_measured_as_one_after_another(together, normalization):
    subject = Attacked(attack_settings(objectives={"overrefusal": 0.25}, edit={"normalization": normalization}))
    single = [subject.examine([one], [])[0] for one in TRIALS]
    found = [one for start in range(0, 6, together) for one in subject.examine(TRIALS[start : start + together], [])]
    for one, other in zip(found, single, strict=True):
        assert one.verdicts == other.verdicts
        assert one.measures.kl == pytest.approx(other.measures.kl, abs=1e-5)
        assert (one.measures.refusals, one.measures.overrefusals) == (
            other.measures.refusals,
            other.measures.overrefusals,
        )
        assert one.tokens == other.tokens


def test_kl_is_the_mean_over_the_harmless_prompts_of_that_from_base_to_edited(subject):
    plan = subject.plan(TRIALS[1])
    values = []
    for prompt in subject.prompts.harmless_search:
        ids = torch.tensor([prompt.ids])
        with torch.inference_mode():
            base = subject.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            with subject.edits.on([plan]) as rows:
                rows.are(torch.zeros(1, dtype=torch.long))
                edited = subject.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        values.append(float((base.exp() * (base - edited)).sum()))
    found = subject.examine([TRIALS[1]], [])[0]
    assert found.measures.kl == pytest.approx(sum(values) / len(values), rel=1e-3)


@pytest.mark.parametrize("normalization", ["none", "pre", "full", "columns"])
def test_after_trials_the_base_is_the_same_to_the_last_bit(normalization):
    subject = Attacked(attack_settings(edit={"normalization": normalization}))
    ids = torch.tensor([subject.prompts.harmful_search[0].ids])
    with torch.inference_mode():
        before, bits = subject.model(input_ids=ids).logits, checksum(subject.model)
        for start in (0, 3):
            subject.examine(TRIALS[start : start + 3], [])
        assert torch.equal(subject.model(input_ids=ids).logits, before)
    assert checksum(subject.model) == bits


def test_a_trial_above_the_gate_is_not_answered_with():
    subject = Attacked(attack_settings(search={"kl_gate": 0.05}))
    found = subject.examine(TRIALS, [])
    ungated = Attacked().examine(TRIALS, [])
    assert {one.gated for one in found} == {True, False}
    for one, other in zip(found, ungated, strict=True):
        assert one.gated == (other.measures.kl > 0.05)
        assert one.measures.kl == pytest.approx(other.measures.kl)
        if one.gated:
            assert (one.tokens, one.measures.refusals, one.measures.refusal_rate) == (0, 16, 1.0)
            assert one.verdicts == [None] * 16
        else:
            assert one.verdicts == other.verdicts


def test_a_trial_whose_logits_are_no_numbers_does_not_end_the_search(subject, tmp_path):
    """It is gated, it is no good trial, and the files about the search can be written."""
    given = iter([parameters(math.nan, 1.0)])

    def examine(proposed, known):
        return subject.examine([next(given, one) for one in proposed], known)

    search = Search(tmp_path / "j", attack_settings(search={"trials": 3, "startup_trials": 3}), 2, 0, "x")
    search.run(examine, subject.score)
    trials = outcome.marked(search.records(), SelectionSettings(), None)
    assert trials[0]["gated"]
    assert not trials[0]["pareto"]
    assert trials[0]["objectives"][0] > max(one["objectives"][0] for one in trials[1:])
    outcome.write(tmp_path, {"trials.jsonl": trials})


def test_whole_answers_are_written_where_their_style_counts():
    subject = Attacked(attack_settings(objectives={"disclaimers": 0.1, "compliance_gap": 0.1}))
    answers = subject.examiner.answers([subject.plan(TRIALS[3])], "harmful")[0]
    found = subject.examine([TRIALS[3]], [])[0]
    words = texts("harmful", "search")
    hits = [markers.disclaimers(one.response) for one in answers]
    compliance = [markers.compliance(text, one.response) for text, one in zip(words, answers, strict=True)]
    assert found.measures.disclaimers == pytest.approx(sum(hits) / 16)
    assert found.measures.compliance == pytest.approx(sum(compliance) / 16)
    assert found.tokens == sum(one.tokens for one in answers)


def test_the_same_blocks_are_asked_whatever_came_before(subject):
    orders = [Attacked(attack_settings(search={"block": 5})).examiner._blocks for _ in range(2)]
    assert orders[0] == orders[1]
    assert sorted(place for block in orders[0] for place in block) == list(range(16))
    assert [len(block) for block in orders[0]] == [5, 5, 5, 1]
    assert orders[0][0] != [0, 1, 2, 3, 4]


def test_a_trial_that_is_dominated_is_given_up_and_says_after_how_many_prompts():
    subject = Attacked(attack_settings(search={"block": 4}))
    found = subject.examine([TRIALS[3]], [(0.0, 0.0)])[0]
    assert found.dominated
    assert found.measures.harmful == 4
    assert sum(verdict is not None for verdict in found.verdicts) == 4
    whole = subject.examine([TRIALS[3]], [(0.0, 10.0)])[0]
    assert not whole.dominated
    assert whole.measures.harmful == 16


def run(folder: Path, block: int | None, batch: int, overrefusal: float = 0.0, trials: int = 40) -> list[dict]:
    """A random search, so that what is found does not decide what is tried."""
    settings = attack_settings(
        search={"trials": trials, "startup_trials": trials, "block": block, "trials_per_batch": batch},
        objectives={"overrefusal": overrefusal},
    )
    subject = Attacked(settings)
    search = Search(folder / f"{block}-{batch}" / "j", settings, 2, 5, "x")
    search.run(subject.examine, subject.score)
    return outcome.marked(search.records(), SelectionSettings(), None)


@pytest.mark.parametrize("overrefusal", [0.0, 0.25])
def test_giving_trials_up_by_blocks_changes_neither_front_nor_choice(tmp_path, overrefusal):
    whole, blocked = run(tmp_path, None, 5, overrefusal), run(tmp_path, 4, 5, overrefusal)
    assert [one["parameters"] for one in whole] == [one["parameters"] for one in blocked]
    assert any(one["dominated"] for one in blocked)
    for mark in ("pareto", "chosen"):
        assert [one["number"] for one in whole if one[mark]] == [one["number"] for one in blocked if one[mark]]


def test_a_trial_with_fewer_overrefusals_than_all_known_ones_is_not_given_up(tmp_path):
    """It is on the front of (refusals, overrefusals, KL), whatever its refusals and KL."""
    settings = attack_settings(search={"block": 4, "trials": 2, "startup_trials": 2}, objectives={"overrefusal": 1.0})
    subject = Attacked(settings)
    few = subject.examine([TRIALS[1]], [])[0]
    given = iter([{"refusals": 0, "over": 16, "kl": 0.0}])
    search = Search(tmp_path / "j", settings, 2, 1, "x")

    def examine(proposed, known):
        """First a made-up trial of no refusals, no KL and every overrefusal; then a real one."""
        if (first := next(given, None)) is not None:
            measures = type(few.measures)(first["kl"], first["refusals"], 16, first["over"], 16)
            return [type(few)(measures, False, False, [False] * 16, 1.0, 1)]
        return subject.examine([TRIALS[3]], known)

    search.run(examine, subject.score)
    real = search.records()[1]
    assert not real["dominated"]
    assert real["overrefusals"] < 16
