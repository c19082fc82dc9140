"""R2D2: its three losses against a calculation in float64, its pool, and that every ZeRO stage does the same."""

from __future__ import annotations

import copy

import pytest
import torch
from examinee_samples import V, tiny_aside
from immunisation_samples import (
    HARMFUL,
    course_of,
    first_examples,
    gradient_of,
    mean_loss,
    objective_of,
    weights_of,
)
from stopped_samples import Interrupted, stopping
from training_samples import run

from bulwark.errors import RecordError
from bulwark.prompts.builder import IGNORED
from bulwark.steps.r2d2 import Settings

GCG = {"steps": 2, "search_width": 6, "top_k": 4, "suffix": "! !"}
SMALL = {
    "cases": "c",
    "gcg": GCG,
    "pool": 6,
    "cases_per_step": 2,
    "refusal": None,
    "reset_every": 2,
    "reset_share": 0.5,
}
RATE = 0.01


def trained(folder, model=None, given=None, **training):
    course = course_of(folder, model, **({"learning_rate": RATE, "max_steps": 1} | training))
    objective = objective_of("r2d2", course, **(SMALL | (given or {})))
    return course, objective, run(course, objective, folder)


def away_by_hand(model, case, target: int, threshold: float) -> tuple[torch.Tensor, int, int]:
    """Σ -log(1 - p) over the wanted answer's tokens that are likely enough, how many these are, and how many all."""
    ids = case.rows[0].filled(case.tokens, V)
    p = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    chances = [p[place - 1, ids[place] % V] for place in range(len(ids) - target, len(ids))]
    likely = [chance for chance in chances if float(chance.detach().log()) >= threshold]
    return -sum(torch.log(1 - chance) for chance in likely), len(likely), target


def test_a_step_goes_along_the_three_losses(tmp_path):
    model = tiny_aside()
    before, wide = weights_of(model), copy.deepcopy(model).double()
    weights = {"sft_weight": 0.5, "away_weight": 2.0, "toward_weight": 3.0, "away_threshold": -6.0}
    course, objective, result = trained(tmp_path, model, weights)
    chosen = [number for number, case in enumerate(objective.pool) if case.steps]
    assert len(chosen) == 2
    sft = mean_loss(wide, first_examples(course))
    parts = [away_by_hand(wide, objective.pool[n], objective.pool[n].rows[0].target, -6.0) for n in chosen]
    assert 0 < sum(likely for _, likely, _ in parts) < sum(count for *_, count in parts)
    away = sum(part for part, *_ in parts) / sum(count for *_, count in parts)
    toward = mean_loss(wide, [objective._refused(n) for n in chosen])
    (0.5 * sft + 2.0 * away + 3.0 * toward).backward()
    found = gradient_of(before, result.model, RATE)
    for name, weight in wide.named_parameters():
        torch.testing.assert_close(found[name].double(), weight.grad, atol=2e-4, rtol=2e-3)
    [point] = objective.report()["adversarial_training"]["losses"]["points"]
    assert point[1:4] == pytest.approx([0.5 * sft.item(), 2.0 * away.item(), 3.0 * toward.item()], abs=1e-4)
    assert result.report.loss[0][1] == pytest.approx(sum(point[1:4]), abs=1e-4)


def test_the_refusal_is_the_records_own_or_a_fixed_one(tmp_path):
    course = course_of(tmp_path)
    own = objective_of("r2d2", course, **SMALL)
    for number, case in enumerate(own.pool):
        text = case.written[0].text(case.tokens)
        answer, refusal = next(row[1:] for row in HARMFUL if text.startswith(row[0]))
        assert own.refusals[number] == refusal
        labels = [label for label in own._refused(number).labels if label != IGNORED]
        assert course.builder.tokenizer.decode(labels).startswith(refusal)
        wanted = [label for label in own._wanted(number).labels if label != IGNORED]
        assert course.builder.tokenizer.decode(wanted) == answer
    fixed = objective_of("r2d2", course, **(SMALL | {"refusal": "A vote."}))
    assert set(fixed.refusals) == {"A vote."}


def test_a_target_is_cut_to_its_first_tokens(tmp_path):
    course = course_of(tmp_path)
    short = objective_of("r2d2", course, **(SMALL | {"target_tokens": 2}))
    assert {case.rows[0].target for case in short.pool} == {2}


def test_the_attack_improves_the_drawn_cases_and_others_stay(tmp_path):
    model = tiny_aside()
    _, objective, _ = trained(tmp_path, model, {"gcg": GCG | {"steps": 4, "keep_best": True}}, learning_rate=1e-9)
    improved = [case for case in objective.pool if case.steps == 4]
    assert len(improved) == 2
    for case in improved:
        assert case.loss < objective._gcg.loss_of([_fresh(case)])[0]
        assert case.loss == pytest.approx(objective._gcg.loss_of([case])[0], abs=1e-4)
    assert all(case.tokens == case.written[0].tokens for case in objective.pool if not case.steps)


def _fresh(case):
    return type(case)(case.written)


def test_a_share_of_the_pool_begins_anew(tmp_path):
    _, objective, _ = trained(tmp_path, None, None, max_steps=5)
    assert objective.resets == 2 * 3
    steps = sum(case.steps for case in objective.pool)
    assert steps == 5 * 2 * GCG["steps"]
    _, whole, _ = trained(tmp_path / "whole", None, {"reset_every": 1, "reset_share": 1.0}, max_steps=2)
    assert whole.resets == 6
    assert sum(case.steps > 0 for case in whole.pool) > 2
    assert sum(case.tokens != case.written[0].tokens for case in whole.pool) <= 2  # those of the last step


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_ends_alike(stage, tmp_path):
    _, expected, plain = trained(tmp_path / "0", max_steps=3, micro_batch_size=4)
    _, found, sharded = trained(tmp_path / "x", max_steps=3, micro_batch_size=4, zero_stage=stage)
    assert [case.tokens for case in found.pool] == [case.tokens for case in expected.pool]
    torch.testing.assert_close(sharded.model.state_dict(), plain.model.state_dict(), atol=1e-5, rtol=0)


def test_a_resumed_training_ends_bit_for_bit_alike(tmp_path):
    _, whole, expected = trained(tmp_path / "whole", max_steps=4, save_every=1)
    course = course_of(tmp_path / "parts", learning_rate=RATE, max_steps=4, save_every=1)
    with pytest.raises(Interrupted):
        run(course, stopping(objective_of("r2d2", course, **SMALL), 2), tmp_path / "parts")
    _, resumed, found = trained(tmp_path / "parts", max_steps=4, save_every=1)
    assert found.report.resumed_at == [2]
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight)
    assert resumed.state_dict() == whole.state_dict()


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="more than the pool"):
        Settings(data="x", training=course_of(tmp_path).training, cases="c", pool=2, cases_per_step=3)
    course = course_of(tmp_path)
    course.builder.max_tokens = 25
    with pytest.raises(RecordError, match=r"no record can be attacked.*max_tokens"):
        objective_of("r2d2", course, **SMALL)
