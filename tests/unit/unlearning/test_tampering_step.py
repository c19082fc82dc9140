"""An outer step of TAR: against gradients by hand, against plain torch, at every ZeRO stage, interrupted."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tamper_samples import COUNT, SampleCourse, course_of, tampering
from tiny_causal_models import tiny_model
from training_samples import PAD, example, examples, trained

from bulwark.models.embeddings import install
from bulwark.training import batches as training_batches
from bulwark.training import engine as engines
from bulwark.training.finetuning import Examples
from bulwark.training.objectives import Objective
from bulwark.unlearning.tampering.held_out import held_out_of
from bulwark.unlearning.tampering.tampering import RECORD, Tampering

DESCENT = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant", "max_grad_norm": 0.0}
STAGES = [{"zero_stage": stage, "precision": "float32"} for stage in (0, 1, 2, 3)]
STAGES += [{"zero_stage": stage, "precision": "bfloat16"} for stage in (1, 2, 3)]
STAGES += [{"zero_stage": 2, "precision": "float32", "offload": True}]
STAGES += [{"zero_stage": 3, "precision": "bfloat16", "offload": True}]
NAMES = ["-".join(map(str, stage.values())) for stage in STAGES]


def model_of(precision: str = "float32"):
    model = tiny_model(dtype=getattr(torch, precision))
    install(model, {"method": "vanilla"})
    return model


def resisted(folder, training=None, model=None, **changes):
    """A tamper-resistant training; its weights and what it recorded."""
    training = training or {}
    model = model or model_of(training.get("precision", "float32"))
    objective = Tampering(course_of(model, folder, **training), tampering(training, **changes))
    return trained(model, folder, COUNT, objective, **training), objective


# --- two parameters ---


class TwoWeights(torch.nn.Module):
    """Predicts token 0 with probability σ(a - b) and token 1 otherwise, whatever it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="eager")
        self.head = torch.nn.Linear(1, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.3], [-0.5]])
        self.inputs = torch.nn.Embedding(2, 1, _freeze=True)

    def get_output_embeddings(self):
        return self.head

    def get_input_embeddings(self):
        return self.inputs

    def forward(self, input_ids, use_cache=False, **_):
        return SimpleNamespace(logits=self.head(torch.ones(*input_ids.shape, 1)))


class Tosses(SampleCourse):
    """The attack learns token 0, resistance is measured anywhere."""

    def examples_from(self, name):
        return Examples([], [example([0, 0, 0], 2)] * 2, 0, 0)


def test_a_step_on_two_parameters_by_hand(tmp_path):
    """Retain: token 1. Attack: token 0, K = 2, descent at 0.5. Resistance: entropy, weights e^-0.7 and 1, λ = 3."""
    model = TwoWeights()
    training = DESCENT | {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}
    plain = course_of(model, tmp_path, **training)
    course = Tosses(**{**vars(plain), "examples": []})
    inner = {"steps": 2, "every": 1, "learning_rates": [0.5], "batch_size": 2, "micro_batch_size": 2}
    settings = tampering(
        training,
        inner=inner | {"optimizer": "sgd", "weight_decay": 0.0},
        resistance={"weight": 3.0},
        weighting={"shape": "exponential", "rate": 0.7, "normalised": False},
    )
    objective = Tampering(course, settings)
    engine = engines.build(model, settings.training, 1)
    [retained] = training_batches.StepBatches(
        [example([1, 1, 1], 2)] * 2, batch_size=2, micro_batch_size=2, pad_id=PAD
    ).of_step(0)
    objective.before_step(engine, 0, 1)
    assert model.head.weight.flatten().tolist() == pytest.approx([0.3, -0.5], abs=1e-7)
    engine.set_gradient_accumulation_boundary(True)
    objective.backward(engine, retained)
    objective.after_backward(engine, 0, 1)
    gradient = model.head.weight.grad.flatten().double()

    def probability(a, b):
        return 1 / (1 + math.exp(b - a))

    def entropy_slope(a, b):  # dH/da = -p(1 - p)(a - b), and dH/db is its negative
        p = probability(a, b)
        return -p * (1 - p) * (a - b)

    a, b, slopes = 0.3, -0.5, []
    for _ in range(2):
        miss = 1 - probability(a, b)
        a, b = a + 0.5 * miss, b - 0.5 * miss
        slopes.append(entropy_slope(a, b))
    weights = [math.exp(-0.7), 1.0]
    resistance = 3.0 * sum(w * -slope for w, slope in zip(weights, slopes, strict=True))
    retain = probability(0.3, -0.5)  # the gradient of -ln(1 - p)
    assert gradient.tolist() == pytest.approx([resistance + retain, -resistance - retain], rel=1e-5)


# --- against plain torch ---


def reference_training(model, settings, folder, steps=4):
    """The same, written for plain torch in one process: no engine, no shards, whole batches."""
    model = copy.deepcopy(model)
    course = course_of(model, folder, **DESCENT)
    retain = training_batches.training_batches(
        examples(COUNT), settings.training, seed=0, rank=0, ranks=1, pad_id=PAD, flatten=False
    )
    attack = course.batches(course.examples_from("attack_forget").prompts, "attack_forget", 4, 2)
    held_out = course.batches(course.examples_from("held_out").prompts, "held_out")
    inner = settings.inner

    def logits_of(net, batch):
        return net(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    def cross_entropy(net, parts):
        parts = list(parts)
        total = sum(
            F.cross_entropy(logits_of(net, p)[:, :-1].flatten(0, 1), p.labels[:, 1:].flatten(), reduction="sum")
            for p in parts
        )
        return total / sum(int((p.labels[:, 1:] != -100).sum()) for p in parts)

    def negative_entropy(net, parts):
        parts = list(parts)
        logs = [torch.log_softmax(logits_of(net, p), -1)[p.attention_mask.bool()] for p in parts]
        return torch.cat([(log.exp() * log).sum(-1) for log in logs]).mean()

    for step in range(steps):
        twin = copy.deepcopy(model)
        rate = inner.learning_rates[0]
        optimizer = torch.optim.AdamW(twin.parameters(), lr=rate)
        gathered = [torch.zeros_like(parameter) for parameter in model.parameters()]
        kept = {k: math.exp(0.0625 * (k - 3)) for k in (1, 3)}
        for k in range(inner.steps):
            optimizer.zero_grad()
            cross_entropy(twin, attack.of_step(step * inner.steps + k)).backward()
            optimizer.step()
            if k in kept:
                gradients = torch.autograd.grad(negative_entropy(twin, held_out.of_step(step)), twin.parameters())
                for total, gradient in zip(gathered, gradients, strict=True):
                    total += 4.0 * kept[k] / sum(kept.values()) * gradient
        gradients = torch.autograd.grad(cross_entropy(model, retain.of_step(step)), model.parameters())
        with torch.no_grad():
            for parameter, gradient, total in zip(model.parameters(), gradients, gathered, strict=True):
                parameter -= 0.1 * (gradient + total)
    return model


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return reference_training(model_of(), tampering(DESCENT), tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_the_weights_are_those_of_plain_torch(stage, tmp_path, expected):
    outcome, _ = resisted(tmp_path, DESCENT | stage)
    start, ends = model_of().state_dict(), expected.state_dict()
    moved, apart = (
        math.sqrt(sum(float((ends[name] - other[name].float()).square().sum()) for name in ends))
        for other in (start, outcome.model.state_dict())
    )
    assert apart < moved * (1e-5 if stage["precision"] == "float32" else 0.25)


def test_resistance_moves_the_weights_more_than_the_tolerance(tmp_path, expected):
    plain = trained(model_of(), tmp_path, COUNT, **DESCENT).model
    moved = [float((a - b).abs().max()) for a, b in zip(plain.parameters(), expected.parameters(), strict=True)]
    assert max(moved) > 0.05


# --- coming back ---


@pytest.mark.parametrize("optimizer", ["adamw", "schedulefree_adamw"])
@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_without_weight_the_attacks_leave_no_trace(stage, optimizer, tmp_path):
    """λ_TR = 0 trains, to the bit, what the retain loss alone trains."""
    training = {"optimizer": optimizer, "schedule": "constant", **stage}
    outcome, objective = resisted(tmp_path / "tar", training, resistance={"weight": 0.0}, park_optimizer=True)
    plain = trained(model_of(stage["precision"]), tmp_path / "plain", COUNT, Objective(), **training)
    assert len(objective.record) == 4
    assert all(line["attack"][-1] < line["attack"][0] for line in objective.record)
    ours, theirs = outcome.model.state_dict(), plain.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


class Killed(Exception):
    pass


@pytest.mark.parametrize("loss", ["entropy", "dpo"])
def test_a_run_killed_inside_an_attack_goes_on_as_if_nothing_had_happened(loss, tmp_path, monkeypatch):
    changes = {"resistance": {"loss": loss, "weight": 2.0}}
    training = {"save_every": 1, "optimizer": "schedulefree_adamw", "schedule": "constant"}
    whole, one = resisted(tmp_path / "whole", training, **changes)
    with monkeypatch.context() as patch:
        original = engines.publish
        calls = {"left": 11}  # in the middle of the third attack

        def publish(engine):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise Killed
            original(engine)

        patch.setattr(engines, "publish", publish)
        with pytest.raises(Killed):
            resisted(tmp_path / "cut", training, **changes)
    again, two = resisted(tmp_path / "cut", training, **changes)
    assert again.report.resumed_at == [2]
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert two.record == one.record


# --- what is recorded ---


def test_a_trajectory_is_recorded(tmp_path):
    _, objective = resisted(tmp_path, inner=INNER | {"trajectories": 2})
    objective.write(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / RECORD).read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(8))
    assert [line["step"] for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {len(line["attack"]) for line in lines} == {4}
    assert {len(line["resistance"]) for line in lines} == {2}
    assert all(0 < -value <= math.log(29) for line in lines for value in line["resistance"])
    report = objective.report()["tampering"]
    assert report["lambda_nominal"] == report["lambda_effective"] == 4.0
    assert report["checkpoints"] == [1, 3]
    assert report["batches_per_outer_step"] == 2 * (4 + 2) + 1


INNER = {"steps": 4, "every": 2, "learning_rates": [1e-2], "batch_size": 4, "micro_batch_size": 2}


def test_two_trajectories_are_averaged(tmp_path, monkeypatch):
    """The same attack twice counts once."""
    from bulwark.unlearning.tampering.attacks import Attacks, Draw
    from bulwark.unlearning.tampering.held_out import HeldOut

    monkeypatch.setattr(Attacks, "draw", lambda self, number: Draw(0, "forget", 1e-2, 0))
    original = HeldOut.of
    monkeypatch.setattr(HeldOut, "of", lambda self, adversary, number, device: original(self, adversary, 0, device))
    once, _ = resisted(tmp_path / "once", DESCENT)
    twice, _ = resisted(tmp_path / "twice", DESCENT, inner=INNER | {"trajectories": 2})
    torch.testing.assert_close(dict(twice.model.state_dict()), dict(once.model.state_dict()), atol=1e-5, rtol=0)


def test_below_the_bound_only_the_retain_set_is_learned(tmp_path):
    bounded, _ = resisted(tmp_path / "bounded", DESCENT, resistance={"lower_bound": 0.0})
    plain = trained(model_of(), tmp_path / "plain", COUNT, **DESCENT)
    assert all(map(torch.equal, bounded.model.parameters(), plain.model.parameters()))
    free, _ = resisted(tmp_path / "free", DESCENT, resistance={"lower_bound": -math.log(29) - 0.1})
    always, _ = resisted(tmp_path / "always", DESCENT)
    assert all(map(torch.equal, free.model.parameters(), always.model.parameters()))


def test_alternating_steps_resist_and_retain_in_turn(tmp_path):
    one = {"max_steps": 1} | DESCENT
    outcome, objective = resisted(tmp_path / "one", one, alternating=True)
    assert [line["step"] for line in objective.record] == [0]
    both = resisted(tmp_path / "both", one)[0].model
    plain = trained(model_of(), tmp_path / "plain", COUNT, **one).model
    start = model_of()
    for ours, together, retained, before in zip(
        outcome.model.parameters(), both.parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(ours - before, (together - before) - (retained - before), atol=1e-6, rtol=0)
    _, longer = resisted(tmp_path / "four", DESCENT, alternating=True)
    assert [line["step"] for line in longer.record] == [0, 2]
    assert [longer.phase(step) for step in range(3)] == ["resist", "retain", "resist"]


def test_the_reference_of_dpo_is_the_start(tmp_path):
    """Before an attack has moved anything, nothing has won and the loss is ln 2."""
    changes = {"resistance": {"loss": "dpo", "weight": 0.1}, "inner": INNER | {"learning_rates": [1e-12]}}
    _, objective = resisted(tmp_path, {"max_steps": 1} | DESCENT, **changes)
    assert objective.record[0]["resistance"] == pytest.approx([0.693147] * 2, abs=1e-5)
    _, longer = resisted(tmp_path / "longer", {"max_steps": 8} | DESCENT, resistance={"loss": "dpo", "weight": 20.0})
    assert longer.record[-1]["win_rate"] > longer.record[0]["win_rate"]
    assert np.mean(longer.record[-1]["resistance"]) < np.mean(longer.record[0]["resistance"])


def test_the_likelihoods_of_the_start_are_taken_once_of_each_pair(tmp_path, monkeypatch):
    """Of ten pairs, of which eight attacks need more: a batch is passed only where one of its pairs is new."""
    from bulwark.unlearning.tampering.held_out import Preferences

    passed: list[set[int]] = []
    before: list[bool] = []
    likelihoods, before_training = Preferences._likelihoods, Preferences.before_training

    def noted(self, engine, batch):
        if before:
            passed.append({example for row in batch.rows for example in row})
        return likelihoods(self, engine, batch)

    def flagged(self, engine, trajectories):
        before.append(True)
        before_training(self, engine, trajectories)
        before.clear()

    monkeypatch.setattr(Preferences, "_likelihoods", noted)
    monkeypatch.setattr(Preferences, "before_training", flagged)
    _, objective = resisted(tmp_path, {"max_steps": 8} | DESCENT, resistance={"loss": "dpo"})
    needed = [
        example
        for n in range(8)
        for batch in objective.held_out.of("", n, "cpu")
        for row in batch.rows
        for example in row
    ]
    assert len(needed) > len(set(needed)), "some come again"
    assert set(objective.held_out.at_start.known) == set().union(*passed) == set(needed)
    assert all(batch - set().union(*passed[:n]) for n, batch in enumerate(passed))


def test_resisting_alone_passes_no_reference(tmp_path, monkeypatch):
    """SOPHON's even steps: the retain loss counts nothing there, and the frozen model is not asked."""
    asked: list[bool] = []
    model = model_of()
    objective = Tampering(course_of(model, tmp_path), tampering(alternating=True))
    objective.reference = SimpleNamespace(hidden_states=lambda *_: asked.append(True))
    [batch] = training_batches.StepBatches(examples(4), batch_size=4, micro_batch_size=4, pad_id=PAD).of_step(0)
    objective._retaining = False
    loss = objective.loss(model, batch)
    loss.backward()
    assert (float(loss), asked) == (0.0, [])
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_entropy_under_attack_rises_with_training(tmp_path):
    training = {"max_steps": 12, "learning_rate": 3e-2, "schedule": "constant"}
    _, objective = resisted(tmp_path, training)
    first, last = (-np.mean(objective.record[place]["resistance"]) for place in (0, -1))
    assert last > first + 0.1  # of at most ln 29 = 3.37


@pytest.mark.parametrize(("norm", "power"), [("plain", 1), ("squared", 2)])
def test_hidden_states_are_held_to_the_reference(norm, power, tmp_path, monkeypatch):
    """λ_retain · (CE + mean over layers and tokens of the distance from another model's hidden states)."""
    from bulwark.training.objectives import hidden_states
    from bulwark.unlearning.reference import Reference

    other = model_of()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05
    monkeypatch.setattr(Reference, "__init__", lambda self, course, settings: setattr(self, "_model", other))
    model = model_of()
    retain = {"norm": norm, "weight": 0.7}
    objective = Tampering(course_of(model, tmp_path), tampering(retain=retain))
    [batch] = training_batches.StepBatches(examples(4), batch_size=4, micro_batch_size=4, pad_id=PAD).of_step(0)
    with torch.no_grad():
        found = objective.loss(model, batch)
        logits = model(input_ids=batch.input_ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
        mask = batch.attention_mask.bool()
        pairs = zip(hidden_states(model, batch), hidden_states(other, batch), strict=True)
        distances = [(a - b)[mask].double().norm(dim=-1).pow(power).mean() for a, b in pairs]
    assert len(distances) == 3
    assert float(found) == pytest.approx(0.7 * float(loss + sum(distances) / 3), rel=1e-5)


def test_padding_counts_only_where_that_is_asked_for(tmp_path):
    training = {"max_tokens": 12}
    course = course_of(model_of(), tmp_path, **training)
    for count, positions in ((False, None), (True, 2 * 12)):
        held_out = held_out_of(course, tampering(training, resistance={"count_padding": count}))
        batch = held_out.of("forget", 0, torch.device("cpu"))[0]
        tokens = int(held_out._streams["held_out"].lengths[[row[0] for row in batch.rows]].sum())
        assert batch.positions.numel() == (positions or tokens)
        assert tokens < 2 * 12


def test_the_weight_that_counts_is_told_beside_the_one_that_is_set(tmp_path):
    weighting = {"shape": "exponential", "rate": 0.5, "normalised": False}
    objective = Tampering(course_of(model_of(), tmp_path), tampering(weighting=weighting))
    report = objective.report()["tampering"]
    assert report["lambda_nominal"] == 4.0
    assert report["lambda_effective"] == pytest.approx(4.0 * (math.exp(-0.5 * 2) + 1.0))  # after steps 1 and 3 of 0 … 3


def test_a_draw_is_not_won_and_an_empty_row_has_no_loss(tmp_path):
    """Where the weights are still those of the reference, nothing has gained; a rank may have a row without a pair."""
    model = model_of()
    settings = tampering(DESCENT, resistance={"loss": "dpo"})
    held_out = held_out_of(course_of(model, tmp_path, **DESCENT), settings)
    engine = engines.build(model, settings.training, 1)
    held_out.before_training(engine, 1)
    batches = held_out.of("forget", 0, engine.device)
    assert float(held_out.diagnosis(engine, batches)["win_rate"]) == 0.0
    sizes = {"step_tokens": 1, "step_sequences": 1, "step_positions": 1}
    with torch.no_grad():
        assert float(sum(held_out.loss(engine, batch) for batch in batches)) == pytest.approx(math.log(2), abs=1e-6)
        assert float(held_out.loss(engine, held_out._chosen._collated((), sizes))) == 0.0
