"""DPO: the loss of one optimizer step and its gradient against autograd over whole sequences in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny_causal_models import tiny_model
from training_samples import PAD, run
from unlearning_samples import course_of, learned, pairs

from bulwark.errors import RecordError
from bulwark.training import engine as engines
from bulwark.training.batches import StepBatches
from bulwark.unlearning.preferences import DirectPreference

BETA = 0.3
SIDES = pairs(5)


def course(folder, **training):
    made = course_of(folder, sides=SIDES, batch_size=4, micro_batch_size=2, **training)
    return replace(made, examples=SIDES["chosen"])


def log_p(model, prompt):
    """ln p of the labelled tokens together, by one pass over the example alone; with its gradient."""
    logs = torch.log_softmax(model(input_ids=torch.tensor([prompt.ids])).logits[0], dim=-1)
    return sum(logs[place, token] for place, token in learned(prompt))


def loss_by_hand(model, start, numbers):
    """The mean of -ln(1 / (1 + e^(-βz))), written out."""
    total = 0.0
    for number in numbers:
        chosen, rejected = SIDES["chosen"][number], SIDES["rejected"][number]
        with torch.no_grad():
            known = log_p(start, chosen) - log_p(start, rejected)
        z = log_p(model, chosen) - log_p(model, rejected) - known
        total = total + torch.log(1 + torch.exp(-BETA * z))
    return total / len(numbers)


def moved(model):
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return other


class Started:
    """As much of an engine as is asked for log-probabilities."""

    training, device = True, torch.device("cpu")

    def __init__(self, module):
        self.module = module

    def __call__(self, **given):
        return self.module(**given)

    def eval(self):
        pass

    def train(self, mode):
        assert mode


def test_loss_and_gradient_of_a_step_are_those_written_out(tmp_path):
    start = tiny_model()
    other = moved(start)
    objective = DirectPreference(course(tmp_path), "forget", BETA)
    own = StepBatches(SIDES["chosen"], batch_size=4, micro_batch_size=2, pad_id=PAD)
    assert objective.batches_from(own) is own
    engine = Started(start)
    engines.start_processes()
    objective.before_step(engine, 0, 2)
    known = dict(objective.at_start.known)
    assert sorted(known) == [0, 1, 2, 3, 4]
    for step in range(2):
        numbers = own.examples_of(step).tolist()
        wanted = loss_by_hand(copy.deepcopy(other).double(), copy.deepcopy(start).double(), numbers)
        with torch.no_grad():
            found = sum(objective.loss(other, batch) for batch in own.of_step(step))
        assert float(found) == pytest.approx(float(wanted.detach()), rel=1e-4)
        assert float(found) != pytest.approx(0.693, abs=0.01)
    exact = copy.deepcopy(other).double()
    loss_by_hand(exact, copy.deepcopy(start).double(), own.examples_of(0).tolist()).backward()
    other.zero_grad()
    sum(objective.loss(other, batch) for batch in own.of_step(0)).backward()
    for found, wanted in zip(other.parameters(), exact.parameters(), strict=True):
        if wanted.grad is not None:
            assert torch.allclose(found.grad.double(), wanted.grad, rtol=1e-3, atol=1e-5)
    objective.before_step(Started(other), 1, 2)  # is not taken again of the weights of now
    assert objective.at_start.known == known
    resumed = DirectPreference(course(tmp_path), "forget", BETA)
    resumed.load_state_dict(objective.state_dict())
    assert resumed.at_start.known == known


def test_training_prefers_the_chosen_side_and_begins_at_ln_2(tmp_path):
    given = course(tmp_path, max_steps=12, schedule="constant", learning_rate=3e-3)
    start = copy.deepcopy(given.model)
    trained = run(given, DirectPreference(given, "forget", BETA), tmp_path)
    assert float(loss_by_hand(start, start, range(5)).detach()) == pytest.approx(0.693147, abs=1e-5)
    assert float(loss_by_hand(trained.model, start, range(5)).detach()) < 0.5


def test_a_pair_with_a_side_that_was_cut_away_is_refused(tmp_path):
    short = replace(course(tmp_path), examples=SIDES["chosen"][:4])
    with pytest.raises(RecordError, match="of 5 pairs 4 have a chosen response"):
        DirectPreference(short, "forget", BETA)
