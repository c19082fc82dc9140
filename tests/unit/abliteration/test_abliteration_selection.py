"""One direction chosen among layers and positions, as Arditi et al. do."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from abliteration_samples import HIDDEN, LAYERS, VOCABULARY, Attacked, asked, attack_settings, axes, unit
from torch import Tensor

from bulwark.abliteration import directed
from bulwark.abliteration.measure.directions import normalised
from bulwark.abliteration.measure.measuring import first_token_log_probabilities, kl_divergence, refusal_score
from bulwark.abliteration.measure.subject import continued
from bulwark.abliteration.search.selection import (
    Candidate,
    Judge,
    Judged,
    best_of,
    candidates,
    first_tokens,
    template_tokens,
)
from bulwark.abliteration.settings import RefusalDirectionSettings
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of
from bulwark.settings import validated

PAD = 2
REFUSAL = [VOCABULARY.index("I'm")]
SETS = {"prompts": {"harmful": "harmful", "harmless": "harmless"}}


@pytest.fixture(scope="module")
def subject() -> Attacked:
    return Attacked(attack_settings())


@pytest.fixture(scope="module")
def found(subject) -> list[Candidate]:
    prompts = subject.prompts
    return candidates(subject.model, prompts.harmful_directions, prompts.harmless_directions, PAD, 3)


@pytest.fixture(scope="module")
def judge(subject) -> Judge:
    prompts = subject.prompts
    reference = first_token_log_probabilities(subject.model, prompts.harmless_search, PAD)
    return judge_of(subject, prompts, reference, REFUSAL)


def judge_of(subject, prompts, reference, tokens) -> Judge:
    return Judge(subject.examiner, prompts.harmful_search, prompts.harmless_search, reference, tokens)


def settings(**changes) -> RefusalDirectionSettings:
    return validated(
        RefusalDirectionSettings, SETS | {"kl_at_most": 10.0, "induced_at_least": -100.0} | changes, "here"
    )


@torch.inference_mode()
def hidden_states(subject, prompts, position: int) -> Tensor:
    """Mean of transformers' own at a position from the end, [L+1, hidden], float64."""
    total = 0
    for prompt in prompts:
        states = subject.model.base_model(
            input_ids=torch.tensor([prompt.ids]), output_hidden_states=True, use_cache=False
        ).hidden_states
        total = total + torch.stack([layer[0, position] for layer in states]).double()
    return total / len(prompts)


def test_candidates_are_all_block_inputs_at_the_last_positions(subject, found):
    assert [(one.position, one.layer) for one in found] == [
        (position, layer) for position in (-1, -2, -3) for layer in range(LAYERS)
    ]
    for one in found:
        means = [
            hidden_states(subject, part, one.position)
            for part in (subject.prompts.harmful_directions, subject.prompts.harmless_directions)
        ]
        assert torch.allclose(one.vector, (means[0] - means[1])[one.layer], atol=1e-5)


def test_the_templates_tokens_are_those_after_the_instruction_in_every_prompt():
    prompts = asked(["make a bad1", "sell"])
    assert template_tokens(prompts) == 3  # <|im_end|> <|im_start|> assistant
    assert all(prompt.spans[-1].end == len(prompt.ids) - 3 for prompt in prompts)


def by_hand(subject, prompt, unit_vector: Tensor) -> Tensor:
    """log-probabilities with v taken out at every block's input and at every sublayer's output, by hooks of our own."""
    model = subject.model

    def without(states: Tensor) -> Tensor:
        return states - (states @ unit_vector)[..., None] * unit_vector

    handles = []
    for block in blocks_of(model):
        handles.append(block.register_forward_pre_hook(lambda _, args: (without(args[0]), *args[1:])))
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            handles.append(part.register_forward_hook(lambda _, __, output: without(output)))
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0, -1].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return found


def test_ablation_takes_the_component_out_of_every_blocks_input(subject, judge, found):
    model, seen = subject.model, []
    handles = []
    watched = [found[2], found[5]]
    units = normalised(torch.stack([one.vector for one in watched])).float()
    original = judge.examiner.edits.on

    def on(plans, streams):
        """After the ablation's own hooks, so that they see what the blocks are given."""
        context = original(plans, streams)
        rows = context.__enter__()
        handles.extend(
            block.register_forward_pre_hook(lambda _, args: seen.append((rows.trials, args[0])))
            for block in blocks_of(model)
        )

        class Around:
            def __enter__(self):
                return rows

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Around()

    judge.examiner.edits.on = on
    try:
        judge._ablated(watched)
    finally:
        del judge.examiner.edits.on
        for handle in handles:
            handle.remove()
    assert len(seen) >= 2 * LAYERS
    for trials, states in seen:
        along = torch.einsum("bsh,bh->bs", states, units[trials])
        assert float(along.abs().max()) < 1e-4


def test_scores_and_kl_are_those_of_the_ablated_model(subject, judge, found):
    judged = judge.judge(found, settings(layers_below=1.0))
    assert [one.candidate for one in judged] == found
    for one in judged:
        vector = one.candidate.vector
        if float(vector.norm()) < 1e-6:
            continue
        direction = normalised(vector).float()
        logs = torch.stack([by_hand(subject, prompt, direction) for prompt in subject.prompts.harmful_search])
        assert one.refusal_score == pytest.approx(float(refusal_score(logs, REFUSAL).mean()), abs=1e-3)
        logs = torch.stack([by_hand(subject, prompt, direction) for prompt in subject.prompts.harmless_search])
        assert one.kl == pytest.approx(float(kl_divergence(judge.reference, logs).mean()), abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_candidates_that_share_a_batch_are_judged_as_each_alone(judge, found, size):
    alone = judge.judge(found, settings(candidates_per_batch=1))
    together = judge.judge(found, settings(candidates_per_batch=size))
    for one, other in zip(alone, together, strict=True):
        assert one.dropped == other.dropped
        for name in ("refusal_score", "induced", "kl"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4, nan_ok=True)


def test_the_induced_score_is_that_with_the_direction_added_to_its_blocks_input(subject, judge, found):
    model = subject.model
    for one in judge.judge(found, settings(candidates_per_batch=6)):
        vector = one.candidate.vector.float()
        handle = blocks_of(model)[one.candidate.layer].register_forward_pre_hook(
            lambda _, args, vector=vector: (args[0] + vector, *args[1:])
        )
        logs = first_token_log_probabilities(model, subject.prompts.harmless_search, PAD)
        handle.remove()
        assert one.induced == pytest.approx(float(refusal_score(logs, REFUSAL).mean()), abs=1e-3)


def test_the_direction_of_refusing_ends_refusals_and_adding_it_makes_them(judge):
    s = axes()[1].double()
    base = first_token_log_probabilities(judge.examiner.model, judge.harmful, PAD)
    ours, other = judge.judge([Candidate(-1, 1, 3 * s), Candidate(-1, 1, 3 * unit(9))], settings())
    assert float(refusal_score(base, REFUSAL).mean()) > 0
    assert ours.refusal_score < -3 < other.refusal_score
    assert ours.induced > 0 > other.induced


def hooks_of(model) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_judging_leaves_the_model_as_it_was(judge, found):
    before, hooks = (
        first_token_log_probabilities(judge.examiner.model, judge.harmful, PAD),
        hooks_of(judge.examiner.model),
    )
    judge.judge(found, settings())
    assert torch.equal(first_token_log_probabilities(judge.examiner.model, judge.harmful, PAD), before)
    assert hooks_of(judge.examiner.model) == hooks


def test_each_bound_drops_what_does_not_keep_it(judge, found):
    free = judge.judge(found, settings(layers_below=1.0))
    assert {one.dropped for one in free if one.candidate.layer == 0 and one.candidate.position == -1} == {
        "no direction"
    }
    kept = [one for one in free if one.dropped is None]
    assert len(kept) >= 3
    kl, induced = sorted(one.kl for one in kept)[1], sorted(one.induced for one in kept)[1]
    for one in judge.judge(found, settings(layers_below=0.5)):
        assert (one.dropped == "layer 1 ≥ ⌊0.5 L⌋") == (one.candidate.layer == 1)
    for one in judge.judge(kept_candidates(kept), settings(layers_below=1.0, kl_at_most=kl)):
        assert (one.dropped is None) == (one.kl <= kl)
    for one in judge.judge(kept_candidates(kept), settings(layers_below=1.0, induced_at_least=induced)):
        assert (one.dropped is None) == (one.induced >= induced)


def test_the_refusal_score_is_the_log_odds_of_the_refusals_tokens():
    logs = torch.tensor([[0.2, 0.05, 0.75], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]).log()
    expected = [math.log(0.25 / 0.75), math.log(0.75 / 0.25), math.log(1e-8)]
    assert refusal_score(logs, [0, 1]).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("layers", "first_dropped"), [(32, 25), (40, 32), (28, 22), (2, 1)])
def test_the_layer_bound_is_rounded_down_as_the_authors_code_does(layers, first_dropped):
    """Their int(n_layer * (1.0 - 0.2)): of 32 layers those from 25 on, of which 0.8 is 25.6."""
    judge = SimpleNamespace(blocks=range(layers))
    dropped = [
        Judge._dropped(judge, Candidate(-1, layer, torch.ones(HIDDEN)), 0.0, 1.0, 0.0, settings(layers_below=0.8))
        for layer in range(layers)
    ]
    assert [layer for layer, reason in enumerate(dropped) if reason] == list(range(first_dropped, layers))


def kept_candidates(kept: list[Judged]) -> list[Candidate]:
    return [one.candidate for one in kept]


def judged_as(score: float, dropped: str | None = None) -> Judged:
    return Judged(Candidate(-1, 0, torch.ones(HIDDEN)), score, 1.0, 0.01, dropped)


def test_the_lowest_refusal_score_among_those_that_keep_all_bounds_is_taken():
    judged = [judged_as(-1.0), judged_as(-9.0, "KL > 0.1"), judged_as(-3.0), judged_as(-2.0)]
    assert best_of(judged) is judged[2]


def test_the_error_says_why_no_candidate_is_left():
    judged = [judged_as(0.0, dropped) for dropped in ("KL > 0.1", "layer 3 ≥ 0.8 L", "KL > 0.1", "layer 4 ≥ 0.8 L")]
    with pytest.raises(BulwarkError, match=r"None of the 4 candidate .* \(2 by KL > 0\.1; 2 by layer\).*kl_at_most"):
        best_of(judged)


def test_refusals_begin_with_the_tokens_that_the_models_own_ones_begin_with(subject):
    refusals = [7] * 18 + [5, 9]
    assert first_tokens(refusals, [3]) == [5, 7, 9]
    assert first_tokens(refusals, [3], least=0.1) == [7]
    with pytest.raises(BulwarkError, match="refuses no harmful prompt"):
        first_tokens([], [3])


def test_a_token_that_begins_other_answers_as_well_gives_no_refusal_away(subject):
    assert first_tokens([7] * 10, [7] * 6 + [3] * 4) == []
    assert first_tokens([7] * 10, [7] * 5 + [3] * 5) == [7]


def test_without_such_tokens_refusing_is_read_from_answers(subject, judge, found):
    """The log-odds of the share that is refused, half a prompt more on either side."""
    by_answers = judge_of(subject, subject.prompts, judge.reference, [])
    best = by_answers.judge(found, settings(layers_below=1.0))
    for one in best:
        assert -math.log(33) - 1e-9 <= one.refusal_score <= math.log(33) + 1e-9
    chosen = best_of(best)
    by_tokens = best_of(judge.judge(found, settings(layers_below=1.0)))
    assert chosen.refusal_score == min(one.refusal_score for one in best)
    place = [one.candidate for one in best].index(by_tokens.candidate)
    assert best[place].refusal_score == chosen.refusal_score  # the tokens' choice refuses as little


def test_where_no_candidate_keeps_the_bounds_the_one_of_lowest_kl_is_taken_if_asked_for(judge, found):
    judged = judge.judge(found, settings(kl_at_most=1e-12))
    assert all(one.dropped for one in judged)
    with pytest.raises(BulwarkError, match="otherwise: lowest_kl"):
        best_of(judged)
    directions = [one for one in judged if one.dropped != "no direction"]
    assert best_of(judged, "lowest_kl").kl == min(one.kl for one in directions)


def test_the_best_candidate_of_the_tiny_model_is_its_refusal_direction(judge, found):
    best = best_of(judge.judge(found, settings(layers_below=1.0)))
    assert best.candidate.layer == 1
    cosine = float(normalised(best.candidate.vector).float() @ axes()[1])
    assert abs(cosine) > 0.8


def test_refusal_tokens_are_generated_ids_and_no_text_is_encoded_again(subject, monkeypatch):
    """Answers that begin with white space lose it in their text, whose first token is then another one."""
    examiner = subject.examiner
    monkeypatch.setattr(type(examiner.subject.tokenizer), "encode", lambda *_, **__: pytest.fail("encoded again"))
    answers = {"harmful_search": examiner.base_answers, "harmless_search": examiner.answers([{}], "harmless")[0]}
    assert directed._refusal_tokens(examiner, answers, settings()) == REFUSAL
    some = subject.prompts.harmful_search[:2]
    for prompt, longer in zip(some, continued(examiner.subject, some, 2), strict=True):
        assert longer.ids[: len(prompt.ids)] == prompt.ids
        assert longer.ids[len(prompt.ids)] == REFUSAL[0]
