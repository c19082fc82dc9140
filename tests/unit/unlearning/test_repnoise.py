"""RepNoise: its three losses against each pair by itself in float64, what is masked, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_causal_models import tiny_model
from training_samples import PAD, run
from unlearning_samples import batch_of, course_of, learned, log_p_of, objective_of, pairs

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models.anatomy import final_norm_of
from bulwark.prompts.builder import IGNORED, Prompt
from bulwark.training.batches import StepBatches
from bulwark.unlearning.losses import discrepancy
from bulwark.unlearning.pairs import differing, differing_sides


def prompt(ids, labels=None):
    return Prompt(ids, labels or ids, [0] * len(ids), [], "", False)


def test_only_tokens_that_differ_from_the_other_answer_are_labelled():
    one, other = prompt([5, 6, 7, 8, 9]), prompt([5, 6, 3, 8])
    assert differing(one, other).labels == [IGNORED, IGNORED, 7, IGNORED, 9]
    assert differing(other, one).labels == [IGNORED, IGNORED, 3, IGNORED]


def test_a_pair_that_was_cut_to_the_same_is_refused():
    with pytest.raises(BulwarkError, match="Pair 2"):
        differing_sides([(prompt([5, 6]), prompt([5, 7])), (prompt([5, 6]), prompt([5, 6, 7]))])


def masked(prompts, others):
    return [differing(one, other) for one, other in zip(prompts, others, strict=True)]


def harm_by_hand(model, prompts):
    """The mean over layers of the cross-entropy of all labelled tokens."""
    norm, head = final_norm_of(model), model.lm_head
    layers = []
    for layer in range(model.config.num_hidden_layers + 1):
        values = []
        for one in prompts:
            with torch.no_grad():
                states = model(torch.tensor([one.ids]), output_hidden_states=True).hidden_states[layer][0]
                last = layer == model.config.num_hidden_layers
                log_p = torch.log_softmax(head(states if last else norm(states)).double(), dim=-1)
            values += [-log_p[place, token].item() for place, token in learned(one)]
        layers.append(sum(values) / len(values))
    return sum(layers) / len(layers)


def objective_on(tmp_path, model, **given):
    course = course_of(tmp_path, model, sides=pairs())
    return objective_of("repnoise", course, side="rejected", **given)


@pytest.mark.parametrize(("alpha", "harmless"), [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0)])
def test_repnoise_learns_the_harmless_and_ascends_on_the_harmful(alpha, harmless, tmp_path):
    model, sides = tiny_model(), pairs()
    with torch.no_grad():  # with a gain of 1, a norm that is applied twice would not show
        model.model.norm.weight += torch.arange(16) / 8
    objective = objective_on(tmp_path, model, alpha=alpha, harmless_weight=harmless, beta=0.0, forget_batch_size=6)
    objective.step = 0
    harmful, kept = masked(sides["rejected"], sides["chosen"]), masked(sides["chosen"], sides["rejected"])
    batch = whole(objective)
    values = [-log_p_of(model, one)[place, token].item() for one in kept for place, token in learned(one)]
    expected = harmless * sum(values) / len(values) - alpha * math.log(1 + harm_by_hand(model, harmful))
    with torch.no_grad():
        assert objective.forget_loss(model, batch).item() == pytest.approx(expected, abs=1e-5)


def whole(objective):
    """All pairs in one micro-batch, as the objective sees them."""
    batches = objective.forgetting
    batches.micro_batch_size = 6
    [batch] = batches.of_step(0)
    return batch


def test_the_noise_is_the_discrepancy_of_what_the_mlps_write(tmp_path):
    model = tiny_model()
    objective = objective_on(tmp_path, model, alpha=0.0, harmless_weight=0.0, beta=1.0, forget_batch_size=6)
    objective.step = 0
    batch, written = whole(objective), []
    handles = [
        block.mlp.register_forward_hook(lambda part, given, put: written.append(put.detach()))
        for block in model.model.layers
    ]
    torch.manual_seed(3)
    with torch.no_grad():
        found = objective.forget_loss(model, batch).item()
    for handle in handles:
        handle.remove()
    torch.manual_seed(3)
    mask = (batch.labels != IGNORED).unsqueeze(-1).double()
    assert mask.sum() < batch.attention_mask.sum()
    expected = []
    for states in written[: len(model.model.layers)]:
        noise = torch.randn_like(states)
        expected.append(discrepancy((states.double() * mask).flatten(1), (noise.double() * mask).flatten(1)).item())
    assert len(expected) == 2
    assert found == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_micro_batches_share_the_loss_by_their_examples(tmp_path):
    model = tiny_model()
    objective = objective_on(tmp_path, model, alpha=1.0, harmless_weight=1.0, beta=0.0, forget_batch_size=6)
    objective.step, sides = 0, pairs()
    kept = masked(sides["chosen"], sides["rejected"])
    harmful = masked(sides["rejected"], sides["chosen"])
    objective.forgetting.micro_batch_size = 4
    parts = list(objective.forgetting.of_step(0))
    values = [-log_p_of(model, one)[place, token].item() for one in kept for place, token in learned(one)]
    logs = [math.log(1 + harm_by_hand(model, [harmful[row[0]] for row in part.rows])) for part in parts]
    assert [len(part.rows) for part in parts] == [4, 2]
    with torch.no_grad():
        found = sum(objective.forget_loss(model, part).item() for part in parts)
    assert found == pytest.approx(sum(values) / len(values) - (4 * logs[0] + 2 * logs[1]) / 6, abs=1e-5)


def test_a_filler_has_no_loss_and_goes_through_the_model_as_often(tmp_path):
    model = tiny_model()
    objective = objective_on(tmp_path, model)
    objective.step = 0
    [filler] = StepBatches(
        pairs()["rejected"][:3], batch_size=3, micro_batch_size=1, pad_id=PAD, rank=3, ranks=4
    ).of_step(0)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    loss = objective.forget_loss(model, filler)
    assert loss.item() == 0
    objective.forget_loss(model, whole(objective))
    assert len(passes) == 4


def test_a_training_with_repnoise_runs(tmp_path):
    course = course_of(tmp_path, sides=pairs(), max_steps=2)
    trained = run(course, objective_of("repnoise", course, side="rejected"), tmp_path)
    assert trained.report.steps == 2


@pytest.mark.parametrize(
    ("given", "training", "told"), [({}, {}, "pairs"), ({"side": "rejected"}, {"packing": True}, "packing")]
)
def test_repnoise_refuses_what_cannot_be(given, training, told, tmp_path):
    with pytest.raises(ConfigurationError, match=told):
        objective_of("repnoise", course_of(tmp_path, sides=pairs(), **training), **given)


def test_the_final_norm_is_found():
    model = tiny_model("gpt_neox")
    assert final_norm_of(model) is model.gpt_neox.final_layer_norm
    model = tiny_model()
    assert final_norm_of(model) is model.model.norm


def test_batches_of_pairs_hold_their_masked_labels():
    sides = pairs()
    batch = batch_of(masked(sides["rejected"], sides["chosen"]))
    assert 0 < batch.step_tokens < sum(len(one.ids) for one in sides["rejected"])
