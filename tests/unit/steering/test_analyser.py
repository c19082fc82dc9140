"""The analyser: every number as one would take it by hand, and a training that does not notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_samples import PAD, examples, settings
from transformers import LlamaConfig, LlamaForCausalLM

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models.embeddings import install
from bulwark.steering.dynamics import diagnostics
from bulwark.steering.dynamics.analyser import FILE, Analyser
from bulwark.steering.intervention import Intervention, token_mask
from bulwark.steering.screening.split import SplitModel, select_rows
from bulwark.steering.settings import AnalysisSettings, InterventionSettings
from bulwark.training import engine as engines
from bulwark.training.batches import StepBatches, training_batches
from bulwark.training.loop import train
from bulwark.training.objectives import Objective, next_token_loss, target_logits

LAYER, STEPS, HIDDEN = 2, 4, 16
VECTOR = torch.linspace(-1, 2, HIDDEN)
UNIT = VECTOR / VECTOR.norm()
ADDED = InterventionSettings(alpha=0.7)
WINDOWS = {"early": (0.0, 0.5), "late": (0.5, 1.0)}


def model_of(bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2, attention_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if bias:
        for layer in model.model.layers:
            nn.init.normal_(layer.mlp.down_proj.bias)
    install(model, {"method": "vanilla"})
    return model


def analysed(folder: Path, objective: Objective | None = None, **changes) -> tuple[Objective, Analyser]:
    """An objective and the analyser that watches it."""
    objective = objective or Objective()
    chosen = AnalysisSettings(**({"every": 2, "windows": WINDOWS} | changes))
    watching = {"layer": LAYER, "vector": VECTOR, "intervention": ADDED, "folder": folder, "phase": objective.phase}
    return objective, Analyser(chosen, **watching)


def run(folder: Path, parts: tuple[Objective, Analyser] | None, model: nn.Module | None = None, **changes) -> dict:
    """Train for four steps of four examples in two micro-batches; returns the weights."""
    objective, *observers = parts or [None]
    trained = train(
        model or model_of(), examples(14), [], settings(**({"max_steps": STEPS} | changes)), seed=0,
        state=folder / "training", fingerprint={}, pad_id=PAD, objective=objective, observers=observers,
    )  # fmt: skip
    return trained.model.state_dict()


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def table(folder: Path) -> dict[tuple, float]:
    rows = rows_of(folder)
    found = {(row["step"], row["layer"], row["module"], row["quantity"]): row["value"] for row in rows}
    assert len(found) == len(rows), "a number stands twice"
    return found


def whole_step(step: int):
    """The examples of a step as one batch."""
    [batch] = training_batches(
        examples(14), settings(micro_batch_size=4), seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False
    ).of_step(step)
    return batch


def test_gradients_and_the_chain_rule_are_those_taken_by_hand(tmp_path):
    run(tmp_path, analysed(tmp_path, every=1))
    found = table(tmp_path)
    model, batch = model_of(), whole_step(0)
    mask = batch.labels != -100
    kept = {}

    def keep(name):
        def hook(_, inputs, output):
            output.retain_grad()
            kept[name] = (inputs[0], output)

        return hook

    block = model.model.layers[LAYER - 1]
    for name, module in {"residual": block, "o_proj": block.self_attn.o_proj, "down_proj": block.mlp.down_proj}.items():
        module.register_forward_hook(keep(name))
    F.cross_entropy(target_logits(model, batch), batch.targets, reduction="sum").backward()

    def mean(tensor):
        return tensor[mask].mean(dim=0)

    gradient, state = mean(kept["residual"][1].grad), mean(kept["residual"][1]).detach()
    expected = {
        "gradient_norm": gradient.norm(),
        "gradient_cosine": F.cosine_similarity(gradient, VECTOR, dim=0),
        "gradient_projection": gradient @ UNIT,
        "gradient_orthogonal": (gradient - (gradient @ UNIT) * UNIT).norm(),
        "x": -gradient @ UNIT,
        "y": state @ UNIT,
        "z": -(gradient @ UNIT) * (state @ UNIT),
        "y_normalised": F.cosine_similarity(state, VECTOR, dim=0),
    }
    for name, value in expected.items():
        assert found[0, LAYER, "residual", name] == pytest.approx(float(value), rel=1e-4, abs=1e-7), name
    for site, weight in (("o_proj", block.self_attn.o_proj.weight), ("down_proj", block.mlp.down_proj.weight)):
        given, delta = mean(kept[site][0]).detach(), mean(kept[site][1].grad)
        x, y = -delta @ UNIT, given @ (weight.detach().T @ UNIT)
        assert found[0, LAYER, site, "x"] == pytest.approx(float(x), rel=1e-4)
        assert found[0, LAYER, site, "y"] == pytest.approx(float(y), rel=1e-4)
        assert found[0, LAYER, site, "z"] == pytest.approx(float(x * y), rel=1e-4)


def test_x_says_where_a_step_of_descent_moves_the_output():
    """ΔW ∝ -δ̄āᵀ for one token moves Wa along v̂ by x·‖a‖²; and y is the output's projection, without the bias."""
    torch.manual_seed(0)
    layer, token = nn.Linear(5, HIDDEN), torch.randn(5)
    output = layer(token)
    (output.square().sum()).backward()
    sums = {
        f"{site}/{LAYER}/{what}": value
        for site in diagnostics.SITES
        for what, value in {
            "unknown": torch.zeros(()), "gradient": 2 * output.detach(), "output": output.detach(), "input": token
        }.items()
    }  # fmt: skip
    norms = dict.fromkeys(diagnostics.SITES, layer.weight.detach().norm())
    biases = dict.fromkeys(diagnostics.SITES, layer.bias.detach())
    found = diagnostics.chain_quantities(sums, LAYER, 1, UNIT, norms, biases)
    with torch.no_grad():
        moved = layer.weight - layer.weight.grad
        torch.testing.assert_close((moved - layer.weight) @ token @ UNIT, found[2, "o_proj", "x"] * token @ token)
        torch.testing.assert_close(found[2, "o_proj", "y"], layer.weight @ token @ UNIT)
        assert abs(found[2, "o_proj", "y_normalised"]) <= 1


def test_hidden_states_are_compared_after_the_step_without_and_with_the_vector(tmp_path):
    weights = run(tmp_path, analysed(tmp_path, every=3, layers=(1, 2, 3)))
    found = table(tmp_path)
    assert {step for step, *_ in found} == {0, 1, 3}  # the first, the end of a window, and the last
    model, batch = model_of(), whole_step(STEPS - 1)
    model.load_state_dict(weights)
    mask = batch.labels != -100

    def states():
        kept = []
        handles = [
            block.register_forward_hook(lambda _, __, output: kept.append(output[mask].mean(dim=0)))
            for block in model.model.layers[:3]
        ]
        model(input_ids=batch.input_ids)
        for handle in handles:
            handle.remove()
        return dict(zip((1, 2, 3), kept, strict=True))

    with torch.no_grad():
        natural = states()
        with Intervention(model, {LAYER: VECTOR}).on(token_mask(batch, "response"), ADDED.alpha):
            added = states()
    assert found[3, 1, "residual", "state_relative_change"] == 0
    for key in (2, 3):
        place = (3, key, "residual")
        cosine = F.cosine_similarity(natural[key], added[key], dim=0)
        assert found[*place, "state_cosine"] == pytest.approx(float(cosine), rel=1e-4)
        assert found[*place, "state_norm_ratio"] == pytest.approx(
            float(added[key].norm() / natural[key].norm()), rel=1e-4
        )
    projection = ADDED.alpha * float(VECTOR.norm())
    assert found[3, 2, "residual", "state_change_projection"] == pytest.approx(projection, rel=1e-4)
    assert found[3, 2, "residual", "state_change_projection_share"] == pytest.approx(1, rel=1e-4)


def test_updates_of_weights_are_split_along_the_vector(tmp_path):
    after = run(tmp_path, analysed(tmp_path))
    found = table(tmp_path)
    name = f"model.layers.{LAYER - 1}.mlp.down_proj.weight"
    update = after[name] - model_of().state_dict()[name]
    along = VECTOR @ update
    place = (STEPS - 1, LAYER, "down_proj")
    assert found[*place, "update_norm"] == pytest.approx(float(update.norm()), rel=1e-4)
    energy = (UNIT @ update).square().sum() / update.square().sum()
    assert found[*place, "energy_parallel"] == pytest.approx(float(energy), rel=1e-4)
    assert found[*place, "update_projection_sum"] == pytest.approx(float(along.sum()), rel=1e-3)
    assert found[*place, "update_projection_lowest"] == pytest.approx(float(along.min()), rel=1e-4)  # 5 % of 24
    opposition = F.cosine_similarity(update, -VECTOR[:, None], dim=0)
    assert found[*place, "update_opposition_mean"] == pytest.approx(float(opposition.mean()), rel=1e-4)
    assert found[*place, "update_opposition_max"] == pytest.approx(float(opposition.max()), rel=1e-4)
    late = found[STEPS - 1, LAYER, "down_proj", "energy_parallel_late"]
    early = found[1, LAYER, "down_proj", "energy_parallel_early"]
    assert 0 < early < 1
    assert 0 < late < 1
    assert late != pytest.approx(float(energy), rel=1e-3)  # of the second half only


class Remembering(Objective):
    """Keeps a weight as it is before each step."""

    def __init__(self, name: str) -> None:
        self.name, self.before = name, []

    def before_step(self, engine, step, total):
        self.before.append(engine.module.get_parameter(self.name).detach().clone())


def test_a_window_has_the_updates_of_its_own_steps_and_no_others(tmp_path):
    objective = Remembering(f"model.layers.{LAYER - 1}.mlp.down_proj.weight")
    run(tmp_path, analysed(tmp_path, objective, windows={"middle": (0.25, 0.75)}))
    update = objective.before[3] - objective.before[1]  # what steps 1 and 2 of four have done
    energy = (UNIT @ update).square().sum() / update.square().sum()
    assert table(tmp_path)[2, LAYER, "down_proj", "energy_parallel_middle"] == pytest.approx(float(energy), rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_does_not_notice(tmp_path, checkpointing):
    chosen = {"gradient_checkpointing": checkpointing}
    plain = run(tmp_path / "plain", None, **chosen)
    watched = run(tmp_path / "watched", analysed(tmp_path / "watched", every=1), **chosen)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    run(tmp_path / "other", analysed(tmp_path / "other", every=1), gradient_checkpointing=not checkpointing)
    one, other = table(tmp_path / "watched"), table(tmp_path / "other")
    assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


def test_the_numbers_do_not_depend_on_micro_batches(tmp_path):
    for size in (1, 4):
        run(tmp_path / str(size), analysed(tmp_path / str(size), every=1), micro_batch_size=size)
    one, other = table(tmp_path / "1"), table(tmp_path / "4")
    assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


class Stopped(Exception):
    pass


class Stopping(Objective):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, engine, step, total):
        if step == self.at:
            raise Stopped

    def state_dict(self):
        return {"own": 1}

    def phase(self, step):
        return "injection" if step < 2 else "after"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_run_resumes_without_rows_written_twice(tmp_path, at):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, analysed(whole, Stopping(99), every=1), save_every=1)
    with pytest.raises(Stopped):
        run(killed, analysed(killed, Stopping(at), every=1), save_every=2)
    with (killed / FILE).open("a") as file:
        file.write('{"step": 3, "lay')  # cut in the middle of a line
    run(killed, analysed(killed, Stopping(99), every=1), save_every=2)
    assert rows_of(killed) == rows_of(whole)
    assert {row["phase"] for row in rows_of(whole) if row["step"] >= 2} == {"after"}


def test_tensorboard_has_the_authors_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, analysed(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "analysis"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "GradAnalysis/L2_grad_cos_vm", "ActAnalysis/L2_cos_sim", "WeightAnalysis/L2_deltaW_top5_cos_with_neg_vm",
        "ChainRule/L2_y_neuron_proj_vm", "ChainRuleAttention/L2_x_signed_update_toward_vm",
        "ResidualChainRule/L2_z_signed_correction_momentum",
    } <= tags  # fmt: skip
    assert [event.step for event in events.Scalars("GradAnalysis/L2_grad_cos_vm")] == [0, 2, 3]


def test_only_what_is_really_trained_counts(tmp_path):
    """A detector's own gradients, and passes without any, are not the training's."""

    class Probing(Objective):
        def backward(self, engine, batch):
            with torch.no_grad():
                next_token_loss(engine, batch)
            loss = next_token_loss(engine.module, batch)
            torch.autograd.grad(loss, [engine.module.lm_head.weight])
            return super().backward(engine, batch)

    run(tmp_path / "a", analysed(tmp_path / "a"))
    run(tmp_path / "b", analysed(tmp_path / "b", Probing()))
    assert table(tmp_path / "a") == table(tmp_path / "b")


class Split(Objective):
    """Trains through a model that is split at the layer; with `dropping`, without the first row of every batch."""

    def __init__(self, dropping: bool) -> None:
        self.dropping = dropping

    def start(self, engine, total):
        self.split = SplitModel(engine, LAYER)

    def backward(self, engine, batch):
        hidden = self.split.trunk(batch)
        if self.dropping:
            rows = torch.arange(1, len(batch.labels))
            batch, hidden = select_rows(batch, rows), hidden[rows]
        loss = self.split.token_losses(hidden, batch).sum() / batch.step_tokens
        engines.backward(engine, loss)
        return loss.detach()


def test_a_split_model_is_seen_as_the_whole_one(tmp_path):
    for name, inner in {"whole": Objective(), "split": Split(False)}.items():
        run(tmp_path / name, analysed(tmp_path / name, inner, every=1, layers=(1, 2, 3)))
    whole, split = table(tmp_path / "whole"), table(tmp_path / "split")
    assert split == pytest.approx(whole, rel=1e-3, abs=1e-6)


def test_gradients_are_unknown_above_the_layer_where_rows_were_dropped(tmp_path):
    run(tmp_path, analysed(tmp_path, Split(True), every=1, layers=(1, 2, 3)))
    found = table(tmp_path)
    assert found[0, 3, "residual", "gradient_norm"] is None
    assert found[0, 1, "residual", "gradient_norm"] > 0
    assert found[0, 2, "residual", "gradient_cosine"] is not None
    assert found[0, 2, "down_proj", "x"] is not None


def test_the_monitored_layers_are_the_authors(tmp_path):
    assert diagnostics.monitored(44, 64, None) == (34, 39, 44, 49, 54, 59)
    assert diagnostics.monitored(3, 4, None) == (1, 3)
    assert diagnostics.monitored(2, 4, (3, 1)) == (1, 2, 3)
    with pytest.raises(ConfigurationError, match=r"analysis\.layers: 4 is not a layer key"):
        diagnostics.monitored(2, 4, (4,))


def test_pooling_is_in_fp32_over_the_mask():
    values = torch.randn(3, 5000, 4, dtype=torch.bfloat16)
    mask = torch.rand(3, 5000) < 0.5
    torch.testing.assert_close(diagnostics.pooled(values, mask), values[mask].float().sum(0), rtol=1e-4, atol=1e-3)


def test_frozen_weights_have_no_update(tmp_path):
    lora = {"lora": {"rank": 2}}
    with pytest.raises(BulwarkError, match=r"analysis\.weights: false"):
        run(tmp_path / "a", analysed(tmp_path / "a"), **lora)
    run(tmp_path / "b", analysed(tmp_path / "b", weights=False), **lora)
    found = table(tmp_path / "b")
    assert found[0, LAYER, "down_proj", "x"] is not None
    assert found[0, LAYER, "down_proj", "y_normalised"] is None


def test_biases_are_not_in_y(tmp_path):
    model = model_of(bias=True)
    weight = model.model.layers[LAYER - 1].mlp.down_proj.weight.detach().clone()
    inputs = []
    model.model.layers[LAYER - 1].mlp.down_proj.register_forward_hook(
        lambda _, given, __: inputs.append(given[0].detach())
    )
    batch = whole_step(0)
    with torch.no_grad():
        model(input_ids=batch.input_ids)
    expected = inputs[0][batch.labels != -100].mean(0) @ (weight.T @ UNIT)
    run(tmp_path, analysed(tmp_path), model=model_of(bias=True))
    assert table(tmp_path)[0, LAYER, "down_proj", "y"] == pytest.approx(float(expected), rel=1e-4)


def test_step_batches_have_what_the_analyser_divides_by():
    """The response tokens of a step's batches are its step_tokens."""
    steps = StepBatches(examples(7), batch_size=7, micro_batch_size=3, pad_id=PAD)
    batches = list(steps.of_step(0))
    assert sum(int(token_mask(batch, "response").sum()) for batch in batches) == batches[0].step_tokens
