"""Training on what policies let through: the plain one where nothing is flagged; records, resuming, broken rows."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from screening_samples import (
    COUNT,
    LAYER,
    delta_loss,
    model_of,
    objective_of,
    policies,
    probe,
    references_of,
    rows_in,
    screened,
    state_aware,
    vector_of,
)  # fmt: skip
from stopped_samples import Interrupted, stopping
from tiny_causal_models import V
from training_samples import examples

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.embedded import EmbeddedIntervention
from bulwark.steering.schedules import ScheduleSettings, Strength
from bulwark.steering.screening.split import target_rows
from bulwark.training.batches import StepBatches
from bulwark.training.objectives import target_logits

RESUMABLE = {"max_steps": 6, "save_every": 3, "weight_decay": 0.1}


def assert_same_bits(one, other) -> None:
    weights, others = one.model.state_dict(), other.model.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return screened(None, tmp_path_factory.mktemp("plain"), weight_decay=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", policies())
def test_with_nothing_flagged_the_weights_are_those_of_plain_training(name, checkpointing, plain, tmp_path):
    done = screened(policies(always=True)[name], tmp_path, weight_decay=0.1, gradient_checkpointing=checkpointing)
    assert {row["decision"] for row in rows_in(tmp_path)} == {"kept"}
    assert_same_bits(done, plain)
    torch.testing.assert_close(torch.tensor(done.report.loss), torch.tensor(plain.report.loss))


@pytest.mark.parametrize("name", ["mask", "probe", "state", "inject"])
def test_the_step_is_the_mean_over_kept_tokens_however_it_is_cut_into_micro_batches(name, tmp_path):
    chosen = {"max_steps": 6, "max_grad_norm": 0.0, "optimizer": "sgd", "learning_rate": 0.1}
    parts = screened(policies()[name], tmp_path / "parts", micro_batch_size=1, **chosen)
    whole = screened(policies()[name], tmp_path / "whole", micro_batch_size=4, **chosen)
    decisions = [
        [row["decision"] for row in sorted(rows_in(tmp_path / part), key=_place)] for part in ("parts", "whole")
    ]
    assert decisions[0] == decisions[1]
    assert len(set(decisions[0])) == 2
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(parts.report.loss), torch.tensor(whole.report.loss), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mask", "probe", "state"])
def test_a_step_of_descent_goes_along_the_mean_over_what_is_kept(name, tmp_path):
    """Against a gradient of the kept rows' tokens alone: a step that is scaled otherwise is as long otherwise."""
    chosen = {"max_steps": 1, "max_grad_norm": 0.0, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant"}
    done = screened(policies()[name], tmp_path, micro_batch_size=2, **chosen)
    decisions = {row["row_id"]: row["decision"] for row in rows_in(tmp_path)}
    model = model_of().train()
    [batch] = StepBatches(examples(COUNT), batch_size=4, micro_batch_size=4, pad_id=0).of_step(0)
    kept = torch.tensor([decisions[row[0]] == "kept" for row in batch.rows])[target_rows(batch)]
    assert 0 < kept.sum() < len(kept)
    losses = torch.nn.functional.cross_entropy(target_logits(model, batch), batch.targets, reduction="none")
    losses[kept].mean().backward()
    for (key, found), weight in zip(done.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, weight - 0.1 * weight.grad, msg=key, atol=1e-5, rtol=1e-4)


def test_a_vector_in_the_checkpoint_is_no_matter_to_delta_loss_and_refused_by_projections(tmp_path):
    """It shifts every row's projection by α‖v‖², and that of the model's own answers by nothing."""

    def carrying():
        model = model_of()
        EmbeddedIntervention({f"model.layers.{LAYER - 1}": vector_of()}, Strength(1.0, 1.0, 0.0, 9.0)).install(model)
        return model

    screened(policies()["mask"], tmp_path / "mask", model=carrying(), max_steps=1)
    with pytest.raises(BulwarkError, match="embedded intervention, which shifts every row"):
        screened(policies()["state"], tmp_path / "state", model=carrying(), max_steps=1)


def test_a_model_with_dropout_is_refused(tmp_path):
    """Two of its passes differ whatever was added, so that rows would be flagged at random."""
    model = model_of()
    model.config.attention_dropout = 0.1
    objective = objective_of(delta_loss(), tmp_path)
    with pytest.raises(ConfigurationError, match=r"attention_dropout: 0\.1"):
        objective.start(SimpleNamespace(module=model), 4)


def _place(row):
    return row["opt_step"], row["row_id"]


def test_the_loss_that_is_logged_is_the_mean_over_kept_tokens(tmp_path):
    done = screened(policies()["mask"], tmp_path, max_steps=1, micro_batch_size=1)
    kept = [row for row in rows_in(tmp_path) if row["decision"] == "kept"]
    tokens = sum(row["n_resp"] for row in kept)
    assert done.report.loss[0][1] == pytest.approx(sum(row["loss_nat"] * row["n_resp"] for row in kept) / tokens)


@pytest.mark.parametrize("policy", [delta_loss(threshold=99.0), probe(-2.0, -99.0), state_aware(-99.0)],
                         ids=["mask", "probe", "state"])  # fmt: skip
def test_with_everything_flagged_nothing_is_learned(policy, tmp_path):
    done = screened(policy, tmp_path)
    start = model_of().state_dict()
    assert [name for name, weight in done.model.state_dict().items() if not torch.equal(weight, start[name])] == []
    assert {row["decision"] for row in rows_in(tmp_path)} == {"dropped"}
    assert [loss for _, loss in done.report.loss] == [None] * 4, "what was not learned has no loss, and not one of 0"


def test_a_step_of_which_nothing_is_left_leaves_the_weights_whatever_the_momentum(tmp_path):
    """Rows of the later steps are flagged: decay and AdamW's momentum would move the weights without any row."""
    chosen = {"max_steps": 4, "weight_decay": 0.1, "micro_batch_size": 4}
    batches = StepBatches(examples(COUNT), batch_size=4, micro_batch_size=4, pad_id=0)
    first = {f"r{number}" for number in batches.examples_of(0)}
    references = {key: row | {"ref_projection": 1e9 if key in first else -1e9} for key, row in references_of().items()}
    objective = objective_of(state_aware(references=references), tmp_path / "screened")
    moments: dict[int, list[float]] = {}
    screening = objective.after_step

    def look(engine, step, total):
        screening(engine, step, total)
        states = engine.basic_optimizer.state.values()
        moments[step] = [float(state[name].float().sum()) for state in states for name in ("step", "exp_avg")]

    objective.after_step = look
    done = screened(None, tmp_path / "screened", objective=objective, **chosen)
    other = objective_of(policies(always=True)["state"], tmp_path / "plain")
    after_step, weights = other.after_step, {}

    def remember(engine, step, total):
        after_step(engine, step, total)
        if step == 0:
            weights.update({name: weight.clone() for name, weight in engine.module.state_dict().items()})

    other.after_step = remember
    screened(None, tmp_path / "plain", objective=other, **chosen)
    assert [row["decision"] for row in rows_in(tmp_path / "screened")] == ["kept"] * 4 + ["dropped"] * 9
    assert moments[0] == moments[3], "a step of which nothing is left does not age them"
    assert [name for name, weight in done.model.state_dict().items() if not torch.equal(weight, weights[name])] == []
    assert objective.report()["steering"]["detections"]["steps_without_rows"] == 3


def test_a_row_in_the_file_for_every_row_and_step(tmp_path):
    objective = objective_of(policies()["mask"], tmp_path)
    screened(None, tmp_path, objective=objective)
    rows = rows_in(tmp_path)
    assert [row["opt_step"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 1
    assert sorted(row["row_id"] for row in rows) == list(range(COUNT))
    assert [row["step"] for row in rows[:8]] == [0, 0, 1, 1, 2, 2, 3, 3]
    for row in rows:
        assert row["id"] == f"r{row['row_id']}"
        assert row["level"] == row["row_id"] % 3
        assert row["source_file"] == "some.jsonl"
        assert row["rank"] == 0
        assert row["alpha"] == 0.5
        assert (row["delta_mean"] < 0) == (row["decision"] == "dropped")
        assert row["weight"] == float(row["decision"] == "kept")
        assert row["delta_mean"] == pytest.approx(row["loss_inj"] - row["loss_nat"], abs=1e-5)
        assert (row["D1"], row["dp"]) == (None, None)
        assert row["p_cur"] is not None
    told = objective.report()["steering"]["detections"]
    flagged = [row for row in rows if row["decision"] == "dropped"]
    tokens = sum(row["n_resp"] for row in rows)
    assert (told["rows"], told["flagged"]) == (COUNT, len(flagged))
    assert told["blocked_tokens_share"] == pytest.approx(sum(row["n_resp"] for row in flagged) / tokens)
    for level in range(3):
        group = [row for row in rows if row["level"] == level]
        assert told["levels"][str(level)]["rows"] == len(group)
        assert told["levels"][str(level)]["flagged"] == sum(row["decision"] == "dropped" for row in group)
        mean = sum(row["delta_mean"] for row in group) / len(group)
        assert told["levels"][str(level)]["mean"]["delta_mean"] == pytest.approx(mean)


def test_curves_are_of_the_rows_since_the_last_reading(tmp_path):
    objective = objective_of(probe(), tmp_path)
    read = []
    whole = objective.metrics

    def recorded():
        read.append(whole())
        return read[-1]

    objective.metrics = recorded
    screened(None, tmp_path, objective=objective, max_steps=3)
    rows = [[row for row in rows_in(tmp_path) if row["opt_step"] == step] for step in range(3)]
    for step, found in zip(rows, read, strict=True):
        flagged = [row for row in step if row["decision"] == "dropped"]
        assert found["Defense/Blocked_Samples_Ratio"] == len(flagged) / len(step)
        assert found["Defense/Delta_Loss"] == pytest.approx(sum(row["probe_proj"] for row in step) / len(step))
        assert found["Defense/probe_cos_inj"] == pytest.approx(sum(row["probe_cos"] for row in step) / len(step))
        assert found["Defense/Is_Malicious"] == float(bool(flagged))
        assert "Defense/Drift" not in found


def test_a_step_that_is_withdrawn_is_plain_and_leaves_no_rows(tmp_path, plain):
    done = screened(policies()["mask"], tmp_path / "some", injection=ScheduleSettings(withdraw_at=2), weight_decay=0.1)
    assert {row["opt_step"] for row in rows_in(tmp_path / "some")} == {0, 1}
    assert done.report.steps == 4
    losses = [one == other for one, other in zip(done.report.loss, plain.report.loss, strict=True)]
    assert losses[0] is False  # something was flagged before


def test_the_schedule_is_that_of_the_injection(tmp_path):
    screened(policies()["mask"], tmp_path, injection=ScheduleSettings(shape="decline", onset=0))
    strengths = {row["opt_step"]: row["alpha"] for row in rows_in(tmp_path)}
    assert strengths == {0: 0.375, 1: 0.25, 2: 0.125, 3: 0.0}
    assert all(row["delta_mean"] == 0.0 and row["decision"] == "kept" for row in rows_in(tmp_path)[12:])


@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_resumed_training_ends_with_the_same_weights_and_rows(at, tmp_path):
    whole = screened(policies()["mask"], tmp_path / "whole", **RESUMABLE)
    first = objective_of(policies()["mask"], tmp_path / "parts", total=6)
    with pytest.raises(Interrupted):
        screened(None, tmp_path / "parts", objective=stopping(first, at), **RESUMABLE)
    second = objective_of(policies()["mask"], tmp_path / "parts", total=6)
    resumed = screened(None, tmp_path / "parts", objective=second, **RESUMABLE)
    assert resumed.report.resumed_at == ([] if at < 3 else [3])
    assert_same_bits(resumed, whole)
    assert rows_in(tmp_path / "parts") == rows_in(tmp_path / "whole")
    fresh = objective_of(policies()["mask"], tmp_path / "other", total=6)
    screened(None, tmp_path / "other", objective=fresh, **RESUMABLE)
    assert second.report() == fresh.report()


def test_a_lost_file_is_not_resumed(tmp_path):
    objective = objective_of(policies()["mask"], tmp_path)
    screened(None, tmp_path, objective=objective)
    state = objective.state_dict()
    objective.log.path.write_text("")
    with pytest.raises(BulwarkError, match="has 0 bytes, but had"):
        objective.load_state_dict(state)


@pytest.mark.parametrize("where", ["below", "above"])
@pytest.mark.parametrize("name", policies())
def test_rows_that_are_not_finite_are_left_out_and_counted(name, where, tmp_path):
    """One token makes its rows infinite, as an input or as a target; the others are trained on as they are alone."""
    data, model = examples(COUNT), model_of()
    odd = data[4].labels[-1]
    if where == "below":
        rows = [number for number, prompt in enumerate(data) if odd in [token % V for token in prompt.ids]]
        with torch.no_grad():
            model.get_input_embeddings().weight[odd] = torch.inf
    else:
        rows = [number for number, prompt in enumerate(data) if odd in prompt.labels[1:]]
        model.lm_head.register_forward_hook(_infinite_for(odd))
    assert 0 < len(rows) < COUNT
    objective = objective_of(policies(always=True)[name], tmp_path / "screened")
    done = screened(None, tmp_path / "screened", objective=objective, model=model)
    found = rows_in(tmp_path / "screened")
    assert sorted(row["row_id"] for row in found) == list(range(COUNT))
    assert sorted(row["row_id"] for row in found if row["decision"] == "not_finite") == rows
    assert all(row["weight"] == float(row["row_id"] not in rows) for row in found)
    assert objective.report()["steering"]["detections"]["decisions"]["not_finite"] == len(rows)
    masked = [
        replace(prompt, labels=[-100] * len(prompt.ids)) if number in rows else prompt
        for number, prompt in enumerate(data)
    ]
    other = model_of()
    if where == "above":
        other.lm_head.register_forward_hook(_infinite_for(odd))
    alone = screened(None, tmp_path / "alone", data=masked, model=other)
    weights, expected = done.model.state_dict(), alone.model.state_dict()
    for key, weight in weights.items():
        used = torch.arange(len(weight)) != odd if "embed_tokens" in key else slice(None)
        torch.testing.assert_close(weight[used], expected[key][used], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(done.report.loss), torch.tensor(alone.report.loss), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", policies())
def test_a_model_of_which_no_row_is_finite_stops_the_training(name, tmp_path):
    """One NaN in the output embedding: every row would be left out, and the model saved as if it had been trained."""
    objective = objective_of(policies(always=True)[name], tmp_path)
    with pytest.raises(BulwarkError, match="stopped at step 1: 4 rows, all that were left to learn from") as stopped:
        screened(None, tmp_path, objective=objective, model=_broken())
    assert stopped.value.diverged


def test_flagged_rows_do_not_hide_that_no_other_is_finite(tmp_path):
    """Flagged rows never reach the output embedding, so that they are finite whatever is in it."""
    batches = StepBatches(examples(COUNT), batch_size=4, micro_batch_size=4, pad_id=0)
    left = {f"r{batches.examples_of(step)[0]}" for step in (0, 2)}
    references = {key: row | {"ref_projection": 1e9 if key in left else -1e9} for key, row in references_of().items()}
    with pytest.raises(BulwarkError, match="stopped at step 3: 2 rows, all that were left"):
        screened(state_aware(references=references), tmp_path, model=_broken())


def test_a_broken_row_by_itself_does_not_end_a_training(tmp_path):
    """One each in the second and the last step, where all others are flagged; between them something is learned."""
    batches = StepBatches(examples(COUNT), batch_size=4, micro_batch_size=4, pad_id=0)
    broken = {batches.examples_of(step)[0] for step in (1, 3)}
    flagged = {f"r{number}" for step in (1, 3) for number in batches.examples_of(step)} - {f"r{n}" for n in broken}
    references = {
        key: row | {"ref_projection": -1e9 if key in flagged else 1e9} for key, row in references_of().items()
    }
    policy = state_aware(references=references)
    judge = policy.judge

    def spoiled(detector, batch, alpha):
        """As if the loss of these rows were infinite."""
        verdict = judge(detector, batch, alpha)
        verdict.broken[:] = torch.tensor([bool(row) and row[0] in broken for row in batch.rows])
        return verdict

    policy.judge = spoiled
    done = screened(policy, tmp_path)
    assert [loss is None for _, loss in done.report.loss] == [False, True, False, True]


def _broken():
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    return model


def _infinite_for(token):
    """Logits that are -inf for a token, so that its loss is infinite."""

    def hook(module, inputs, output):
        spoiled = output.clone()
        spoiled[..., token] = -torch.inf
        return spoiled

    return hook


def test_the_objective_has_a_name_of_its_own_in_the_fingerprint(tmp_path):
    screened(policies()["mask"], tmp_path, max_steps=3, save_every=1)
    recorded = json.loads((tmp_path / "training" / "fingerprint.json").read_text())
    assert recorded["parts"] == ["bulwark.steering.screening.screened.Screened"]
