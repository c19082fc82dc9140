"""TAR's numbers and losses against values by hand (arXiv 2408.00761; reference numbers by arithmetic)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tamper_samples import course_of, tampering
from tiny_causal_models import tiny_model
from training_samples import PAD, examples

from bulwark.models.embeddings import install
from bulwark.training.batches import StepBatches
from bulwark.unlearning.tampering import resistance
from bulwark.unlearning.tampering.attacks import Attacks
from bulwark.unlearning.tampering.settings import InnerSettings, WeightingSettings

INNER = InnerSettings(steps=64, every=4, learning_rates=(2e-5,), batch_size=32, micro_batch_size=4)
PUBLISHED = [0.02352, 0.03020, 0.03877, 0.04979, 0.06393, 0.08208, 0.10540, 0.13534]
PUBLISHED += [0.17377, 0.22313, 0.28650, 0.36788, 0.47237, 0.60653, 0.77880, 1.0]


def test_the_published_weights_of_the_checkpoints():
    weights = WeightingSettings(normalised=False).weights(INNER)
    assert list(weights) == list(range(3, 64, 4))
    np.testing.assert_allclose(list(weights.values()), PUBLISHED, atol=5e-6)
    assert sum(weights.values()) == pytest.approx(4.43801, abs=5e-6)
    assert 4.0 * sum(weights.values()) == pytest.approx(17.752, abs=1e-3)


def test_normalised_weights_add_up_to_one_in_the_same_proportions():
    weights = list(WeightingSettings().weights(INNER).values())
    assert sum(weights) == pytest.approx(1.0)
    np.testing.assert_allclose(np.array(weights) / weights[-1], PUBLISHED, atol=5e-6)


def test_uniform_weights_are_one_over_the_steps_of_the_attack():
    assert set(WeightingSettings(shape="uniform", normalised=False).weights(INNER).values()) == {1 / 64}
    assert 4.0 * sum(WeightingSettings(shape="uniform", normalised=False).weights(INNER).values()) == 1.0


class Fixed(torch.nn.Module):
    """A model that predicts given logits [batch, seq, vocabulary], whatever it reads."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.head = torch.nn.Identity()
        self.logits = torch.nn.Parameter(logits)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache=False, **_):
        return SimpleNamespace(logits=self.head(self.logits))


def batch_of(count: int = 5):
    [batch] = StepBatches(examples(count), batch_size=count, micro_batch_size=count, pad_id=PAD).of_step(0)
    return batch


@pytest.fixture
def fixed():
    batch = batch_of()
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(*batch.input_ids.shape, 128, generator=generator)
    return Fixed(logits), batch, torch.log_softmax(logits.double(), -1)


def test_entropy_is_a_mean_over_tokens_without_padding(fixed):
    model, batch, logs = fixed
    entropy = -(logs.exp() * logs).sum(-1)
    mask = batch.attention_mask.bool()
    assert 0 < mask.sum() < mask.numel()
    assert float(resistance.negative_entropy(model, batch)) == pytest.approx(-float(entropy[mask].mean()), rel=1e-5)


def test_the_gradient_of_entropy_flattens_predictions(fixed):
    model, batch, _ = fixed
    before = float(resistance.negative_entropy(model, batch))
    resistance.negative_entropy(model, batch).backward()
    with torch.no_grad():
        model.logits -= 10 * model.logits.grad
    assert float(resistance.negative_entropy(model, batch)) < before


def targets_of(logs, batch):
    flat = logs.flatten(0, 1)[batch.target_positions]
    return flat, flat[torch.arange(len(flat)), batch.targets]


def test_negative_cross_entropy_is_clamped_at_guessing(fixed):
    model, batch, logs = fixed
    losses = -targets_of(logs, batch)[1]
    ceiling = math.log(128)
    assert (losses > ceiling).any()
    assert (losses < ceiling).any()
    clamped = -float(losses.clamp(max=ceiling).mean())
    assert float(resistance.negative_cross_entropy(model, batch)) == pytest.approx(clamped, rel=1e-5)
    plain = resistance.negative_cross_entropy(model, batch, clamped=False)
    assert float(plain) == pytest.approx(-float(losses.mean()), rel=1e-5)


def test_inverse_cross_entropy_and_kl_from_uniform(fixed):
    model, batch, logs = fixed
    flat, of_target = targets_of(logs, batch)
    inverse = -torch.log1p(-of_target.exp()).mean()
    assert float(resistance.inverse_cross_entropy(model, batch)) == pytest.approx(float(inverse), rel=1e-5)
    uniform = torch.full((128,), 1 / 128, dtype=torch.float64)
    divergence = torch.stack([(uniform * (uniform.log() - row)).sum() for row in flat]).mean()
    assert float(resistance.kl_from_uniform(model, batch)) == pytest.approx(float(divergence), rel=1e-5)


def test_a_certain_target_has_a_finite_inverse_cross_entropy():
    batch = batch_of()
    logits = torch.zeros(*batch.input_ids.shape, 128)
    logits.flatten(0, 1)[batch.target_positions, batch.targets] = 60.0
    loss = resistance.inverse_cross_entropy(Fixed(logits), batch)
    assert float(loss) == pytest.approx(60.0 - math.log(127), rel=1e-5)


def test_log_probabilities_are_of_each_rows_response(fixed):
    model, batch, logs = fixed
    _, of_target = targets_of(logs, batch)
    rows = batch.target_positions // batch.input_ids.shape[1]
    expected = [float(of_target[rows == row].sum()) for row in range(len(batch.rows))]
    assert resistance.log_probabilities(model, batch).tolist() == pytest.approx(expected, rel=1e-5)


def test_dpo_by_hand():
    margins = resistance.preference_margins(*map(torch.tensor, ([-3.0], [-7.0], [-5.0], [-6.0])))
    assert margins.tolist() == [3.0]  # (-3 + 7) - (-5 + 6)
    assert float(resistance.dpo_loss(margins, 0.1)) == pytest.approx(math.log(1 + math.exp(-0.3)))
    assert float(resistance.dpo_loss(torch.zeros(1), 0.1)) == pytest.approx(0.693147, abs=1e-6)


# --- which attack is drawn ---

MIXTURE = [
    {"name": "pile", "data": "pile", "probability": 1.0},
    {"name": "camel", "data": "camel", "probability": 2.0},
    {"name": "switch", "data": "pile", "before": "retain", "probability": 1.0},
]


@pytest.fixture
def attacks(tmp_path):
    model = tiny_model()
    install(model, {"method": "vanilla"})
    inner = {"steps": 64, "every": 4, "learning_rates": [2e-5, 4e-5], "batch_size": 4, "micro_batch_size": 2}
    return Attacks(course_of(model, tmp_path), tampering(adversaries=MIXTURE, inner=inner))


def test_attacks_are_drawn_by_their_probabilities(attacks):
    draws = [attacks.draw(number) for number in range(4000)]
    names = [draw.adversary for draw in draws]
    assert {name: names.count(name) / 4000 for name in ("pile", "camel", "switch")} == pytest.approx(
        {"pile": 0.25, "camel": 0.5, "switch": 0.25}, abs=0.03
    )
    rates = [draw.learning_rate for draw in draws]
    assert rates.count(2e-5) / 4000 == pytest.approx(0.5, abs=0.03)
    assert {draw.switch for draw in draws if draw.adversary != "switch"} == {0}


def test_the_switch_is_at_two_thirds_of_the_attack(attacks):
    switches = [draw.switch for draw in map(attacks.draw, range(4000)) if draw.adversary == "switch"]
    assert np.mean(switches) == pytest.approx(0.6667 * 64 - 0.5, abs=1.0)  # Beta(6, 3), rounded down
    assert np.std(switches) == pytest.approx(0.149 * 64, abs=1.0)


def test_a_draw_depends_on_seed_and_number_only(attacks, tmp_path):
    assert attacks.draw(7) == attacks.draw(7)
    assert len({attacks.draw(number).switch for number in range(50)}) > 5
    other = Attacks(course_of(tiny_model(), tmp_path, seed=1), attacks.settings)
    assert [attacks.draw(n).adversary for n in range(40)] != [other.draw(n).adversary for n in range(40)]


def test_an_adversary_that_switches_begins_with_its_other_data(attacks):
    draw = next(draw for draw in map(attacks.draw, range(100)) if 5 < draw.switch < 60)
    kept = attacks._streams
    before, attacked = ({tuple(ids) for ids in kept[key].ids} for key in ("before_switch", "attack_switch"))
    for step in range(64):
        rows = {
            tuple(ids[mask.bool()].tolist())
            for batch in attacks.batches(draw, step)
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        }
        assert rows <= (before if step < draw.switch else attacked), step


def test_batches_of_different_inner_steps_and_trajectories_are_different(attacks):
    def rows(number, step):
        draw = attacks.draw(number)
        return [batch.rows for batch in attacks.batches(draw, step)]

    assert len({str(rows(number, step)) for number in range(3) for step in range(8)}) > 12
