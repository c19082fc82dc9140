"""Training under an intervention: what it does to weights, what it records, how it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from steering_samples import LAYERS, course_of, fused, same_bits, steered_model, vector
from stopped_samples import Interrupted, stopping
from tiny_causal_models import HIDDEN
from training_samples import PAD, examples, trained

from bulwark import files
from bulwark.errors import ConfigurationError
from bulwark.models import manifests
from bulwark.models.anatomy import blocks_of
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.schedules import DetectedOnset, ScheduleSettings
from bulwark.steering.settings import InterventionSettings, VectorSettings
from bulwark.steering.steer import PooledGradient, Steering, begin, schedule_of, steering
from bulwark.steering.vectors import storage
from bulwark.training.batches import StepBatches
from bulwark.training.objectives import next_token_loss

STEPS = 7


def objective(alpha: float = 3.0, schedule: dict | None = None, total: int = STEPS, **changes) -> Steering:
    settings = InterventionSettings(alpha=alpha, **changes)
    return Steering(fused(), settings, ScheduleSettings(**(schedule or {})).over(total, alpha))


def train(folder: Path, objective=None, **changes):
    return trained(steered_model(), folder, objective=objective, **({"max_steps": STEPS} | changes)).model


def test_2_at_alpha_nought_training_is_the_plain_one_bit_for_bit(tmp_path):
    plain = train(tmp_path / "plain")
    for site in ("block", "o_proj"):
        assert same_bits(train(tmp_path / site, objective(0.0, site=site)), plain)
    assert not same_bits(train(tmp_path / "steered", objective(3.0)), plain)


def test_a_steered_step_is_a_step_on_the_steered_loss(tmp_path):
    """One step of SGD against the gradient that is taken by hand."""
    found = train(
        tmp_path, objective(3.0, total=1), max_steps=1, optimizer="sgd", schedule="constant", max_grad_norm=0.0
    )
    model = steered_model().train()
    batches = StepBatches(examples(14), batch_size=4, micro_batch_size=2, pad_id=PAD)
    for batch in batches.of_step(0):
        with Intervention(model, {2: vector(2)}).on(token_mask(batch, "response"), 3.0):
            next_token_loss(model, batch).backward()
    for (name, one), other in zip(found.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other - 1e-2 * other.grad, msg=name)


def test_the_strength_follows_the_schedule_and_ends_with_the_withdrawal(tmp_path, monkeypatch):
    strengths: list[float] = []
    entered = Intervention.on
    monkeypatch.setattr(
        Intervention, "on", lambda self, mask, alpha: strengths.append(alpha) or entered(self, mask, alpha)
    )
    schedule = {"shape": "rise", "onset": 3}
    train(tmp_path / "rise", objective(2.0, schedule), micro_batch_size=4)
    assert strengths == pytest.approx([2.0, 2.0, 2.0, 2.5, 3.0, 3.5, 4.0])
    strengths.clear()
    withdrawn = objective(2.0, {"withdraw_at": 2})
    train(tmp_path / "withdrawn", withdrawn, micro_batch_size=4)
    assert strengths == [2.0, 2.0]
    assert [withdrawn.phase(step) for step in (1, 2)] == ["injection", "after"]


def test_evaluation_knows_nothing_of_the_intervention(tmp_path):
    """After one step with a learning rate of (next to) nought the evaluation loss is that of the model as it is."""
    report = trained(
        steered_model(), tmp_path, objective=objective(50.0, total=1), max_steps=1, learning_rate=1e-12
    ).report
    plain = trained(steered_model(), tmp_path / "plain", max_steps=1, learning_rate=1e-12).report
    assert report.validation[0][1] == pytest.approx(plain.validation[0][1], rel=1e-5)
    assert report.loss[0][1] > plain.loss[0][1] + 0.01  # the training loss does know


def test_recorded_cosines_are_those_of_the_summed_gradient(tmp_path):
    recorded = {}
    for size in (1, 4):
        told = objective(3.0, total=2)
        train(tmp_path / str(size), told, max_steps=2, micro_batch_size=size)
        recorded[size] = told.report()["steering"]
    assert recorded[1]["gradient_cosine"] == pytest.approx(recorded[4]["gradient_cosine"], abs=1e-5)
    assert recorded[1]["hidden_norm"] == pytest.approx(recorded[4]["hidden_norm"], rel=1e-5)
    model = steered_model().train()
    [batch] = StepBatches(examples(14), batch_size=4, micro_batch_size=4, pad_id=PAD).of_step(0)
    mask, kept = token_mask(batch, "response"), []
    with Intervention(model, {2: vector(2)}).on(mask, 3.0):
        handle = blocks_of(model)[1].register_forward_hook(
            lambda _, __, output: output.retain_grad() or kept.append(output)
        )
        next_token_loss(model, batch).backward()
        handle.remove()
    gradient = kept[0].grad[mask].sum(0)
    cosine = torch.nn.functional.cosine_similarity(gradient, vector(2), dim=0)
    assert recorded[4]["gradient_cosine"][0] == pytest.approx(float(cosine), abs=1e-5)
    norm = (kept[0].detach() - 3.0 * vector(2))[mask].norm(dim=-1).mean()
    assert recorded[4]["hidden_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert recorded[4]["relative_norm"] == pytest.approx(3.0 * 2.0 / float(norm), rel=1e-5)
    assert recorded[4]["alpha_norm"] == pytest.approx(3.0 * 2.0)


def test_an_adaptive_strength_is_told_as_its_length_in_the_first_step(tmp_path):
    adaptive = objective(0.3, total=1, adaptive=True)
    train(tmp_path, adaptive, max_steps=1)
    told = adaptive.report()["steering"]
    assert told["alpha_norm"] == pytest.approx(0.3 * told["hidden_norm"])
    assert told["relative_norm"] == pytest.approx(0.3)


def test_recording_does_not_change_the_training_and_survives_checkpointing(tmp_path):
    one, other = objective(3.0), objective(3.0)
    plain, checkpointed = train(tmp_path / "a", one), train(tmp_path / "b", other, gradient_checkpointing=True)
    torch.testing.assert_close(plain.state_dict(), checkpointed.state_dict())
    ours, theirs = (found.report()["steering"]["gradient_cosine"] for found in (one, other))
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_step_without_gradient_has_no_cosine():
    model = steered_model()
    pooled = PooledGradient(model, 2, vector())
    pooled.finish_step()
    assert pooled.cosines() == [None]
    assert pooled.mean_hidden_norm() is None


def test_resuming_goes_on_with_strength_and_cosines(tmp_path):
    def rising() -> Steering:
        return objective(2.0, {"shape": "rise", "onset": 1})

    whole = rising()
    model = train(tmp_path / "whole", whole, save_every=2)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stopping(rising(), 5), save_every=2)
    again = rising()
    assert same_bits(train(tmp_path / "cut", again, save_every=2), model)
    assert again.report() == whole.report()


def test_ablation_trains_and_tells_no_strength(tmp_path):
    settings = InterventionSettings(tokens="all")
    caft = Steering(fused(), settings, ScheduleSettings().over(STEPS, 1.0), ablate=True)
    assert not same_bits(train(tmp_path / "caft", caft), train(tmp_path / "plain"))
    told = caft.report()["steering"]
    assert told["ablation"]
    assert "schedule" not in told
    # nothing above the block sees the direction, so the loss has no gradient in it
    assert max(abs(cosine) for cosine in told["gradient_cosine"]) > 0  # taken at h', whose component is still free


class TestBegin:
    """Vectors from files, for the checkpoint that is trained."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        (tmp_path / "weights").write_text("")
        manifests.write_manifest(tmp_path / "model.json", {"template": "alpaca"})
        rows = torch.stack([vector(seed, size=1.0 + seed) for seed in range(LAYERS + 1)])
        told = {"model": {"digest": files.digest(tmp_path / "model.json")}}
        storage.write(tmp_path / "x.safetensors", rows, told)
        return tmp_path

    def begun(self, folder: Path, layers: tuple[int, ...], **changes):
        course = course_of(steered_model(), folder, inputs={"vector_x": str(folder / "x.safetensors")})
        return begin(course, VectorSettings(traits=("x",), layers=layers), **changes)

    def test_vectors_come_with_their_norms(self, folder):
        vectors = self.begun(folder, (2, 3))
        torch.testing.assert_close(vectors.at[3], vector(3, size=4.0))
        assert vectors.report["layers"]["2"]["fused_norm"] == pytest.approx(3.0)

    def test_increments_add_up_to_the_vector_of_each_layer(self, folder):
        at = self.begun(folder, (3, 1, 2), increments=True).at
        torch.testing.assert_close(at[1], vector(1, size=2.0))
        torch.testing.assert_close(at[1] + at[2], vector(2, size=3.0))
        torch.testing.assert_close(at[1] + at[2] + at[3], vector(3, size=4.0))

    @pytest.mark.parametrize("layer", [LAYERS, LAYERS + 3])
    def test_14_a_layer_that_the_model_does_not_have_is_refused(self, folder, layer):
        with pytest.raises(ConfigurationError, match=f"{layer} is not a layer key of a model with {LAYERS} blocks"):
            self.begun(folder, (layer,))

    def test_14_vectors_of_another_checkpoint_or_width_are_refused(self, folder):
        (folder / "weights").write_text("other")
        manifests.write_manifest(folder / "model.json", {"template": "alpaca"})
        with pytest.raises(ConfigurationError, match="another checkpoint"):
            self.begun(folder, (2,))
        storage.write(folder / "x.safetensors", torch.ones(LAYERS + 1, HIDDEN + 1), {})
        with pytest.raises(ConfigurationError, match="another model"):
            self.begun(folder, (2,))


class TestDetectedOnset:
    SCHEDULE = ScheduleSettings(shape="rise", onset=DetectedOnset(detected_from="steer"))

    def course(self, folder: Path, cosines: list[float] | None):
        (folder / "weights").write_text("")
        told = {} if cosines is None else {"steering": {"gradient_cosine": cosines}}
        manifests.write_manifest(folder / "sibling.json", {"template": "alpaca", **told})
        course = course_of(steered_model(), folder, inputs={"onset_from": str(folder / "sibling.json")})
        return replace(course, total_steps=60)

    def test_it_is_found_in_the_siblings_cosines(self, tmp_path):
        course = self.course(tmp_path, [-0.5 + 0.02 * step for step in range(20)] + [-0.1] * 40)
        over = schedule_of(self.SCHEDULE, 20.0, course)
        assert 15 <= over.onset <= 25
        told = steering(course, fused(), InterventionSettings(alpha=20.0), self.SCHEDULE).further["detected_onset"]
        assert json.dumps(told)
        assert (told["step"], told["found"]) == (over.onset, True)

    def test_a_sibling_without_cosines_or_of_another_length_is_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match='"steer" recorded no cosines'):
            schedule_of(self.SCHEDULE, 1.0, self.course(tmp_path, None))
        with pytest.raises(ConfigurationError, match=r"has 30 optimizer steps .* training 60"):
            schedule_of(self.SCHEDULE, 1.0, self.course(tmp_path, [0.1] * 30))
