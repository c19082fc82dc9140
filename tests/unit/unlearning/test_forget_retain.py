"""Two losses over two data sets: weights, order, accumulation, what is resumed and what is reported."""

from __future__ import annotations

import pytest
import torch
from stopped_samples import Interrupted, stopping
from tiny_causal_models import tiny_model
from training_samples import PAD, run
from unlearning_samples import FORGET, RETAIN, batch_of, course_of, forget_examples, objective_of, with_parent

from bulwark.training.batches import StepBatches
from bulwark.training.objectives import next_token_loss

SGD = {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "schedule": "constant"}


def ends(tmp_path, kind="max_entropy", given=None, **training):
    model = tiny_model()
    course = course_of(tmp_path, model, **(SGD | training))
    objective = objective_of(kind, course, **(given or {}))
    return run(course, objective, tmp_path), objective


def test_one_step_descends_on_both_losses_with_their_weights(tmp_path):
    model = tiny_model()
    course = course_of(tmp_path, model, **(SGD | {"max_steps": 1, "batch_size": 4}))
    objective = objective_of("max_entropy", course, retain_weight=0.5, forget_weight=3.0)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    twin = tiny_model()
    [retain] = StepBatches(course.examples, batch_size=4, micro_batch_size=4, pad_id=PAD, seed=0).of_step(0)
    numbers = objective.forgetting.examples_of(0)
    forget = batch_of([forget_examples()[number] for number in numbers])
    (0.5 * next_token_loss(twin, retain) + 3.0 * objective.forget_loss(twin, forget)).backward()
    expected = {name: start[name] - 0.1 * p.grad for name, p in twin.named_parameters()}
    trained = run(course, objective, tmp_path).model.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ({"micro_batch_size": 1}, {}),
        ({"micro_batch_size": 2}, {"forget_micro_batch_size": 4}),
        ({"micro_batch_size": 4}, {"forget_micro_batch_size": 1}),
        ({"micro_batch_size": 2, "packing": True, "max_tokens": 24}, {}),
    ],
)
@pytest.mark.parametrize("kind", ["max_entropy", "random_map", "min_posterior", "llmu", "refusal_sft"])
def test_any_number_of_micro_batches_is_one_large_batch(kind, sizes, given, tmp_path):
    whole, one = ends(tmp_path / "whole", kind, {"forget_micro_batch_size": 4}, **{"micro_batch_size": 4})
    parts, other = ends(tmp_path / "parts", kind, given, **sizes)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], weight, atol=1e-5, rtol=0)
    curves = [torch.tensor(objective.report()["forgetting"]["losses"]) for objective in (one, other)]
    torch.testing.assert_close(curves[1], curves[0], atol=1e-5, rtol=1e-5)


def test_the_forget_set_has_a_batch_size_of_its_own(tmp_path):
    objective = objective_of("max_entropy", course_of(tmp_path), forget_batch_size=6)
    assert objective.forgetting.steps_per_epoch == -(-FORGET // 6)
    assert [batch.step_sequences for batch in objective.forgetting.of_step(0)] == [6, 6, 6]


def test_forget_batches_come_once_a_step_after_the_first_retain_pass(tmp_path):
    course = course_of(tmp_path, max_steps=2, micro_batch_size=2)
    objective = objective_of("max_entropy", course)
    seen = []
    for name in ("retain_loss", "forget_loss"):
        original = getattr(objective, name)
        setattr(
            objective,
            name,
            lambda model, batch, name=name, original=original: seen.append(name) or original(model, batch),
        )
    run(course, objective, tmp_path)
    assert seen == ["retain_loss", "forget_loss", "forget_loss", "retain_loss"] * 2
    assert (objective.step, objective.total) == (1, 2)


def test_the_report_has_both_losses_of_every_step(tmp_path):
    given = {"forget_weight": 0.0}
    trained, objective = ends(tmp_path, given=given, max_steps=3)
    told = objective.report()["forgetting"]
    assert told["examples"] == FORGET
    assert told["truncated"] == 0
    assert [point[0] for point in told["losses"]] == [1, 2, 3]
    assert [point[2] for point in told["losses"]] == [0, 0, 0]
    assert [point[1] for point in told["losses"]] == pytest.approx([loss for _, loss in trained.report.loss], abs=1e-6)
    assert objective.metrics() == {"loss/retain": pytest.approx(told["losses"][-1][1]), "loss/forget": 0}


def test_a_long_curve_has_at_most_200_points_that_are_means(tmp_path):
    objective = objective_of("max_entropy", course_of(tmp_path))
    objective.load_state_dict({"losses": [[float(step), -float(step)] for step in range(401)]})
    curve = objective.report()["forgetting"]["losses"]
    assert len(curve) == 134
    assert curve[0] == [3, 1.0, -1.0]
    assert curve[-1] == [401, 399.5, -399.5]


@pytest.mark.parametrize("kind", ["max_entropy", "random_map", "llmu", "rmu", "rerouting"])
def test_a_resumed_run_ends_with_the_same_bits(kind, tmp_path):
    given = {"rmu": {"layer": 1, "blocks": [1]}, "rerouting": {"layers": [1]}}.get(kind, {})
    results = []
    for name, at in (("whole", None), ("parts", 3)):
        folder, attempts = tmp_path / name, [at, None] if at else [None]
        for stop in attempts:
            course = with_parent(course_of(folder, max_steps=5, save_every=2))
            objective = objective_of(kind, course, **given)
            try:
                trained = run(course, stopping(objective, stop), folder)
            except Interrupted:
                continue
        results.append((trained, objective))
    (whole, one), (parts, other) = results
    assert parts.report.resumed_at == [2]
    for weight, again in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(weight, again)
    assert one.report() == other.report()


def test_the_counts_of_the_samples():
    assert (len(forget_examples()), RETAIN) == (FORGET, 14)
